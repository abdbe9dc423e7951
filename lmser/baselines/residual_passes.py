"""Both ways through residual blocks that follow each other, each as one node of autograd.

Two layers read one tensor, so two gradients meet at it. Written one after the other, the second is formed where the
first is added, in the kernel that writes it; autograd by itself would form both and then pass over them a third time.
On the CPU a way and its gradient are one call of the compiled module each, for all blocks (csrc/direct_residual.cpp):
between large tensors nothing of Python stays in the caches, and every call fetches it again. Elsewhere, and where a
gradient is to be differentiated, they are calls of the operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library
from lmser_kernels.dispatch import Operators, chosen, compiled

__all__ = ["Blocks", "operators_for", "residual_down", "residual_up"]

Pair = tuple[int, int]
Maybe = Tensor | None
_ONE, _ZERO = (1, 1), (0, 0)


@dataclass(frozen=True)
class Blocks:
    """Of each block, in their order: weights and biases (all have some or none has), padding and pool; the leak of the
    relu, 0, or of the leaky relu, that all have."""

    inner: list[Tensor]
    outer: list[Tensor]
    inner_bias: list[Tensor]
    outer_bias: list[Tensor]
    padding: list[Pair]
    pool: list[Pair]
    activation: str
    leak: float


def operators_for(x: Tensor, impl: str) -> Operators | None:
    """The operators that `residual_up` and `residual_down` take for this tensor; None where the layers one by one are
    to be called: the reference, autocast, transforms and compilation know those alone, and say what does not fit.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if not torch.is_grad_enabled() or torch._C._is_any_autocast_enabled():
        return None
    return chosen("conv2d_add_act", impl, x) if x.dim() == 4 and x.numel() > 0 else None


def residual_up(ops: Operators, x: Tensor, blocks: Blocks) -> tuple[Tensor, list[Tensor]]:
    """The last block's `h`, and `r` of each: `r = f(conv(avg_pool(x)) + bias)` of `inner`, and `h = conv(avg_pool(x)) +
    bias + r` of `outer`, which is the next block's `x`. `f` is relu or leaky relu: no gradient flows to `r`, which
    tells where it was open."""
    count = len(blocks.inner)
    found = _record_up(ops, x, blocks, *blocks.inner, *blocks.inner_bias, *blocks.outer, *blocks.outer_bias)
    return found[count - 1], list(found[count:])


def residual_down(
    ops: Operators,
    g: Tensor,
    blocks: Blocks,
    *,
    opened: list[Tensor],
    gate: tuple[Maybe, float],
    size: Pair,
) -> Tensor:
    """`(spread(convᵀ(g · o, inner)) + spread(convᵀ(g, outer))) · p` from the last block to the first, the transpose of
    `residual_up`.

    opened: what `o` of each block is told by: 1 where it is positive and the leak elsewhere; constants to autograd
    gate:   the same for `p`, of the first block alone
    size:   of the result
    """
    u: Tensor = _record_down(ops, g, blocks, opened, *gate, size, *blocks.inner, *blocks.outer)[0]
    return u


def _at_once(ops: Operators, name: str, *args: Any) -> Any:
    """What the module's function gives; None where it is not for this call, or where its operations are recorded."""
    function = getattr(_library.module, name, None) if ops is compiled else None
    return None if function is None or torch.is_grad_enabled() else function(*args)


def _total(a: Maybe, b: Maybe) -> Maybe:
    return b if a is None else (a if b is None else a + b)


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: Operators, x: Tensor, blocks: Blocks, *weights: Tensor) -> tuple[Tensor, ...]:
        b, count = blocks, len(blocks.inner)
        found = _at_once(
            ops, "residual_up", x, b.inner, b.inner_bias, b.outer, b.outer_bias, b.padding, b.pool,
            b.activation, b.leak,
        )  # fmt: skip
        if found is None:
            hs: list[Tensor] = []
            rs: list[Tensor] = []
            for i in range(count):
                biases = (b.inner_bias[i], b.outer_bias[i]) if b.inner_bias else (None, None)
                source = hs[-1] if hs else x
                rs.append(
                    ops.conv2d_add_act(
                        source, b.inner[i], None, biases[0], _ONE, b.padding[i], b.pool[i], b.activation, b.leak,
                        False,
                    )[0]
                )  # fmt: skip
                hs.append(
                    ops.conv2d_add_act(
                        source, b.outer[i], rs[-1], biases[1], _ONE, _ZERO, b.pool[i], "identity", 0.0, False
                    )[0]
                )
            found = (*hs, *rs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*found[count:])
        ctx.save_for_backward(x, *found[: count - 1], *found[count:], *b.inner, *b.outer)
        ctx.ops, ctx.blocks = ops, b
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Maybe) -> tuple[Any, ...]:
        ops, b = ctx.ops, ctx.blocks
        count, none = len(b.inner), (None,) * len(ctx.needs_input_grad)
        hs = list(grads[:count])
        if all(g is None for g in hs):
            return none
        saved = ctx.saved_tensors
        xs, rs, inner, outer = (list(saved[i * count : (i + 1) * count]) for i in range(4))
        # As the inputs come: inner, their biases, outer, their biases; of each block one of each.
        want_x, wanted = ctx.needs_input_grad[1], ctx.needs_input_grad[3:]
        kinds = [wanted[i : i + count] for i in range(0, len(wanted), count)]
        if len(kinds) == 2:
            kinds = [kinds[0], (False,) * count, kinds[1], (False,) * count]
        needs = [want_x, *(kind[i] for i in range(count) for kind in kinds)]
        found = None
        if all(g is None for g in hs[:-1]):
            found = _at_once(
                ops, "residual_up_backward", hs[-1], rs, xs, inner, outer, b.padding, b.pool, b.activation, b.leak,
                needs,
            )  # fmt: skip
        if found is None:
            found = _up_backward(ops, b, hs, xs, rs, inner, outer, needs)
        gradients = [found[1 + k :: 4] for k in range(4)]
        of_weights = gradients if b.inner_bias else [gradients[0], gradients[2]]
        return None, found[0], None, *(g for kind in of_weights for g in kind)


def _up_backward(
    ops: Operators,
    b: Blocks,
    grads: list[Maybe],
    xs: list[Tensor],
    rs: list[Tensor],
    inner: list[Tensor],
    outer: list[Tensor],
    needs: list[bool],
) -> list[Maybe]:
    """What the module's `residual_up_backward` gives, by the operators, with gradients of any of the outputs."""
    found: list[Maybe] = [None] * len(needs)
    g: Maybe = None
    for i in reversed(range(len(inner))):
        g = _total(grads[i], g)
        if g is None:
            continue
        x, pool = xs[i], b.pool[i]
        inner_w, inner_b, outer_w, outer_b = needs[1 + 4 * i : 5 + 4 * i]
        want_x = needs[0] or any(needs[1 : 1 + 4 * i])
        gx, gw, _, gb = ops.conv2d_add_act_backward(
            g, None, rs[i], x, inner[i], _ONE, b.padding[i], pool, b.activation, b.leak,
            [want_x, inner_w, False, inner_b],
        )  # fmt: skip
        _, gv, _, gc = ops.conv2d_add_act_backward(
            g, None, g, x, outer[i], _ONE, _ZERO, pool, "identity", 0.0, [False, outer_w, False, outer_b]
        )
        found[1 + 4 * i : 5 + 4 * i] = [
            t if want else None
            for t, want in zip((gw, gb, gv, gc), (inner_w, inner_b, outer_w, outer_b), strict=True)
        ]
        if not want_x:
            return found
        g = _down(ops, g, outer[i], gx, (x.shape[2] // pool[0], x.shape[3] // pool[1]), pool)
    found[0] = g if needs[0] else None
    return found


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ops: Operators,
        g: Tensor,
        blocks: Blocks,
        opened: list[Tensor],
        gate: Maybe,
        slope: float,
        size: Pair,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        b, count = blocks, len(blocks.inner)
        found = _at_once(
            ops, "residual_down", g, b.inner, b.outer, b.padding, b.pool, opened, b.leak, gate, slope, size
        )
        if found is None:
            us: list[Tensor] = []
            from_above = g
            for i in reversed(range(count)):
                pool = b.pool[i]
                of_block = size if i == 0 else tuple(opened[i - 1].shape[2:])
                small = (of_block[0] // pool[0], of_block[1] // pool[1])
                by_outer = _down(ops, from_above, b.outer[i], None, small, pool)
                p, s = (gate, slope) if i == 0 else (None, 0.0)
                from_above = ops.conv_transpose2d_add_act(
                    from_above, b.inner[i], by_outer, None, p, _ONE, b.padding[i], small, pool, "identity", 0.0,
                    False, s, opened[i], b.leak, True,
                )[0]  # fmt: skip
                us.insert(0, from_above)
            found = tuple(us)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*found[1:], g, *opened, *b.inner, *b.outer, gate)
        ctx.ops, ctx.settings = ops, (b, slope)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Maybe) -> tuple[Any, ...]:
        ops, (b, slope) = ctx.ops, ctx.settings
        count, none = len(b.inner), (None,) * len(ctx.needs_input_grad)
        if all(c is None for c in grads):
            return none
        *saved, gate = ctx.saved_tensors
        gs, opened, inner, outer = (list(saved[i * count : (i + 1) * count]) for i in range(4))
        want_g, wanted = ctx.needs_input_grad[1], ctx.needs_input_grad[7:]
        needs = [want_g, *(want for i in range(count) for want in (wanted[i], wanted[count + i]))]
        found = None
        if all(c is None for c in grads[1:]):
            found = _at_once(
                ops, "residual_down_backward", grads[0], gs, inner, outer, b.padding, b.pool, opened, b.leak, gate,
                slope, needs,
            )  # fmt: skip
        if found is None:
            found = _down_backward(ops, b, list(grads), gs, opened, inner, outer, (gate, slope), needs)
        return None, found[0], None, None, None, None, None, *found[1::2], *found[2::2]


def _down_backward(
    ops: Operators,
    b: Blocks,
    grads: list[Maybe],
    gs: list[Tensor],
    opened: list[Tensor],
    inner: list[Tensor],
    outer: list[Tensor],
    gate: tuple[Maybe, float],
    needs: list[bool],
) -> list[Maybe]:
    """What the module's `residual_down_backward` gives, by the operators, with gradients of any of the outputs."""
    found: list[Maybe] = [None] * len(needs)
    c: Maybe = None
    for i in range(len(inner)):
        c = _total(grads[i], c)
        if c is None:
            continue
        want_inner, want_outer = needs[1 + 2 * i : 3 + 2 * i]
        want_g = needs[0] or any(needs[3 + 2 * i :])
        p, s = gate if i == 0 else (None, 0.0)
        gg, gw, gated, _ = ops.conv_transpose2d_add_act_backward(
            c, None, c, gs[i], inner[i], p, _ONE, b.padding[i], b.pool[i], "identity", 0.0,
            [want_g, want_inner, p is not None, False], s, opened[i], b.leak, True,
        )  # fmt: skip
        if p is not None:
            c = gated
        if want_inner:
            found[1 + 2 * i] = gw
        if want_outer:
            found[2 + 2 * i] = ops.conv_transpose2d_add_act_backward(
                c, None, c, gs[i], outer[i], None, _ONE, _ZERO, b.pool[i], "identity", 0.0,
                [False, True, False, False], 0.0, None, 0.0, True,
            )[1]  # fmt: skip
        if not want_g:
            return found
        c = ops.conv2d_add_act(c, outer[i], gg, None, _ONE, _ZERO, b.pool[i], "identity", 0.0, False)[0]
    found[0] = c if needs[0] else None
    return found


# Without what `Function.apply` does for transforms first, which is as long again: `operators_for` answers to none.
_record_up = super(torch.autograd.Function, _Up).apply
_record_down = super(torch.autograd.Function, _Down).apply


def _down(ops: Operators, g: Tensor, weight: Tensor, add: Maybe, size: Pair, pool: Pair) -> Tensor:
    u: Tensor = ops.conv_transpose2d_add_act(
        g, weight, add, None, None, _ONE, _ZERO, size, pool, "identity", 0.0, False, 0.0, None, 0.0, True
    )[0]
    return u
