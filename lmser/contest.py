"""Contenders for one piece of work, verified first, then timed in alternation.

A time alone means nothing on a shared machine: contenders run A B C A B C … in one process on the same inputs, and
medians are compared. No time is returned unless every contender's results agree with float64.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

__all__ = ["Contender", "Timing", "contest", "full_float32", "relative_error"]


@dataclass(frozen=True)
class Contender:
    """`run()` does the work and returns what is to be verified; `step()`, if given, is what is timed instead.

    wanted: float64 results of its own, where contenders do different work; None for the common ones.
    """

    name: str
    run: Callable[[], Sequence[Tensor]]
    step: Callable[[], object] | None = None
    wanted: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds of a call in each timed turn, and the largest relative error of a result against float64."""

    name: str
    seconds: tuple[float, ...]
    error: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles over the median."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / self.median
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return (third - first) / self.median


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest over the tensors of ‖found - wanted‖ / ‖wanted‖, in float64; NaN where anything is."""
    ratios = [
        (f.detach().double() - w.detach().double()).norm() / w.detach().double().norm().clamp_min(1e-300)
        for f, w in zip(found, wanted, strict=True)
    ]
    return float(torch.stack(ratios).max())


def contest(
    contenders: Sequence[Contender],
    wanted: Sequence[Tensor],
    *,
    tolerance: float,
    repeats: int,
    warm_up: int = 1,
    turn_seconds: float = 0.0,
    after_round: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Verify every contender against `wanted` (float64 results) or its own, then time `repeats` rounds of all.

    `warm_up` rounds before them are not counted. A contender's turn is one call, or as many, the same number for all, as
    the fastest of the warm-up needs for `turn_seconds`: a single call of some microseconds tells how fast the other
    contenders' code and data leave the caches, `torch.utils.benchmark` times such calls in blocks as well.
    `after_round` is called after each timed round: what else of the machine is to be known at that time.

    Raises ArithmeticError, and times nothing, where a relative error is not below `tolerance`.
    """
    errors = {}
    for contender in contenders:
        results = wanted if contender.wanted is None else contender.wanted
        errors[contender.name] = error = relative_error(contender.run(), results)
        if not error < tolerance:
            raise ArithmeticError(
                f"{contender.name!r} is off by {error:.1e} from float64, more than {tolerance}: its speed means nothing"
            )
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    fastest, calls = math.inf, 1
    for repeat in range(repeats + warm_up):
        if repeat == warm_up and 0 < fastest < turn_seconds:
            calls = math.ceil(turn_seconds / fastest)
        # Everybody comes first in turn: after a pause, or after somebody with large tensors, the first pays for it.
        first = repeat % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            call = contender.step or contender.run
            start = perf_counter()
            for _ in range(calls):
                call()
            each = (perf_counter() - start) / calls
            if repeat >= warm_up:
                seconds[contender.name].append(each)
            else:
                fastest = min(fastest, each)
        if after_round is not None and repeat >= warm_up:
            after_round()
    return {name: Timing(name, tuple(times), errors[name]) for name, times in seconds.items()}


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """CUDA: no TF32, and each shape's fastest algorithm, which the uncounted round finds."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
        yield
