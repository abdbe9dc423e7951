"""The sweeps of a solve as launches: which buffer each update reads and writes.

A layer's state stays in one place: an update reads its neighbours and, to compare, its own old value, which it then
overwrites. So whenever the solve stops, the states are where they belong, and nobody has to know when that was. A layer
that is updated twice in a sweep has its first result in a second place. With a trajectory every update has a place of
its own there, and the readouts are the visible states of a network that nothing holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu.launch import launch
from lmser_kernels.settle.triton_network import Layer, Network, dense
from lmser_kernels.settle.triton_schedule import Places, Schedule, Update, schedule
from lmser_kernels.settle.triton_small import all_held_kernel, hold_kernel
from lmser_kernels.settle.triton_step import bits, update
from lmser_kernels.settle.triton_stop import LOOK_EVERY, capturing, may_look, outcome, swept
from lmser_kernels.tied_conv.triton_windows import sum_windows

Maybe = Tensor | None
_BLOCK = 1024


@dataclass(frozen=True)
class How:
    """How a solve is made, and what it keeps: `half` keeps the trajectory in bfloat16."""

    activation: str
    slope: float
    order: str
    theta: float
    max_steps: int
    per_sample: bool
    keep: bool
    half: bool
    readouts: bool

    @property
    def every(self) -> bool:
        """Whether the readouts of every sweep are kept."""
        return self.keep or self.readouts


class Growing:
    """A vector that grows at its end. What was taken of it stays where it was; `whole` is all of it."""

    def __init__(self, like: Tensor, most: int, first: int, dtype: torch.dtype | None = None) -> None:
        self._most = most
        self._memory = like.new_empty(min(most, first), dtype=dtype or like.dtype)

    def part(self, start: int, values: int) -> Tensor:
        """Values `start` and on; there must be no gap before them."""
        end = start + values
        if end > self._memory.numel():
            larger = self._memory.new_empty(min(self._most, max(end, 2 * self._memory.numel())))
            larger[:start].copy_(self._memory[:start])
            self._memory = larger
        return self._memory[start:end]

    def whole(self, values: int) -> Tensor:
        """The first `values`; copied where that frees a good deal of memory."""
        used = self._memory[:values]
        return used.clone() if 8 * values < 7 * self._memory.numel() else used


class Held:
    """What holds the visible layer, and, on the device, whether it holds all of it."""

    def __init__(self, evidence: Maybe, hold: Maybe) -> None:
        if (evidence is None) != (hold is None):
            raise ValueError("evidence and hold must be given together")
        self.evidence: Maybe = None
        self.hold: Maybe = None
        self.all: Maybe = None
        if evidence is None or hold is None:
            return
        self.evidence, self.hold = dense(evidence), dense(hold)
        self.all = hold.new_ones((), dtype=torch.int32)
        values = hold.numel()
        launch(
            all_held_kernel,
            (triton.cdiv(values, _BLOCK),),
            flag=self.all,
            hold=self.hold,
            values=values,
            BLOCK=_BLOCK,
        )

    @property
    def any(self) -> bool:
        return self.evidence is not None

    def put_in(self, value: Tensor, state: Tensor) -> Tensor:
        """`state` from what the visible units would take."""
        values = value.numel()
        launch(
            hold_kernel, (triton.cdiv(values, _BLOCK),), h=state, value=value, evidence=self.evidence, hold=self.hold,
            values=values, BLOCK=_BLOCK,
        )  # fmt: skip
        return state


def state_at(part: Tensor, layer: Layer) -> Tensor:
    """A vector as the state of a layer."""
    n, c, h, w = layer.images, layer.channels, layer.height, layer.width
    return part.view(n, h, w, c).permute(0, 3, 1, 2)


class Solve:
    """Sweeps over a network from given states."""

    def __init__(
        self, network: Network, states: Sequence[Tensor], biases: Sequence[Tensor], held: Held, external: Maybe, how: How
    ) -> None:  # fmt: skip
        if how.keep and how.per_sample:
            raise ValueError("per_sample cannot keep a trajectory")
        first = states[0]
        self.look = how.theta > 0 and may_look(first)
        if how.every and how.theta > 0 and capturing(first):
            raise RuntimeError(
                f"settle: how many sweeps are kept is known on the device alone while a CUDA graph is captured; "
                f"expected theta=0, or neither a gradient of the sweeps nor readouts, got theta={how.theta}"
            )
        self.network, self.how, self.held, self.like = network, how, held, first
        self.layers = network.layers
        self.visible = self.layers[0]
        self.biases = [b.contiguous() if b.numel() else None for b in biases]
        self.external = None if external is None else dense(external)
        self.plan: Schedule = schedule(network.top + 1, how.order)
        self.places = Places.of(self.plan, [layer.values for layer in self.layers])
        self.in_trajectory = how.keep and not how.half
        sweeps = min(how.max_steps, 2 * LOOK_EVERY) if self.look else how.max_steps
        self.trajectory = self.seen = None
        if how.keep:
            self.trajectory = Growing(
                first, self.places.values(how.max_steps), self.places.values(sweeps),
                torch.bfloat16 if how.half else None,
            )  # fmt: skip
        if how.every:
            self.seen = Growing(first, how.max_steps * self.visible.values, sweeps * self.visible.values)
        samples = (self.visible.images,) if how.per_sample else ()
        self.changes = first.new_zeros((how.max_steps, *samples))
        self.bits = bits(self.changes)
        self.limit = first.new_full((), how.theta, dtype=torch.float64)
        self._start(states)

    def _start(self, states: Sequence[Tensor]) -> None:
        top = self.network.top
        # In place: what is the caller's is copied.
        self.standing: list[Tensor] = []
        for layer, state in zip(self.layers, states, strict=True):
            visible = layer is self.visible
            if visible and self.held.any:
                self.standing.append(self.held.put_in(dense(state), layer.empty(state)))
            elif self.in_trajectory or (visible and self.how.every):
                self.standing.append(dense(state))
            else:
                self.standing.append(layer.empty(state).copy_(state))
        self.end = list(self.standing)
        self.middle: list[Maybe] = [None] * (top + 1)
        self.pooled: list[Maybe] = [None] * (top + 1)
        self.up_drive: list[Maybe] = [None] * (top + 1)
        self.down_drive: list[Maybe] = [None] * (top + 1)

    def run(self) -> int:
        """Makes the sweeps; returns how many were launched."""
        return swept(self._sweep, self._over, self.how.max_steps, self.look)

    def _over(self, t: int) -> Tensor:
        return (self.changes[t] < self.limit).all()

    def _sweep(self, t: int) -> None:
        before = list(self.standing)
        for i, u in enumerate(self.plan.sweep(t)):
            self._update(t, i, u, before[u.layer])

    def _update(self, t: int, i: int, u: Update, before: Tensor) -> None:
        index, layer, how = u.layer, self.layers[u.layer], self.how
        others: dict[str, Maybe] = {"bias": self.biases[index]}
        below = above = None
        if u.new_up:
            below = self._seen_from_above(index - 1)
            others |= self._kept_where_held(t, u)
        elif index > 0:
            others["up_kept"] = self.up_drive[index]
        if u.new_down:
            above = self.standing[index + 1]
        elif index < self.network.top:
            others["down_kept"] = self.down_drive[index]
        if u.keep_down:
            others["down_out"] = self._buffer(self.down_drive, index, layer.pooled)
        if u.read_up and layer.pools:
            others["pooled"] = self._buffer(self.pooled, index, layer.pooled)
        if how.theta > 0 and t > 0:
            others |= {"stop": self.changes[t - 1], "limit": self.limit}
        if u.last:
            others |= {"previous": before, "change": self.bits[t]}
        h = self._visible(t, others) if index == 0 else self._hidden(t, i, u, others)
        update(
            layer, self.like, h=h, below=below, from_below=self.network.below(index) if u.new_up else None, above=above,
            from_above=self.network.above(index) if u.new_down else None, activation=how.activation, slope=how.slope,
            per_sample=how.per_sample, **others,
        )  # fmt: skip
        state = others["value"] if h is None else h
        assert state is not None
        self.standing[index] = state

    def _kept_where_held(self, t: int, u: Update) -> dict[str, Maybe]:
        """The drive from below, written where it is used again: also where the visible layer is wholly held, which only
        the device knows; then it is that of the first sweep for good."""
        may_be_held = u.layer == 1 and self.held.any
        found: dict[str, Maybe] = {}
        if u.keep_up or (may_be_held and t == 0):
            found["up_out"] = self._buffer(self.up_drive, u.layer, self.layers[u.layer])
        if may_be_held and t > 0:
            found |= {"up_kept": self.up_drive[u.layer], "all_held": self.held.all}
        return found

    def _hidden(self, t: int, i: int, u: Update, others: dict[str, Maybe]) -> Tensor:
        layer = self.layers[u.layer]
        if self.trajectory is not None:
            part = self.trajectory.part(self.places.at(t, i), layer.values)
            if self.in_trajectory:
                return state_at(part, layer)
            others["rounded"] = part
        return self.end[u.layer] if u.last else self._buffer(self.middle, u.layer, layer)

    def _visible(self, t: int, others: dict[str, Maybe]) -> Maybe:
        """Where the visible state goes; None where the readout is it."""
        others["add"] = self.external
        values = self.visible.values
        if self.seen is not None:
            shown = self.seen.part(t * values, values)
            others["value"] = state_at(shown, self.visible)
            if self.how.per_sample and t > 0:
                others["value_before"] = self.seen.part((t - 1) * values, values)
        if not self.held.any:
            return None if self.seen is not None else self.end[0]
        others |= {"evidence": self.held.evidence, "hold": self.held.hold}
        if self.seen is None:
            others["skip"] = self.held.all
        return self.end[0]

    def _seen_from_above(self, layer: int) -> Tensor:
        if not self.layers[layer].pools:
            return self.standing[layer]
        pooled = self.pooled[layer]
        if pooled is None:  # before its first update
            pooled = self.pooled[layer] = sum_windows(
                self.standing[layer], self.layers[layer].window, mean=True
            )
        return pooled

    def _buffer(self, kind: list[Maybe], index: int, layer: Layer) -> Tensor:
        buffer = kind[index]
        if buffer is None:
            buffer = kind[index] = layer.empty(self.like)
        return buffer

    def results(self, made: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """States, readouts, trajectory, steps and change, as the operator returns them."""
        steps, change = outcome(self.changes, None, self.limit, made)
        sweeps = made
        if self.how.every and self.look:
            # The kept results are as many as the sweeps: the one place where the host waits for the solve.
            sweeps = int(steps.max()) if steps.numel() else 1
        readouts = self._readouts(sweeps)
        trajectory = self.like.new_empty(0)
        states = list(self.end)
        if self.in_trajectory:
            assert self.trajectory is not None
            for i, u in enumerate(self.plan.sweep(sweeps - 1)):
                if u.last and u.layer:
                    layer = self.layers[u.layer]
                    part = self.trajectory.part(self.places.at(sweeps - 1, i), layer.values)
                    states[u.layer] = state_at(part.clone(), layer)
        if self.how.every and not self.held.any:
            states[0] = readouts[-1].clone()
        if self.trajectory is not None:
            trajectory = self.trajectory.whole(self.places.values(sweeps))
        return states, readouts, trajectory, steps, change

    def _readouts(self, sweeps: int) -> Tensor:
        layer = self.visible
        n, c, h, w = layer.images, layer.channels, layer.height, layer.width
        if self.seen is not None:
            return self.seen.whole(sweeps * layer.values).view(sweeps, n, h, w, c).permute(0, 1, 4, 2, 3)
        if not self.held.any:
            return self.end[0].clone()[None]
        # Sweeps write states alone; what the units would take at the end is computed once.
        shown = layer.empty(self.like)
        update(
            layer, self.like, value=shown, above=self.standing[1], from_above=self.network.above(0), bias=self.biases[0],
            add=self.external, activation=self.how.activation, slope=self.how.slope,
        )  # fmt: skip
        return shown[None]
