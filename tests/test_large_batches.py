"""Backward passes of large batches run in groups of images: sums over groups, and every image in its place."""

from __future__ import annotations

import pytest
import torch
from implementations import FUSED

from lmser_kernels import conv2d_add_act, conv_transpose2d_add_act

pytestmark = [pytest.mark.native, pytest.mark.operators]

# 4 (2 x + 3 h) bytes an image: 18 of them are above the 40 MiB from which there are groups, and no group divides 18 / 4.
BATCH, CHANNELS, SIZE = 18, 17, 96


def gradients(call, impl: str, tensors: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    call(leaves, impl).backward(grad)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_gradients_of_a_large_batch(down: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    big, small = (BATCH, CHANNELS, SIZE, SIZE), (BATCH, CHANNELS + 1, SIZE, SIZE)
    source, target = (small, big) if down else (big, small)
    x, add, grad = torch.randn(source), torch.randn(target), torch.randn(target)
    weight, bias = torch.randn(CHANNELS + 1, CHANNELS, 3, 3) / 12, torch.randn(target[1])
    x = x.contiguous(memory_format=torch.channels_last)

    def call(leaves: list[torch.Tensor], impl: str) -> torch.Tensor:
        x, w, add, b = leaves
        operation = conv_transpose2d_add_act if down else conv2d_add_act
        return operation(x, w, add, b, padding=1, activation="tanh", impl=impl)

    wanted = gradients(call, "reference", [x, weight, add, bias], grad)
    found = gradients(call, FUSED, [x, weight, add, bias], grad)
    for name, f, w in zip(("input", "weight", "add", "bias"), found, wanted, strict=True):
        error = (f - w).abs().max() / w.abs().max()
        assert error < 2e-5, f"{name}: {error:.1e}"
