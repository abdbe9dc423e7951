"""Which drives a sweep computes anew: csrc/cpu/settle_schedule.h for launches that are made without looking at values.

A drive stays what it is until the state that it is computed from is updated again. So in an upward pass the drive from
above is the one of the last downward pass, and the other way round. None of this is written down for an order: it
follows from counting the versions of every state.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from lmser_kernels.settle.schedule import sweep_order

_SWEEPS = 4  # two to come into the rhythm, one that is taken, one that tells what it is read for


@dataclass
class Update:
    """One update of a sweep.

    `new_up`, `new_down`: the drive from below, from above, is computed now; `keep_up`, `keep_down`: a later update uses
    it again; `read_up`: the layer above computes its drive from this state; `changes` is False for a visible layer that
    is only read out; `last`: of this layer in its sweep.
    """

    layer: int
    new_up: bool = False
    new_down: bool = False
    keep_up: bool = False
    keep_down: bool = False
    read_up: bool = False
    changes: bool = True
    last: bool = False


@dataclass(frozen=True)
class Schedule:
    """The updates of the first sweep, and those of every later one."""

    first: tuple[Update, ...]
    later: tuple[Update, ...]

    def sweep(self, t: int) -> tuple[Update, ...]:
        return self.later if t else self.first


@functools.lru_cache(maxsize=64)
def schedule(layers: int, order: str, held: bool = False) -> Schedule:
    """`held`: the visible layer is known to be wholly held by evidence, so that it never changes."""
    made: list[tuple[int, Update]] = []
    version = [0] * layers
    # of a layer: which version of its neighbour its drive was computed from, and by which update
    up_from, down_from = [-1] * layers, [-1] * layers
    up_user: list[Update | None] = [None] * layers
    down_user: list[Update | None] = [None] * layers
    writer: list[Update | None] = [None] * layers
    for t in range(_SWEEPS):
        for layer in sweep_order(layers, order):
            u = Update(layer, changes=not (layer == 0 and held))
            has_up, has_down = layer > 0, layer + 1 < layers
            u.new_up = has_up and up_from[layer] != version[layer - 1]
            u.new_down = has_down and (down_from[layer] != version[layer + 1] or not u.changes)
            if not (u.new_up or u.new_down):
                continue
            if u.new_up:
                up_from[layer], up_user[layer] = version[layer - 1], u
                below = writer[layer - 1]
                if below is not None:
                    below.read_up = True
            elif has_up:
                computed = up_user[layer]
                assert computed is not None
                computed.keep_up = True
            if u.new_down:
                down_from[layer], down_user[layer] = version[layer + 1], u
            elif has_down:
                computed = down_user[layer]
                assert computed is not None
                computed.keep_down = True
            if u.changes:
                version[layer] += 1
                writer[layer] = u
            made.append((t, u))
    for i, (t, u) in enumerate(made):
        u.last = not any(s == t and v.layer == u.layer for s, v in made[i + 1 :])
    return Schedule(tuple(u for t, u in made if t == 0), tuple(u for t, u in made if t == 2))


@dataclass(frozen=True)
class Places:
    """Where the kept states of hidden layers lie: sweep after sweep, update after update, without gaps."""

    first: tuple[int, ...]
    later: tuple[int, ...]
    first_values: int
    later_values: int

    @classmethod
    def of(cls, plan: Schedule, values: list[int]) -> Places:
        """`values`: of each layer's state. The visible states are told by the readouts."""

        def lay(updates: tuple[Update, ...]) -> tuple[tuple[int, ...], int]:
            places, end = [], 0
            for u in updates:
                places.append(end)
                end += values[u.layer] if u.layer else 0
            return tuple(places), end

        (first, first_values), (later, later_values) = lay(plan.first), lay(plan.later)
        return cls(first, later, first_values, later_values)

    def at(self, t: int, update: int) -> int:
        if t == 0:
            return self.first[update]
        return self.first_values + (t - 1) * self.later_values + self.later[update]

    def values(self, sweeps: int) -> int:
        return self.first_values + (sweeps - 1) * self.later_values if sweeps else 0
