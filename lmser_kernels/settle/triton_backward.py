"""Back through the sweeps, update by update: the launches of the operator `settle_backward`.

Walking back to the update that made version v of h_l, every drive computed from v has its whole gradient: that of
y_{l+1} and that of u_{l-1}, each of which may have served several updates. One launch carries them to h_l and through
f', and adds what it finds to the gradient of the drive that a later update used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lmser_kernels.settle.triton_gradients import Puller, Wanted, WeightSums
from lmser_kernels.settle.triton_network import Network, dense
from lmser_kernels.settle.triton_schedule import Places, Update, schedule
from lmser_kernels.settle.triton_solve import Held, state_at
from lmser_kernels.tied_conv.triton_windows import sum_windows

Maybe = Tensor | None


@dataclass
class Drives:
    """The gradients of a layer's two drives so far; `windows` is that of the one from above, summed over windows."""

    up: Maybe = None
    down: Maybe = None
    windows: Maybe = None


@dataclass(frozen=True)
class Forward:
    """What the sweeps left behind."""

    states: Sequence[Tensor]  # those they began with
    held: Held
    external: bool
    readouts: Tensor
    trajectory: Tensor
    order: str


class Backward:
    """Gradients of a solve's states and readouts, carried back to what it began with."""

    def __init__(
        self, network: Network, forward: Forward, grad_states: Sequence[Tensor], grad_readouts: Tensor, want: Wanted,
        weights: WeightSums, activation: str, slope: float,
    ) -> None:  # fmt: skip
        self.network, self.forward, self.want, self.weights = network, forward, want, weights
        self.layers, self.held, self.like = network.layers, forward.held, forward.states[0]
        self.sweeps = forward.readouts.shape[0]
        values = [layer.values for layer in self.layers]
        self.plan = schedule(network.top + 1, forward.order)
        self.places = Places.of(self.plan, values)
        expected = self.places.values(self.sweeps)
        if forward.trajectory.numel() != expected:
            raise ValueError(f"trajectory must have {expected} values; got {forward.trajectory.numel()}")
        self.grads = [dense(g) if g.numel() else None for g in grad_states]
        self.grad_readouts = grad_readouts if grad_readouts.numel() else None
        self.puller = Puller(network, activation, slope)
        self.drives = [Drives() for _ in self.layers]
        visible = self.layers[0]
        self.states = [layer.zeros(self.like) if want.states else None for layer in self.layers]
        self.evidence = visible.zeros(self.like) if want.evidence and self.held.any else None
        self.external = visible.zeros(self.like) if want.external and forward.external else None
        self.biases = [
            self.like.new_zeros((self.puller.tiling(i).tiles, layer.channels)) if want.biases else None
            for i, layer in enumerate(self.layers)
        ]

    def run(self) -> list[Tensor]:
        """The gradients in the order of the operator's result."""
        for t in reversed(range(self.sweeps)):
            updates = self.plan.sweep(t)
            for i in reversed(range(len(updates))):
                self._update(t, i, updates[i])
            self.weights.swept()
        for index in range(len(self.layers)):
            self._start(index)
        none = self.like.new_empty(0)
        return [
            *(none.clone() if g is None else g for g in self.states),
            *self.weights.finish(),
            *(none.clone() if b is None else b.sum(0) for b in self.biases),
            none if self.evidence is None else self.evidence,
            none.clone() if self.external is None else self.external,
        ]

    def _update(self, t: int, i: int, u: Update) -> None:
        index, layer, drives = u.layer, self.layers[u.layer], self.drives[u.layer]
        add, self.grads[index] = self.grads[index], None  # that of the final state, taken by its last update
        others: dict[str, Maybe] = {"add": add, "bias_sum": self.biases[index]}
        if index == 0:
            output = dense(self.forward.readouts[t])
            others["inject"] = None if self.grad_readouts is None else dense(self.grad_readouts[t])
            others |= {"hold": self.held.hold, "evidence_sum": self.evidence, "external_sum": self.external}
            if self.evidence is None:
                others["all_held"] = self.held.all
        else:
            at = self.places.at(t, i)
            output = state_at(self.forward.trajectory[at : at + layer.values].to(self.like.dtype), layer)
        above, below = self._take(index, output)
        if above is None and below is None and add is None and others.get("inject") is None:
            return  # nothing flows through this update
        d = layer.empty(self.like)
        more = drives.up if drives.up is not None else drives.down
        if drives.up is not None and drives.down is not None:
            raise AssertionError("both drives of a layer have a gradient from later updates")
        total = None if more is None else layer.empty(self.like)
        reuses_down = drives.down is not None
        windows = layer.pooled.empty(self.like) if u.new_down and layer.pools else None
        self.puller.pull(
            index, below=below, above=above, output=output, result=d, extra=more, total=total, pooled=windows,
            pool_total=reuses_down, **others,
        )  # fmt: skip
        if index > 0:
            drives.up = total if drives.up is not None else d
        if index < self.network.top:
            drives.down = total if reuses_down else d
            drives.windows = windows if layer.pools else drives.down

    def _take(self, index: int, seen: Tensor) -> tuple[Maybe, Maybe]:
        """The gradients of the drives that were computed from layer l's state, (from above, from below), which are then
        done with; `seen` is the state, of the visible layer before evidence."""
        above = below = None
        if index < self.network.top:
            above, self.drives[index + 1].up = self.drives[index + 1].up, None
        if index > 0:
            lower = self.drives[index - 1]
            below, lower.down, lower.windows = lower.windows, None, None
        if self.want.weights and not (above is None and below is None):
            state = seen
            if index == 0 and self.held.any:
                state = self.held.put_in(seen, self.layers[0].empty(seen))
            if above is not None:
                self.weights.up(index, sum_windows(state, self.layers[index].window, mean=True), above)
            if below is not None:
                self.weights.down(index - 1, below, state)
        return above, below

    def _start(self, index: int) -> None:
        """What reaches the state that layer l started from."""
        above, below = self._take(index, dense(self.forward.states[index]))
        evidence = self.evidence if index == 0 else None
        if (self.states[index] is None and evidence is None) or (
            above is None and below is None and self.grads[index] is None
        ):
            return
        self.puller.pull(
            index, below=below, above=above, add=self.grads[index], result=self.states[index], evidence_sum=evidence,
            hold=self.held.hold if index == 0 else None,
        )  # fmt: skip
