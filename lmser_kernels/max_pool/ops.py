"""The compiled max-pooling operators made known to PyTorch: sizes (fakes) and derivatives.

Importing this module needs the compiled library. With the winners fixed, pooling is a selection `S`:

    h = f(S x)          gx = Sᵀ (g · f'(h))                max_pool2d_act
    u = Sᵀ (z · f'(h))      gz = f'(h) · S g                   max_unpool2d
    v = f'(h) · S x         gx = Sᵀ (g · f'(h))                max_select2d

so the last two are each other's derivative, and everything is differentiable to any order; where `f` is not
piecewise linear `h` takes the gradient that `f'(h)` has. `h` is not given, nor saved, where `f` is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels.dispatch import differentiable, fake
from lmser_kernels.layout import empty_like_layout

Ints = Sequence[int]
Maybe = Tensor | None
Gradients = tuple[Any, ...]


def _small(x: Tensor, kernel: Ints, stride: Ints, padding: Ints) -> tuple[int, int]:
    return (
        (x.shape[2] + 2 * padding[0] - kernel[0]) // stride[0] + 1,
        (x.shape[3] + 2 * padding[1] - kernel[1]) // stride[1] + 1,
    )


@fake("max_pool2d_act")
def _(
    x: Tensor, kernel: Ints, stride: Ints, padding: Ints, activation: str, slope: float
) -> tuple[Tensor, Tensor]:
    height, width = _small(x, kernel, stride, padding)
    h = empty_like_layout(x, (x.shape[0], x.shape[1], height, width))
    return h, x.new_empty((x.shape[0], height, width, x.shape[1]), dtype=torch.uint8)


@fake("max_unpool2d")
def _(
    z: Tensor,
    places: Tensor,
    h: Maybe,
    size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    activation: str,
    slope: float,
) -> Tensor:
    shape = (z.shape[0], z.shape[1], size[0], size[1])
    if z.shape[2] * z.shape[3] == 1 and z.numel():
        # Of a map of one pixel the layout cannot be told: the places' own.
        return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=torch.channels_last)
    return empty_like_layout(z, shape)


@fake("max_select2d")
def _(
    x: Tensor,
    places: Tensor,
    h: Maybe,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    activation: str,
    slope: float,
) -> Tensor:
    return empty_like_layout(x, (x.shape[0], x.shape[1], *_small(x, kernel, stride, padding)))


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.windows, activation, slope = inputs
    h, places = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(None if activation == "identity" else h, places)
    ctx.size, ctx.act = (x.shape[2], x.shape[3]), (activation, slope)


def _pool_backward(ctx: Any, grad: Maybe, grad_places: Maybe) -> Gradients:
    h, places = ctx.saved_tensors
    gx = None
    if grad is not None and ctx.needs_input_grad[0]:
        gx = ctx.ops.max_unpool2d(grad, places, h, ctx.size, *ctx.windows, *ctx.act)
    return gx, *(None,) * 5


def _unpool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, places, h, _, *ctx.windows, activation, slope = inputs
    ctx.set_materialize_grads(False)
    curved = h is not None and activations.second_derivative(h.new_empty(0), activation) is not None
    ctx.save_for_backward(z if curved else None, places, h)
    ctx.act = (activation, slope)


def _unpool_backward(ctx: Any, grad: Maybe) -> Gradients:
    z, places, h = ctx.saved_tensors
    gz = gh = None
    if grad is not None and ctx.needs_input_grad[0]:
        gz = ctx.ops.max_select2d(grad, places, h, *ctx.windows, *ctx.act)
    if grad is not None and ctx.needs_input_grad[2] and z is not None:
        gh = ctx.ops.max_select2d(grad, places, None, *ctx.windows, "identity", 0.0) * z * _curvature(h, ctx)
    return gz, None, gh, *(None,) * 6


def _select_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, places, h, *ctx.windows, activation, slope = inputs
    ctx.set_materialize_grads(False)
    curved = h is not None and activations.second_derivative(h.new_empty(0), activation) is not None
    ctx.save_for_backward(x if curved else None, places, h)
    ctx.size, ctx.act = (x.shape[2], x.shape[3]), (activation, slope)


def _select_backward(ctx: Any, grad: Maybe) -> Gradients:
    x, places, h = ctx.saved_tensors
    gx = gh = None
    if grad is not None and ctx.needs_input_grad[0]:
        gx = ctx.ops.max_unpool2d(grad, places, h, ctx.size, *ctx.windows, *ctx.act)
    if grad is not None and ctx.needs_input_grad[2] and x is not None:
        gh = grad * ctx.ops.max_select2d(x, places, None, *ctx.windows, "identity", 0.0) * _curvature(h, ctx)
    return gx, None, gh, *(None,) * 5


def _curvature(h: Tensor, ctx: Any) -> Tensor:
    curvature = activations.second_derivative(h, ctx.act[0])
    assert curvature is not None
    return curvature


differentiable("max_pool2d_act", _pool_setup, _pool_backward)
differentiable("max_unpool2d", _unpool_setup, _unpool_backward)
differentiable("max_select2d", _select_setup, _select_backward)
