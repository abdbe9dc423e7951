"""Both ways through a residual block, each as one node of autograd.

Two layers read one tensor, so two gradients meet at it. Written one after the other, the second is formed where the
first is added, in the kernel that writes it; autograd by itself would form both and then pass over them a third time.
On the CPU a way and its gradient are one call of the compiled module each (csrc/direct_residual.cpp): between large
tensors nothing of Python stays in the caches, and every call fetches it again. Elsewhere, and where a gradient is to be
differentiated, they are calls of the operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library
from lmser_kernels.dispatch import Operators, chosen, compiled

__all__ = ["operators_for", "residual_down", "residual_up"]

Pair = tuple[int, int]
Maybe = Tensor | None
_ONE, _ZERO = (1, 1), (0, 0)


def operators_for(x: Tensor, weights: tuple[Tensor, ...], impl: str) -> Operators | None:
    """The operators that `residual_up` and `residual_down` take for these tensors; None where the layers one by one
    are to be called: the reference, autocast, transforms and compilation know those alone, and say what does not fit.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if not torch.is_grad_enabled() or torch._C._is_any_autocast_enabled():
        return None
    alike = all(w.dtype == x.dtype and w.device == x.device for w in weights)
    if not alike or x.dim() != 4 or x.numel() == 0:
        return None
    return chosen("conv2d_add_act", impl, x)


def residual_up(
    ops: Operators,
    x: Tensor,
    inner: tuple[Tensor, Maybe],
    outer: tuple[Tensor, Maybe],
    *,
    padding: Pair,
    pool: Pair,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """`(h, r)` with `r = f(conv(avg_pool(x)) + bias)` of `inner` and `h = conv(avg_pool(x)) + bias + r` of `outer`, a
    weight and a bias each. `f` is relu or leaky relu: no gradient flows to `r`, which tells where it was open."""
    h, r = _record_up(ops, x, *inner, *outer, padding, pool, activation, slope)
    return h, r


def residual_down(
    ops: Operators,
    g: Tensor,
    inner: Tensor,
    outer: Tensor,
    *,
    opened: tuple[Tensor, float],
    gate: tuple[Maybe, float],
    size: Pair,
    padding: Pair,
    pool: Pair,
) -> Tensor:
    """`(spread(convᵀ(g · o, inner)) + spread(convᵀ(g, outer))) · p`, the transpose of `residual_up`.

    opened, gate: `o` and `p`, 1 where the tensor is positive and the number elsewhere; constants to autograd
    size:         of the result before it is spread
    """
    u: Tensor = _record_down(ops, g, inner, outer, *opened, *gate, size, padding, pool)
    return u


def _at_once(ops: Operators, name: str, *args: Any) -> Any:
    """What the module's function gives; None where it is not for this call, or where its operations are recorded."""
    function = getattr(_library.module, name, None) if ops is compiled else None
    return None if function is None or torch.is_grad_enabled() else function(*args)


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: Operators, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        w_inner, b_inner, w_outer, b_outer, padding, pool, activation, slope = args
        found = _at_once(
            ops, "residual_up", x, w_inner, b_inner, w_outer, b_outer, padding, pool, activation, slope
        )
        if found is None:
            r = ops.conv2d_add_act(
                x, w_inner, None, b_inner, _ONE, padding, pool, activation, slope, False
            )[0]  # fmt: skip
            found = (
                ops.conv2d_add_act(x, w_outer, r, b_outer, _ONE, _ZERO, pool, "identity", 0.0, False)[0],
                r,
            )
        h, r = found
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(r)
        ctx.save_for_backward(x, w_inner, w_outer, r)
        ctx.ops, ctx.settings = ops, (padding, pool, activation, slope)
        return h, r

    @staticmethod
    def backward(ctx: Any, g: Maybe, _: Maybe) -> tuple[Any, ...]:
        if g is None:
            return (None,) * 10
        x, w_inner, w_outer, r = ctx.saved_tensors
        ops, (padding, pool, activation, slope) = ctx.ops, ctx.settings
        wanted = list(ctx.needs_input_grad[1:6])
        found = _at_once(
            ops, "residual_up_backward", g, r, x, w_inner, w_outer, padding, pool, activation, slope, wanted
        )
        if found is not None:
            return None, *found, None, None, None, None
        want_x, *wants = wanted
        needs = [want_x, wants[0], False, wants[1]]
        gx, gw_inner, _, gb_inner = ops.conv2d_add_act_backward(
            g, None, r, x, w_inner, _ONE, padding, pool, activation, slope, needs
        )
        _, gw_outer, _, gb_outer = ops.conv2d_add_act_backward(
            g, None, g, x, w_outer, _ONE, _ZERO, pool, "identity", 0.0, [False, wants[2], False, wants[3]]
        )
        if want_x:
            gx = _down(ops, g, w_outer, gx, (x.shape[2] // pool[0], x.shape[3] // pool[1]), pool)
        gradients = (gx, gw_inner, gb_inner, gw_outer, gb_outer)
        kept = (found if want else None for found, want in zip(gradients, wanted, strict=True))
        return None, *kept, None, None, None, None


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: Operators, g: Tensor, *args: Any) -> Tensor:
        w_inner, w_outer, opened, leak, gate, slope, size, padding, pool = args
        u: Tensor | None = _at_once(
            ops, "residual_down", g, w_inner, w_outer, opened, leak, gate, slope, size, padding, pool
        )
        if u is None:
            by_outer = _down(ops, g, w_outer, None, size, pool)
            u = ops.conv_transpose2d_add_act(
                g, w_inner, by_outer, None, gate, _ONE, padding, size, pool, "identity", 0.0, False, slope, opened,
                leak, True,
            )[0]  # fmt: skip
        ctx.save_for_backward(g, w_inner, w_outer, opened, gate)
        ctx.ops, ctx.settings = ops, (leak, slope, padding, pool)
        return u

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Any, ...]:
        g, w_inner, w_outer, opened, gate = ctx.saved_tensors
        ops, (leak, slope, padding, pool) = ctx.ops, ctx.settings
        wanted = list(ctx.needs_input_grad[1:4])
        found = _at_once(
            ops, "residual_down_backward", c, g, w_inner, w_outer, opened, leak, gate, slope, padding, pool,
            wanted,
        )  # fmt: skip
        if found is not None:
            return None, *found, *(None,) * 7
        want_g, want_inner, want_outer = wanted
        gated = gate is not None
        gg, gw_inner, gated_c, _ = ops.conv_transpose2d_add_act_backward(
            c, None, c, g, w_inner, gate, _ONE, padding, pool, "identity", 0.0, [want_g, want_inner, gated, False],
            slope, opened, leak, True,
        )  # fmt: skip
        if gated:
            c = gated_c
        gw_outer = None
        if want_outer:
            gw_outer = ops.conv_transpose2d_add_act_backward(
                c, None, c, g, w_outer, None, _ONE, _ZERO, pool, "identity", 0.0, [False, True, False, False],
                0.0, None, 0.0, True,
            )[1]  # fmt: skip
        if want_g:
            gg = ops.conv2d_add_act(c, w_outer, gg, None, _ONE, _ZERO, pool, "identity", 0.0, False)[0]
        return None, gg if want_g else None, gw_inner if want_inner else None, gw_outer, *(None,) * 7


# Without what `Function.apply` does for transforms first, which is as long again: `operators_for` answers to none.
_record_up = super(torch.autograd.Function, _Up).apply
_record_down = super(torch.autograd.Function, _Down).apply


def _down(ops: Operators, g: Tensor, weight: Tensor, add: Maybe, size: Pair, pool: Pair) -> Tensor:
    u: Tensor = ops.conv_transpose2d_add_act(
        g, weight, add, None, None, _ONE, _ZERO, size, pool, "identity", 0.0, False, 0.0, None, 0.0, True
    )[0]
    return u
