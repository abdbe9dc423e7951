"""What `settle` returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Settled(NamedTuple):
    """The states a network came to rest in, and how it got there.

    states:   layers 0 ... L after the last sweep, each of the shape it came with
    readouts: the unclamped visible value of every sweep, ``(T, N, C, H, W)``; of the last one alone,
              ``(1, N, C, H, W)``, under ``backward="implicit"``; None unless asked for
    steps:    sweeps made, int64: 0-d, or ``(N,)`` where every sample stops by itself
    change:   ``max |h(t) - h(t-1)|`` over all layers at the last sweep: 0-d, or ``(N,)`` with it
    """

    states: tuple[Tensor, ...]
    readouts: Tensor | None
    steps: Tensor
    change: Tensor
