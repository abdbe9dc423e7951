"""Fully connected layers of a few samples read their weight as it lies."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from lmser_kernels import conv2d_add_act, conv_transpose2d_add_act, explain

SHAPES = list(itertools.product((1, 2, 3, 4, 5), ((1, 1), (3, 70), (67, 35), (129, 16), (40, 9), (256, 100))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize(("batch", "channels"), SHAPES)
def test_both_directions(batch, channels, layout, dtype):
    generator = torch.Generator().manual_seed(batch)
    below, above = channels

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weight = randn(above, below, 1, 1)
    if layout == "columns":
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "strided":
        weight = torch.stack([weight, weight], 2)[:, :, 0]
    x, z, bias = randn(batch, below, 1, 1), randn(batch, above, 1, 1), randn(above)
    exact = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    found = conv2d_add_act(x, weight, z, bias, activation="relu", impl="native")
    wanted = F.relu(F.conv2d(x.double(), weight.double(), bias.double()) + z.double())
    assert (found.double() - wanted).abs().max() <= exact * wanted.abs().max().clamp_min(1)
    found, drive = conv_transpose2d_add_act(
        z, weight, x, activation="sigmoid", return_drive=True, impl="native"
    )
    linear = F.conv_transpose2d(z.double(), weight.double())
    assert (drive.double() - linear).abs().max() <= exact * linear.abs().max().clamp_min(1)
    assert (found.double() - torch.sigmoid(linear + x.double())).abs().max() <= max(exact, 1e-6)


def test_explained():
    def kernel(batch: int) -> str:
        return explain("conv2d_add_act", torch.randn(batch, 64, 1, 1), torch.randn(32, 64, 1, 1)).kernel

    assert "as it lies" in kernel(4)
    assert "as it lies" not in kernel(5)
