"""The compiled operators of the tied convolution made known to PyTorch: derivatives (sizes are in `fakes`).

Importing this module needs the compiled library. With `A = conv ∘ avg_pool` (or `A = up ∘ convᵀ`), linear
in the input and in the weight, an operator and its backward are

    lin = A(x, W)            h = f(lin + add + bias) [· gate]          drive = lin
    pre = grad · f'(h) [· gate]        glin = pre + grad_drive      gate: 1 where positive, else gate_slope
    gx = Aᵀ(glin, W)   gW = Aᵀ(x, glin)   gadd = pre   gbias = Σ pre

and the backward of the backward is built of the same operators. With cotangents `c` of those four results,

    C = A(c_x, W) + A(x, c_W)                the cotangent of glin, and so of grad_drive
    P = (C + c_add + c_bias) [· gate]        that of pre, through the gate
    for grad: P · f'(h)                      for h: P · grad · df'/dh
    for x: Aᵀ(glin, c_W)                     for W: Aᵀ(c_x, glin)

where the last two are one more call of the backward operator, with `(c_x, c_W)` in the place of `(x, W)`.
An `input_gate` is part of A: `A(x, W) = up(convᵀ(x · input_gate, W))`.
Every piece is differentiable again, so everything is, to any order. Nothing is saved but inputs and `h`,
and `h` only where `f` is not the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels.dispatch import Operators, differentiable
from lmser_kernels.tied_conv import fakes as fakes  # registers them

Ints = Sequence[int]
Maybe = Tensor | None
Gradients = tuple[Any, ...]


# first order


def _first_order(
    ctx: Any,
    grad: Maybe,
    grad_drive: Maybe,
    h: Maybe,
    gated: bool,
    backward: Callable[[Maybe, Maybe, Tensor, list[bool]], tuple[Tensor, ...]],
) -> Gradients:
    """Gradients of (input, weight, add, bias); `h` is None where `f` is the identity."""
    if not ctx.drive:
        grad_drive = None
    given = grad if grad is not None else grad_drive
    if given is None:
        return None, None, None, None
    needs = list(ctx.needs_input_grad[:4])
    if grad is None:
        needs[2] = needs[3] = False
    passed_on = None
    if h is None:
        h = given  # read for its shape and layout only
        if needs[2] and not gated:
            passed_on, needs[2] = grad, False
    if not any(needs):
        return None, None, passed_on, None
    gx, gweight, gadd, gbias = backward(grad, grad_drive, h, needs)
    return (
        gx if needs[0] else None,
        gweight if needs[1] else None,
        gadd if needs[2] else passed_on,
        gbias if needs[3] else None,
    )


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, _, stride, padding, pool, activation, slope, drive = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, None if activation == "identity" else output[0])
    ctx.settings, ctx.drive = (stride, padding, pool, activation, slope), drive


def _conv_backward(ctx: Any, grad: Maybe, grad_drive: Maybe) -> Gradients:
    x, weight, h = ctx.saved_tensors

    def backward(grad: Maybe, grad_drive: Maybe, h: Tensor, needs: list[bool]) -> tuple[Tensor, ...]:
        return ctx.ops.conv2d_add_act_backward(grad, grad_drive, h, x, weight, *ctx.settings, needs)

    return *_first_order(ctx, grad, grad_drive, h, False, backward), *(None,) * 6


def _conv_transpose_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, weight, _, _, gate, stride, padding, _, upsample, activation, slope, drive, *gates = inputs
    gate_slope, input_gate, input_slope, ctx.spread = gates
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(z, weight, gate, input_gate, None if activation == "identity" else output[0])
    ctx.settings, ctx.drive = (stride, padding, upsample, activation, slope), drive
    ctx.slopes = (gate_slope, input_slope)


def _conv_transpose_backward(ctx: Any, grad: Maybe, grad_drive: Maybe) -> Gradients:
    z, weight, gate, input_gate, h = ctx.saved_tensors
    gate_slope, input_slope = ctx.slopes

    def backward(grad: Maybe, grad_drive: Maybe, h: Tensor, needs: list[bool]) -> tuple[Tensor, ...]:
        return ctx.ops.conv_transpose2d_add_act_backward(
            grad,
            grad_drive,
            h,
            z,
            weight,
            gate,
            *ctx.settings,
            needs,
            gate_slope,
            input_gate,
            input_slope,
            ctx.spread,
        )

    return *_first_order(ctx, grad, grad_drive, h, gate is not None, backward), *(None,) * 12


# second order


def _second_order(
    ctx: Any,
    cotangents: tuple[Maybe, ...],
    grad: Maybe,
    grad_drive: Maybe,
    h: Tensor,
    x: Tensor,
    weight: Tensor,
    gate: Maybe,
    gate_slope: float,
    linear: Callable[[Tensor, Tensor, Maybe], Tensor],
    backward: Callable[[Tensor, Tensor, list[bool]], tuple[Tensor, ...]],
) -> Gradients:
    """Gradients of (grad, grad_drive, h, x, weight): the formulas at the head of this file."""
    c_x, c_weight, c_add, c_bias = (
        c if needed else None for c, needed in zip(cotangents, ctx.needs, strict=True)
    )
    want_grad, want_drive, want_h, want_x, want_weight = ctx.needs_input_grad[:5]
    activation, slope = ctx.settings[-2:]
    curvature = activations.second_derivative(h, activation) if want_h and grad is not None else None

    total = None
    if want_grad or want_drive or curvature is not None:
        if c_weight is not None:
            total = linear(x, c_weight, None)
        if c_x is not None:
            total = linear(c_x, weight, total)
    for_drive = total if want_drive else None
    if c_add is not None:
        total = c_add if total is None else total + c_add
    if c_bias is not None:
        row = c_bias.view(1, -1, 1, 1)
        total = row.expand_as(h) if total is None else total + row

    for_grad = for_h = None
    if total is not None:
        if gate is not None:
            total = torch.where(gate > 0, total, total * gate_slope if gate_slope else 0)
        if want_grad:
            for_grad = activations.pull_back(total, h, activation, slope)
        if curvature is not None and grad is not None:
            for_h = total * grad * curvature

    for_x = for_weight = None
    needs = [want_x and c_weight is not None, want_weight and c_x is not None, False, False]
    if needs[0] or needs[1]:
        results = backward(x if c_x is None else c_x, weight if c_weight is None else c_weight, needs)
        for_x = results[0] if needs[0] else None
        for_weight = results[1] if needs[1] else None
    return for_grad, for_drive, for_h, for_x, for_weight


def _conv_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, grad_drive, h, x, weight, stride, padding, pool, activation, slope, needs = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, grad_drive, h, x, weight)
    ctx.settings, ctx.needs = (stride, padding, pool, activation, slope), needs


def _conv_backward_backward(ctx: Any, *cotangents: Maybe) -> Gradients:
    grad, grad_drive, h, x, weight = ctx.saved_tensors
    stride, padding, pool, _, _ = ctx.settings

    def linear(x: Tensor, weight: Tensor, add: Maybe) -> Tensor:
        result: Tensor = ctx.ops.conv2d_add_act(
            x, weight, add, None, stride, padding, pool, "identity", 0.0, False
        )[0]
        return result

    def backward(x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, ...]:
        return ctx.ops.conv2d_add_act_backward(grad, grad_drive, h, x, weight, *ctx.settings, needs)

    gradients = _second_order(ctx, cotangents, grad, grad_drive, h, x, weight, None, 0.0, linear, backward)
    return *gradients, *(None,) * 6


def _conv_transpose_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, grad_drive, h, z, weight, gate, stride, padding, upsample, activation, slope, needs, *gates = inputs
    gate_slope, input_gate, input_slope, ctx.spread = gates
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, grad_drive, h, z, weight, gate, input_gate)
    ctx.settings, ctx.needs = (stride, padding, upsample, activation, slope), needs
    ctx.slopes = (gate_slope, input_slope)


def _conv_transpose_backward_backward(ctx: Any, *cotangents: Maybe) -> Gradients:
    grad, grad_drive, h, z, weight, gate, input_gate = ctx.saved_tensors
    stride, padding, upsample, _, _ = ctx.settings
    gate_slope, input_slope = ctx.slopes
    size = (h.shape[2] // upsample[0], h.shape[3] // upsample[1])

    def linear(z: Tensor, weight: Tensor, add: Maybe) -> Tensor:
        result: Tensor = ctx.ops.conv_transpose2d_add_act(
            z, weight, add, None, None, stride, padding, size, upsample, "identity", 0.0, False,
            0.0, input_gate, input_slope, ctx.spread,
        )[0]  # fmt: skip
        return result

    def backward(z: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, ...]:
        return ctx.ops.conv_transpose2d_add_act_backward(
            grad,
            grad_drive,
            h,
            z,
            weight,
            gate,
            *ctx.settings,
            needs,
            gate_slope,
            input_gate,
            input_slope,
            ctx.spread,
        )

    gradients = _second_order(
        ctx, cotangents, grad, grad_drive, h, z, weight, gate, gate_slope, linear, backward
    )
    return *gradients, *(None,) * 11


# both directions at once


def _conv(ops: Operators, x: Tensor, weight: Tensor, stride: Ints, padding: Ints) -> Tensor:
    result: Tensor = ops.conv2d_add_act(
        x, weight, None, None, stride, padding, (1, 1), "identity", 0.0, False
    )[0]
    return result


def _conv_transpose(
    ops: Operators, z: Tensor, weight: Tensor, stride: Ints, padding: Ints, like: Tensor
) -> Tensor:
    result: Tensor = ops.conv_transpose2d_add_act(
        z, weight, None, None, None, stride, padding, like.shape[2:], (1, 1), "identity", 0.0, False,
        0.0, None, 0.0, False,
    )[0]  # fmt: skip
    return result


def _pair_gradients(
    ops: Operators,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    want_y: bool,
    want_u: bool,
) -> tuple[Maybe, Maybe]:
    """`(conv(x), convᵀ(z) sized like x)`, or the one of them that is wanted."""
    if want_y and want_u:
        both: tuple[Tensor, Tensor] = ops.tied_conv2d(x, z, weight, stride, padding)
        return both
    return (
        _conv(ops, x, weight, stride, padding) if want_y else None,
        _conv_transpose(ops, z, weight, stride, padding, x) if want_u else None,
    )


def _tied_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, z, weight, stride, padding = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, z, weight)
    ctx.settings = (stride, padding)


def _tied_backward(ctx: Any, grad_y: Maybe, grad_u: Maybe) -> Gradients:
    """`gx = convᵀ(grad_y)`, `gz = conv(grad_u)`: the operation itself with the roles exchanged."""
    x, z, weight = ctx.saved_tensors
    stride, padding = ctx.settings
    want_x, want_z, want_weight = ctx.needs_input_grad[:3]
    want_x, want_z = want_x and grad_y is not None, want_z and grad_u is not None
    gz, gx = _pair_gradients(
        ctx.ops,
        x if grad_u is None else grad_u,
        z if grad_y is None else grad_y,
        weight,
        stride,
        padding,
        want_z,
        want_x,
    )
    gweight = None
    if want_weight and grad_y is not None:
        below = None if grad_u is None else z
        gweight = ctx.ops.tied_conv2d_weight_grad(x, grad_y, grad_u, below, weight.shape[2:], stride, padding)
    elif want_weight and grad_u is not None:
        gweight = ctx.ops.tied_conv2d_weight_grad(grad_u, z, None, None, weight.shape[2:], stride, padding)
    return gx, gz, gweight, None, None


def _weight_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad_y, grad_u, z, _, stride, padding = inputs
    ctx.save_for_backward(x, grad_y, grad_u, z)
    ctx.settings = (stride, padding)


def _weight_grad_backward(ctx: Any, cotangent: Tensor) -> Gradients:
    """`⟨c, gW⟩ = ⟨conv(x, c), grad_y⟩ + ⟨conv(grad_u, c), z⟩`: `(convᵀ, conv)` with `c` for each pair."""
    x, grad_y, grad_u, z = ctx.saved_tensors
    stride, padding = ctx.settings
    want_x, want_y, want_u, want_z = ctx.needs_input_grad[:4]
    for_y, for_x = _pair_gradients(ctx.ops, x, grad_y, cotangent, stride, padding, want_y, want_x)
    for_z = for_u = None
    if grad_u is not None:
        for_z, for_u = _pair_gradients(ctx.ops, grad_u, z, cotangent, stride, padding, want_z, want_u)
    return for_x, for_y, for_u, for_z, None, None, None


# registration

differentiable("conv2d_add_act", _conv_setup, _conv_backward)
differentiable("conv2d_add_act_backward", _conv_backward_setup, _conv_backward_backward)
differentiable("conv_transpose2d_add_act", _conv_transpose_setup, _conv_transpose_backward)
differentiable(
    "conv_transpose2d_add_act_backward", _conv_transpose_backward_setup, _conv_transpose_backward_backward
)
differentiable("tied_conv2d", _tied_setup, _tied_backward)
differentiable("tied_conv2d_weight_grad", _weight_grad_setup, _weight_grad_backward)
