"""Autocast casts the operations' arguments as it casts `F.conv2d`'s."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from implementations import DEVICE

from lmser_kernels import add_act, conv2d_add_act, conv_transpose2d_add_act, tied_conv2d

pytestmark = pytest.mark.operators


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
class TestAutocast:
    def test_casts_every_argument(self, impl, dtype):
        x, weight, bias = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(4)
        z, add = torch.randn(2, 4, 3, 3), torch.randn(2, 3, 5, 5)
        with torch.autocast(DEVICE.type, dtype):
            h = conv2d_add_act(x, weight, z, bias, activation="relu", impl=impl)
            down = conv_transpose2d_add_act(z, weight, add, torch.randn(3), gate=x, impl=impl)
            y, u = tied_conv2d(x, z, weight, impl=impl)
            both = add_act(x, add, impl=impl)
            assert h.dtype == F.conv2d(x, weight).dtype == dtype
        assert {t.dtype for t in (down, y, u, both)} == {dtype}
        low = [t.to(dtype) for t in (x, weight, z, bias)]
        torch.testing.assert_close(h, conv2d_add_act(*low, activation="relu", impl=impl))

    def test_mixed_arguments_are_fine(self, impl, dtype):
        with torch.autocast(DEVICE.type, dtype):
            h = conv2d_add_act(torch.randn(1, 2, 4, 4, dtype=dtype), torch.randn(3, 2, 1, 1), impl=impl)
        assert h.dtype == dtype

    def test_gradients_come_back_in_the_parameters_dtype(self, impl, dtype):
        x, weight = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
        with torch.autocast(DEVICE.type, dtype):
            h = conv2d_add_act(x, weight, activation="tanh", impl=impl)
        grads = torch.autograd.grad(h.float().square().sum(), (x, weight))
        assert {g.dtype for g in grads} == {torch.float32}
        wide = conv2d_add_act(x, weight, activation="tanh", impl=impl)
        for got, want in zip(grads, torch.autograd.grad(wide.square().sum(), (x, weight)), strict=True):
            assert (got - want).norm() < 0.06 * want.norm()

    def test_a_small_gate_stays_open(self, impl, dtype):
        z, weight = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        with torch.autocast(DEVICE.type, dtype):
            h = conv_transpose2d_add_act(z, weight, gate=torch.full((1, 1, 1, 1), 1e-45), impl=impl)
        assert h.item() == 1

    def test_float64_is_left_alone(self, impl, dtype):
        x, weight = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.randn(3, 2, 1, 1, dtype=torch.float64)
        with torch.autocast(DEVICE.type, dtype):
            assert conv2d_add_act(x, weight, impl=impl).dtype == torch.float64


def test_disabled_inside(impl):
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1)
    with torch.autocast(DEVICE.type, torch.bfloat16), torch.autocast(DEVICE.type, enabled=False):
        assert conv2d_add_act(x, weight, impl=impl).dtype == torch.float32
