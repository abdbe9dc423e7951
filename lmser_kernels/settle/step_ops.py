"""The compiled `settle_step` made known to PyTorch: sizes (fake) and derivative.

Importing this module needs the compiled library.

    y = conv(avg_pool(below), Wb)   u = up(convᵀ(above, Wa))   v = f(y + u + bias)   h = hold evidence + (1 - hold) v

    d = (1 - hold) grad f'(v):   gy = gu = d, as the two convolutions take it; gbias = Σ d; gevidence = hold grad

`hold` is 0 or 1 here, so that where d is not zero h is v, and nothing is saved but inputs and h. The derivative is made
of operators that are differentiable themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmser_kernels.dispatch import differentiable, fake

Maybe = Tensor | None
Ints = Sequence[int]


@fake("settle_step")
def _(
    below: Maybe, above: Maybe, weight_below: Maybe, weight_above: Maybe, bias: Maybe, evidence: Maybe, hold: Maybe,
    previous: Maybe, padding: Ints, padding_above: Ints, pool: Ints, upsample: Ints, activation: str, slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if below is not None and weight_below is not None:
        first, channels = below, weight_below.shape[0]
        size = [
            below.shape[2 + i] // pool[i] + 2 * padding[i] - weight_below.shape[2 + i] + 1 for i in (0, 1)
        ]
    else:
        assert above is not None
        assert weight_above is not None
        first, channels = above, weight_above.shape[1]
        size = [
            (above.shape[2 + i] - 1 - 2 * padding_above[i] + weight_above.shape[2 + i]) * upsample[i]
            for i in (0, 1)
        ]
    h = first.new_empty((first.shape[0], *size, channels)).permute(0, 3, 1, 2)
    return h, first.new_empty(())


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    below, above, weight_below, weight_above, _, _, hold, _, *settings = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(below, above, weight_below, weight_above, hold, output[0])
    ctx.settings = settings


def _backward(ctx: Any, grad: Maybe, _: Any) -> tuple[Any, ...]:
    below, above, weight_below, weight_above, hold, h = ctx.saved_tensors
    padding, padding_above, pool, upsample, activation, slope = ctx.settings
    rest: tuple[Any, ...] = (None,) * 6
    wants = ctx.needs_input_grad
    if grad is None:
        return (None,) * 8 + rest
    free = grad if hold is None else torch.where(hold == 0, grad, torch.zeros_like(grad))
    d, gbias = ctx.ops.add_act_backward(free, h, activation, slope, wants[4])
    g_below = g_above = g_weight_below = g_weight_above = None
    if below is not None and (wants[0] or wants[2]):
        g_below, g_weight_below, *_ = ctx.ops.conv2d_add_act_backward(
            d,
            None,
            h,
            below,
            weight_below,
            (1, 1),
            padding,
            pool,
            "identity",
            0.0,
            [wants[0], wants[2], False, False],
        )
    if above is not None and (wants[1] or wants[3]):
        g_above, g_weight_above, *_ = ctx.ops.conv_transpose2d_add_act_backward(
            d, None, h, above, weight_above, None, (1, 1), padding_above, upsample, "identity", 0.0,
            [wants[1], wants[3], False, False], 0.0, None, 0.0, False,
        )  # fmt: skip
    g_evidence = None
    if wants[5] and hold is not None:
        g_evidence = torch.where(hold == 0, torch.zeros_like(grad), grad)
    found = (g_below, g_above, g_weight_below, g_weight_above, gbias, g_evidence)
    return (*(g if w else None for g, w in zip(found, wants, strict=False)), None, None, *rest)


differentiable("settle_step", _setup, _backward)
