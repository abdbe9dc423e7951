"""What the operators that make no state again keep of a solve for its backward: the hidden states of every update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser_kernels import activation as activations


def whole_trajectory(given: Sequence[Any], sweeps: int) -> Tensor:
    """In the order of the updates, each as (N, H, W, C). given: arguments of `torch.ops.lmser.settle`; every layer is
    updated in every sweep."""
    states, weights, reverse, biases, evidence, hold, external, pools, padding, activation, slope, order = (
        given[:12]
    )
    slope = slope if activation in activations.DEFAULT_SLOPES else None
    h, top, kept = list(states), len(weights), []

    def held(value: Tensor) -> Tensor:
        return value if hold is None else torch.where(hold == 0, value, hold * evidence + (1 - hold) * value)

    def updated(layer: int) -> Tensor:
        total: Any = 0.0
        if layer > 0:
            e = layer - 1
            pooled = F.avg_pool2d(h[e], pools[2 * e : 2 * e + 2])
            total = total + F.conv2d(pooled, weights[e], padding=padding[2 * e : 2 * e + 2])
        if layer < top:
            down = (reverse or weights)[layer]
            above = F.conv_transpose2d(h[layer + 1], down, padding=padding[2 * layer : 2 * layer + 2])
            for axis in (0, 1):
                above = above.repeat_interleave(pools[2 * layer + axis], 2 + axis)
            total = total + above
        if biases[layer].numel():
            total = total + biases[layer].view(1, -1, 1, 1)
        if layer == 0 and external is not None:
            total = total + external
        return activations.apply(total, activation, slope)

    h[0] = held(h[0])
    if order == "up_down":
        updates = [*range(1, top + 1), *range(top - 1, -1, -1)]
    else:
        updates = [*range(1, top + 1, 2), *range(0, top + 1, 2)]
    for _ in range(sweeps):
        for layer in updates:
            h[layer] = updated(layer) if layer else held(updated(0))
            if layer:
                kept.append(h[layer].permute(0, 2, 3, 1).flatten())
    return torch.cat(kept)
