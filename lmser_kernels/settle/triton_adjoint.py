"""The adjoint of a fixed point, swept as the states were: the launches of the operator `settle_adjoint`.

    a_l = f'(h_l) (g_l + the adjoint drives from below and above)

until the largest change is below `theta` of the largest value. Nothing of the sweeps is kept, neither of the states'
nor of the adjoint's own: each layer's `a` is overwritten in place, and the solve stops on the device as the states' does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmser_kernels.settle.triton_gradients import Puller, Wanted, WeightSums
from lmser_kernels.settle.triton_network import Layer, Network, dense
from lmser_kernels.settle.triton_schedule import Update, schedule
from lmser_kernels.settle.triton_solve import Held
from lmser_kernels.settle.triton_step import bits
from lmser_kernels.settle.triton_stop import may_look, outcome, swept
from lmser_kernels.tied_conv.triton_windows import sum_windows

Maybe = Tensor | None


class Adjoint:
    """The adjoint at the states found; `readout` is the visible value before evidence."""

    def __init__(
        self, network: Network, states: Sequence[Tensor], readout: Tensor, grad_states: Sequence[Tensor],
        grad_readout: Tensor, held: Held, activation: str, slope: float, order: str, theta: float, max_steps: int,
    ) -> None:  # fmt: skip
        self.network, self.layers, self.held, self.like = network, network.layers, held, states[0]
        self.fixed = [dense(h) for h in states]
        self.outputs = [dense(readout), *self.fixed[1:]]
        self.grads = [dense(g) if g.numel() else None for g in grad_states]
        self.inject = dense(grad_readout) if grad_readout.numel() else None
        self.puller = Puller(network, activation, slope)
        self.plan = schedule(network.top + 1, order)
        self.theta, self.max_steps = theta, max_steps
        self.changes, self.largest = (self.like.new_zeros(max_steps) for _ in range(2))
        self.limit = self.like.new_full((), theta, dtype=torch.float64)
        self.end = [layer.zeros(self.like) for layer in self.layers]
        self.standing = list(self.end)
        top = network.top
        self.middle: list[Maybe] = [None] * (top + 1)
        self.pooled: list[Maybe] = [None] * (top + 1)
        self.up_drive: list[Maybe] = [None] * (top + 1)
        self.down_drive: list[Maybe] = [None] * (top + 1)

    def run(self) -> tuple[Tensor, Tensor]:
        """Sweeps; returns how many were made, and the last relative change."""
        made = swept(self._sweep, self._over, self.max_steps, self.theta > 0 and may_look(self.like))
        return outcome(self.changes, self.largest, self.limit, made)

    def _over(self, t: int) -> Tensor:
        largest = self.largest[t]
        return (largest == 0) | (self.changes[t] / largest < self.limit)

    def _sweep(self, t: int) -> None:
        for u in self.plan.sweep(t):
            self._update(t, u)

    def _update(self, t: int, u: Update) -> None:
        index, layer = u.layer, self.layers[u.layer]
        to = self.end[index] if u.last else self._buffer(self.middle, index, layer)
        others: dict[str, Maybe] = {"add": self.grads[index]}
        below = above = None
        if u.new_up:
            below = self._summed(index - 1)
        elif index > 0:
            others["up_kept"] = self.up_drive[index]
        if u.new_down:
            above = self.standing[index + 1]
        elif index < self.network.top:
            others["down_kept"] = self.down_drive[index]
        if u.keep_up:
            others["up_out"] = self._buffer(self.up_drive, index, layer)
        if u.keep_down:
            others["down_out"] = self._buffer(self.down_drive, index, layer.pooled)
        if u.read_up and layer.pools:
            others["pooled"] = self._buffer(self.pooled, index, layer.pooled)
        if index == 0:
            others |= {"hold": self.held.hold, "inject": self.inject, "all_held": self.held.all}
        if t > 0:
            others |= {
                "change_before": self.changes[t - 1],
                "largest_before": self.largest[t - 1],
                "limit": self.limit,
            }
        if u.last:
            others |= {
                "previous": self.end[index],
                "change": bits(self.changes)[t],
                "largest": bits(self.largest)[t],
            }
        self.puller.pull(
            index, below=below, above=above, output=self.outputs[index], result=to, pool_total=False, **others
        )
        self.standing[index] = to

    def _summed(self, index: int) -> Tensor:
        """Layer l's adjoint over windows, as the layer above takes it."""
        if not self.layers[index].pools:
            return self.standing[index]
        pooled = self.pooled[index]
        if pooled is None:  # before its first update
            pooled = self.pooled[index] = sum_windows(
                self.standing[index], self.layers[index].window, mean=False
            )
        return pooled

    def _buffer(self, kind: list[Maybe], index: int, layer: Layer) -> Tensor:
        buffer = kind[index]
        if buffer is None:
            buffer = kind[index] = layer.empty(self.like)
        return buffer

    def gradients(self, want: Wanted, external: bool, weights: WeightSums) -> list[Tensor]:
        """In the order of the operator's result; those of the initial states are zero, if they are asked for."""
        for e in range(self.network.top):
            window = self.layers[e].window
            weights.up(e, sum_windows(self.fixed[e], window, mean=True), self.end[e + 1])
            weights.down(e, sum_windows(self.end[e], window, mean=False), self.fixed[e + 1])
        like, visible = self.like, self.layers[0]
        evidence = like.new_empty(0)
        if want.evidence and self.held.any:
            evidence = visible.zeros(like)
            self.puller.pull(
                0, above=self.end[1], add=self.grads[0], hold=self.held.hold, evidence_sum=evidence
            )
        return [
            *(layer.zeros(like) if want.states else like.new_empty(0) for layer in self.layers),
            *weights.finish(),
            *(a.sum((0, 2, 3)) if want.biases else like.new_empty(0) for a in self.end),
            evidence,
            self.end[0] if want.external and external else like.new_empty(0),
        ]
