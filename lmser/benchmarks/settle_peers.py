"""Settling as it is written in PyTorch without this library: what `settle` competes with.

`paper_sweep` is 004's: every drive is computed anew at every update. `cached_sweep` computes each drive once a sweep, as
the up-down order allows. Both are looped and stopped alike, as they are or through `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


def _up(below: Tensor, weight: Tensor, pool: int, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(F.avg_pool2d(below, pool) if pool > 1 else below, weight, bias, 1, weight.shape[2] // 2)


def _down(above: Tensor, weight: Tensor, pool: int, bias: Tensor | None = None) -> Tensor:
    drive = F.conv_transpose2d(above, weight, bias, 1, weight.shape[2] // 2)
    return F.interpolate(drive, scale_factor=pool) if pool > 1 else drive


def _change(now: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [(a.detach() - b.detach()).abs().amax() for a, b in zip(now, before, strict=True)]
    ).amax()


def update(
    below: Tensor,
    above: Tensor,
    weight_below: Tensor,
    weight_above: Tensor,
    bias: Tensor,
    before: Tensor,
    window: int,
) -> tuple[Tensor, Tensor]:
    """(state, change): one layer from both neighbours, where that above is `window` times as small."""
    total = _up(below, weight_below, 1, bias) + _down(above, weight_above, window)
    h = torch.tanh(total)
    return h, (h.detach() - before).abs().amax()


@dataclass(frozen=True)
class Net:
    """What a loop settles: a symmetric network, its evidence, when to stop."""

    states: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    evidence: Tensor
    mask: Tensor
    pools: tuple[int, ...]
    theta: float
    max_steps: int

    def to(self, dtype: torch.dtype, layout: torch.memory_format) -> Net:
        def turn(tensor: Tensor) -> Tensor:
            moved = tensor.detach().to(dtype)
            return moved.contiguous(memory_format=layout) if moved.dim() == 4 else moved

        return replace(
            self,
            states=[turn(t) for t in self.states],
            weights=[turn(t).clone(memory_format=torch.preserve_format) for t in self.weights],
            biases=[turn(t).clone() for t in self.biases],
            evidence=turn(self.evidence),
            mask=self.mask.contiguous(memory_format=layout),
        )


Drives = list[Tensor | None]


def paper_updates(net: Net, h: list[Tensor], above: Drives) -> tuple[list[Tensor], Drives, Tensor]:
    """(states, drives to remember: none, readout): every drive anew at every update."""
    h, top = list(h), len(net.weights)
    readout = h[0]
    for layer in (*range(1, top + 1), *range(top - 1, -1, -1)):
        total = net.biases[layer].view(1, -1, 1, 1)
        if layer > 0:
            total = total + _up(h[layer - 1], net.weights[layer - 1], net.pools[layer - 1])
        if layer < top:
            total = total + _down(h[layer + 1], net.weights[layer], net.pools[layer])
        h[layer] = torch.tanh(total)
        if layer == 0:
            readout = h[0]
            h[0] = torch.where(net.mask, net.evidence, readout)
    return h, above, readout


def cached_updates(net: Net, h: list[Tensor], above: Drives) -> tuple[list[Tensor], Drives, Tensor]:
    """The same with each drive computed once; the hidden states start at zero: no drive from above at first."""
    h, top, above = list(h), len(net.weights), list(above)
    below: Drives = [None] * (top + 1)
    for layer in range(1, top + 1):
        y = _up(h[layer - 1], net.weights[layer - 1], net.pools[layer - 1], net.biases[layer])
        u = above[layer]
        below[layer] = y
        h[layer] = torch.tanh(y if u is None else y + u)
    readout = h[0]
    for layer in range(top - 1, -1, -1):
        u = _down(h[layer + 1], net.weights[layer], net.pools[layer], net.biases[0] if layer == 0 else None)
        y_or_none = below[layer]
        above[layer] = u
        h[layer] = torch.tanh(u if y_or_none is None else y_or_none + u)
        if layer == 0:
            readout = h[0]
            h[0] = torch.where(net.mask, net.evidence, readout)
    return h, above, readout


def paper_sweep(net: Net, h: list[Tensor], above: Drives) -> tuple[list[Tensor], Drives, Tensor, Tensor]:
    """`paper_updates`, and the largest change."""
    after, above, readout = paper_updates(net, h, above)
    return after, above, readout, _change(after, h)


def cached_sweep(net: Net, h: list[Tensor], above: Drives) -> tuple[list[Tensor], Drives, Tensor, Tensor]:
    """`cached_updates`, and the largest change."""
    after, above, readout = cached_updates(net, h, above)
    return after, above, readout, _change(after, h)


def loop(
    sweep: Callable[..., tuple[list[Tensor], Drives, Tensor, Tensor]], net: Net
) -> tuple[list[Tensor], Tensor]:
    """(last states, readouts of every sweep)."""
    h = [torch.where(net.mask, net.evidence, net.states[0]), *net.states[1:]]
    above: Drives = [None] * len(h)
    seen = []
    for _ in range(net.max_steps):
        h, above, readout, change = sweep(net, h, above)
        seen.append(readout)
        if bool(change < net.theta):
            break
    return h, torch.stack(seen)
