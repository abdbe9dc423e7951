"""The sweeps as a chain of fused operations: what derivatives of the backward pass itself are taken through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels.settle.schedule import sweep_order
from lmser_kernels.tied_conv.api import conv2d_add_act, conv_transpose2d_add_act

Maybe = Tensor | None


def unrolled(
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    reverse_weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    evidence: Maybe,
    hold: Maybe,
    external: Maybe,
    pools: Sequence[int],
    padding: Sequence[int],
    activation: str,
    slope: float,
    order: str,
    steps: int,
    impl: str,
) -> tuple[list[Tensor], Tensor]:
    """Exactly `steps` sweeps: the last states and the readouts ``(steps, N, C, H, W)``; differentiable to any order.

    The arguments are those of the operator `lmser::settle`; `impl` is that of every update.
    """
    leak = slope if activation in activations.DEFAULT_SLOPES else None
    windows = [(pools[2 * e], pools[2 * e + 1]) for e in range(len(weights))]
    margins = [(padding[2 * e], padding[2 * e + 1]) for e in range(len(weights))]
    bias = [b if b.numel() else None for b in biases]
    down, top = reverse_weights or weights, len(weights)

    def update(layer: int) -> Tensor:
        add = external if layer == 0 else None
        if layer > 0:
            ends = layer == top
            add = conv2d_add_act(
                h[layer - 1], weights[layer - 1], None, bias[layer] if ends else None,
                padding=margins[layer - 1], pool=windows[layer - 1],
                activation=activation if ends else "identity", slope=leak if ends else None, impl=impl,
            )  # fmt: skip
            if ends:
                return add
        window = windows[layer]
        return conv_transpose2d_add_act(
            h[layer + 1], down[layer], add, bias[layer], padding=margins[layer],
            output_size=(h[layer].shape[2] // window[0], h[layer].shape[3] // window[1]), upsample=window,
            activation=activation, slope=leak, impl=impl,
        )  # fmt: skip

    h = [_held(states[0], evidence, hold), *states[1:]]
    seen = []
    for _ in range(steps):
        for layer in sweep_order(top + 1, order):
            value = update(layer)
            if layer == 0:
                seen.append(value)
                value = _held(value, evidence, hold)
            h[layer] = value
    return h, torch.stack(seen)


def _held(value: Tensor, evidence: Maybe, hold: Maybe) -> Tensor:
    if evidence is None or hold is None:
        return value
    mixed = hold * evidence + (1 - hold) * value
    return torch.where(hold == 1, evidence, torch.where(hold == 0, value, mixed))
