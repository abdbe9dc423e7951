"""`torch.func.grad`, once and twice, through every operation."""

from __future__ import annotations

import pytest
import torch

from lmser_kernels import add_act, conv2d_add_act, conv_transpose2d_add_act, tied_conv2d

pytestmark = pytest.mark.operators


def loss(weight, x, impl):
    h = conv2d_add_act(x, weight, stride=2, padding=1, activation="tanh", impl=impl)
    below = conv_transpose2d_add_act(
        h, weight, stride=2, padding=1, output_size=x.shape[2:], activation="sigmoid", impl=impl
    )
    y, u = tied_conv2d(below, h, weight, stride=2, padding=1, impl=impl)
    return add_act(y, h, activation="tanh", impl=impl).square().sum() + u.square().mean()


def test_gradients_of_gradients(impl):
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(loss(weight, x, "reference"), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    gradient = torch.func.grad(loss)
    plain = weight.detach()
    torch.testing.assert_close(gradient(plain, x, impl), first.detach())
    twice = torch.func.grad(lambda w: gradient(w, x, impl).square().sum())
    torch.testing.assert_close(twice(plain), second)
