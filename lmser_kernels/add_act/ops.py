"""The compiled `add_act` operators made known to PyTorch: sizes (fakes) and derivatives.

Importing this module needs the compiled library.

    h = f(y + u + bias)                  gy = gu = g = grad · f'(h)        gbias = Σ g

and with cotangents `c_g`, `c_bias` of the backward's results, `P = c_g + c_bias` gives `P · f'(h)` for grad
and `P · grad · df'/dh` for h. Nothing is saved but `h`, and not even that where `f` is the identity.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels.dispatch import differentiable, fake
from lmser_kernels.layout import empty_like_layout

Maybe = Tensor | None
Gradients = tuple[Any, ...]


@fake("add_act")
def _(y: Tensor, u: Maybe, bias: Maybe, activation: str, slope: float) -> Tensor:
    return empty_like_layout(y, y.shape)


@fake("add_act_backward")
def _(grad: Tensor, h: Tensor, activation: str, slope: float, needs_bias: bool) -> tuple[Tensor, Tensor]:
    return empty_like_layout(h, h.shape), h.new_empty(h.shape[1] if needs_bias else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, _, activation, slope = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(None if activation == "identity" else output)
    ctx.activation, ctx.slope = activation, slope


def _backward(ctx: Any, grad: Maybe) -> Gradients:
    (h,) = ctx.saved_tensors
    want_y, want_u, want_bias = ctx.needs_input_grad[:3]
    if grad is None:
        return None, None, None, None, None
    if h is None and not want_bias:
        return grad if want_y else None, grad if want_u else None, None, None, None
    g, gbias = ctx.ops.add_act_backward(grad, grad if h is None else h, ctx.activation, ctx.slope, want_bias)
    return g if want_y else None, g if want_u else None, gbias if want_bias else None, None, None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, h, activation, slope, needs_bias = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, h)
    ctx.activation, ctx.slope, ctx.needs_bias = activation, slope, needs_bias


def _backward_backward(ctx: Any, c_g: Maybe, c_bias: Maybe) -> Gradients:
    grad, h = ctx.saved_tensors
    total = c_g
    if c_bias is not None and ctx.needs_bias:
        row = c_bias.view(1, -1, 1, 1)
        total = row.expand_as(h) if total is None else total + row
    if total is None:
        return None, None, None, None, None
    for_grad = for_h = None
    if ctx.needs_input_grad[0]:
        for_grad = activations.pull_back(total, h, ctx.activation, ctx.slope)
    if ctx.needs_input_grad[1]:
        curvature = activations.second_derivative(h, ctx.activation)
        for_h = None if curvature is None else total * grad * curvature
    return for_grad, for_h, None, None, None


differentiable("add_act", _setup, _backward)
differentiable("add_act_backward", _backward_setup, _backward_backward)
