"""Whether a network that has not come to rest goes round in a limit cycle, and in how many iterations (004 Sect. 4.3).

A state is a deterministic function of the one before it, so that a state that comes back comes back for ever. From
the states x(T) that settling ends with, sweeps go on one at a time, and the period is the smallest p with

    max |x(T + p) - x(T)| < theta                       over all layers of a sample.

1 is a fixed point. "Comes back" is to theta, as "at rest" is in 004.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["LONGEST", "periods"]

LONGEST = 10
"""The longest period that is looked for: 004 finds 2 to 10."""

States = Sequence[Tensor]


def periods(
    states: States, sweep: Callable[[States], States], theta: float, longest: int = LONGEST
) -> Tensor:
    """The period of each sample, int64 ``(N,)`` on the CPU; 0 where the state does not come back in `longest` sweeps.

    states: of all layers, each ``(N, ...)``.  sweep: ``sweep(states)``, the states one iteration later.
    """
    found = torch.zeros(len(states[0]), dtype=torch.int64)
    later = states
    for period in range(1, longest + 1):
        later = sweep(later)
        back = _distance(later, states) < theta
        found[(found == 0) & back] = period
    return found


def _distance(states: States, others: States) -> Tensor:
    """The largest difference of each sample over all layers, ``(N,)`` on the CPU; NaN where there is one."""
    apart = [(a - b).abs().flatten(1).amax(1) for a, b in zip(states, others, strict=True)]
    return torch.stack(apart).amax(0).cpu()
