"""Packed weights are kept between calls, and are never those of another weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import lmser_kernels
from lmser_kernels import _library, conv2d_add_act, conv_transpose2d_add_act

pytestmark = pytest.mark.skipif(not _library.available, reason="the compiled library is not installed")


@pytest.fixture(autouse=True)
def empty():
    lmser_kernels.empty_cache()
    yield
    lmser_kernels.empty_cache()


def packed() -> int:
    return _library.module.packed_bytes()


def up(x, weight, stride=1):
    return conv2d_add_act(x, weight, stride=stride, padding=1)


def agrees(x, weight, stride=1) -> bool:
    wanted = F.conv2d(x.double(), weight.double(), None, stride, 1)
    return bool((up(x, weight, stride).double() - wanted).abs().max() < 1e-5 * wanted.abs().max())


def test_a_weight_is_packed_once_for_each_direction_and_algorithm():
    x, weight = torch.randn(2, 24, 9, 9), torch.randn(40, 24, 3, 3)
    sizes = [packed()]
    for call in (
        lambda: up(x, weight),
        lambda: conv_transpose2d_add_act(torch.randn(2, 40, 9, 9), weight, padding=1),
        lambda: up(x, weight, 2),
    ):
        first = call().clone()
        sizes.append(packed())
        torch.testing.assert_close(call().shape, first.shape)
        assert packed() == sizes[-1] > sizes[-2]


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(2),
        lambda w: w.data.mul_(2),
        lambda w: w.numpy().__imul__(2),
        lambda w: w.view(-1)[-1:].add_(1),
        lambda w: w[17, 3].zero_(),
    ],
    ids=["in place", "data", "numpy", "last value", "a slice"],
)
def test_whoever_writes_to_the_weight_is_noticed(write):
    x, weight = torch.randn(2, 24, 9, 9), torch.randn(40, 24, 3, 3)
    assert agrees(x, weight)
    assert agrees(x, weight)
    write(weight)
    assert agrees(x, weight)
    assert agrees(x, weight)


def test_other_weights_in_the_same_memory():
    memory, x = torch.randn(40 * 24 * 9), torch.randn(2, 24, 9, 9)
    for weight in (
        memory.view(40, 24, 3, 3),
        memory.view(40, 3, 3, 24).permute(0, 3, 1, 2),
        memory.view(24, 40, 3, 3).transpose(0, 1),
        memory.view(40, 24, 3, 3).transpose(2, 3),
    ):
        assert agrees(x, weight)
        assert agrees(x, weight, 2)
    assert agrees(torch.randn(1, 40, 9, 9), memory.view(24, 40, 3, 3))
    double = memory[: 20 * 24 * 9].view(20, 24, 3, 3).view(torch.float32).double()
    assert agrees(x.double(), double)


def test_reduced_precision_and_gaps():
    x = torch.randn(2, 24, 9, 9)
    half = torch.randn(40, 24, 3, 3).bfloat16()
    for _ in range(2):
        wanted = F.conv2d(x.bfloat16().double(), half.double(), None, 1, 1)
        assert (up(x.bfloat16(), half).double() - wanted).abs().max() < 0.05 * wanted.abs().max()
    lmser_kernels.empty_cache()
    with_gaps = torch.randn(40, 48, 3, 3)[:, ::2]
    assert agrees(x, with_gaps)
    assert packed() == 0  # what lies between is another's


def test_what_is_kept_is_bounded():
    x = torch.randn(1, 128, 12, 12)  # fewer pixels would not have the weight packed
    weights = [torch.randn(256, 128, 3, 3) for _ in range(60)]
    for weight in weights:
        up(x, weight)
    assert 0 < packed() <= 96 << 20
    assert agrees(x, weights[0])


def test_bits_are_the_same_with_what_was_kept():
    x, weight = torch.randn(2, 24, 9, 9), torch.randn(40, 24, 3, 3)
    first = up(x, weight)
    assert torch.equal(first, up(x, weight))
    lmser_kernels.empty_cache()
    assert torch.equal(first, up(x, weight))
