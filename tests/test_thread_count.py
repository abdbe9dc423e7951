"""The number of threads decides who computes a value, never which bits it has: outputs and input gradients."""

from __future__ import annotations

import pytest
import torch

from lmser_kernels import conv2d_add_act, conv_transpose2d_add_act

pytestmark = pytest.mark.native


# Direct, few output channels, minimal filtering, fully connected: one shape for each algorithm.
@pytest.mark.parametrize(
    ("below", "above", "size", "kernel", "stride"),
    [(7, 40, 33, 3, 1), (3, 20, 40, 3, 1), (48, 70, 31, 3, 2), (300, 200, 1, 1, 1)],
    ids=["direct", "few channels", "minimal filtering", "fully connected"],
)
def test_bits_do_not_depend_on_the_number_of_threads(below, above, size, kernel, stride):
    padding, small = kernel // 2, (size - 1) // stride + 1
    x = torch.randn(50, below, size, size).contiguous(memory_format=torch.channels_last)
    z = torch.randn(50, above, small, small).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(above, below, kernel, kernel)

    def results(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        a, b = x.clone().requires_grad_(), z.clone().requires_grad_()
        up = conv2d_add_act(a, weight, stride=stride, padding=padding, activation="tanh")
        down = conv_transpose2d_add_act(
            b, weight, stride=stride, padding=padding, output_size=size, activation="tanh"
        )
        (up.sum() + down.sum()).backward()
        return [up, down, a.grad, b.grad]

    for threads in (2, 3):
        for one, many in zip(results(1), results(threads), strict=True):
            assert torch.equal(one, many)
