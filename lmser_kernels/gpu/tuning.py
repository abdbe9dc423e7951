"""Finding the fastest tiles by measurement, when asked: `tune(step)`.

The step runs once for every tile that its problems may take, all problems trying their next tile in the same run, and
each launch is timed by itself with CUDA events behind a pause that lets the host run ahead. The winners are stored in
the user's cache directory (`tile_table.cache_file`) and taken by this and later processes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from lmser_kernels.gpu import tile_table, tiles
from lmser_kernels.gpu.launch import watching
from lmser_kernels.gpu.tiles import Problem, Tile

__all__ = ["Measured", "Stopwatch", "by_bucket", "tune"]

# What a tile that does not fit the GPU makes Triton raise.
_TOO_LARGE = (OutOfResources, PTXASError, CompilationError)
_PAUSE_CYCLES = 20_000_000  # about 10 ms: the host has launched much of a step before the GPU begins it
_WORTH = 0.98  # of the predicted tile's time, for another to take its place
_SAME = 2e-2  # relative difference of results: tiles change the order of sums, and sums of bfloat16 with it


class Stopwatch(Protocol):
    """Times launches on the device."""

    def begin(self) -> None:
        """A run begins."""

    def around(self) -> AbstractContextManager[None]:
        """Times what is launched inside."""

    def seconds(self) -> list[float]:
        """The times since `begin`, in order."""


@dataclass(frozen=True)
class Measured:
    """Median seconds of each tile that a problem could take; `before` is the tile that it took untuned."""

    problem: Problem
    before: Tile
    seconds: Mapping[Tile, float]

    @property
    def best(self) -> Tile:
        """The fastest, unless the one before is as fast within measurement."""
        fastest = min(self.seconds, key=lambda tile: self.seconds[tile])
        slow = self.seconds.get(self.before, math.inf)
        return fastest if self.seconds[fastest] < _WORTH * slow else self.before


class _Events:
    """The stopwatch of a GPU."""

    def __init__(self) -> None:
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        torch.cuda.synchronize()
        self._pairs.clear()
        torch.cuda._sleep(_PAUSE_CYCLES)

    @contextmanager
    def around(self) -> Iterator[None]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        end.record()
        self._pairs.append((start, end))

    def seconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [1e-3 * start.elapsed_time(end) for start, end in self._pairs]


def tune(
    step: Callable[[], Any],
    *,
    repeats: int = 5,
    store: bool = True,
    same: float = _SAME,
    stopwatch: Stopwatch | None = None,
) -> list[Measured]:
    """Measure every tile of every matrix product that `step()` launches, and take the fastest from now on.

    Args:
        step: what is tuned, on the shapes it will be used with (`lambda: model.loss(x).backward()`); called some
            hundred times, so it must not change what it computes.
        repeats: measurements of each tile, of which the median counts.
        store: False measures only.
        same: the relative difference of the step's results with the winners that is put down to rounding.
        stopwatch: None is CUDA events.

    Returns:
        What was measured, a problem each.

    Raises:
        RuntimeError: there is no GPU, or its stream is being captured.
        ArithmeticError: with the winners the step's results are others; nothing is stored.
    """
    if stopwatch is None:
        if not torch.cuda.is_available():
            raise RuntimeError("tune measures on a GPU: torch.cuda.is_available() is False")
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("tune measures: it cannot run while a CUDA graph is captured")
        stopwatch = _Events()
    # Asked for now: a user without a home learns it before minutes of measuring.
    path = tile_table.cache_file(torch.cuda.get_device_name()) if store else None
    run = _Run(step, stopwatch)
    wanted = run.plain({})
    before = dict(run.taken)
    seconds: dict[Problem, dict[Tile, float]] = {problem: {} for problem in before}
    choices = {problem: tiles.candidates(problem) for problem in before}
    for place in range(max(map(len, choices.values()), default=0)):
        trial = {problem: tried[place] for problem, tried in choices.items() if place < len(tried)}
        times = run.timed(trial, repeats)
        for problem, tile in trial.items():  # without those that did not fit
            seconds[problem][tile] = statistics.median(times[problem])
    # A launch of two problems is the second's; of the first nothing is known.
    found = [
        Measured(problem, before[problem], s) for problem, s in seconds.items() if s and min(s.values()) > 0
    ]
    winners = {m.problem: m.best for m in found}
    _same(run.plain(winners), wanted, same)
    if path is not None and found:
        table = tile_table.read(path) if path.exists() else {}
        table.update(by_bucket(found))
        tile_table.write(path, table, "Tiles measured on this machine by lmser_kernels.gpu.tune")
        tiles.forget()
    return found


def by_bucket(found: Sequence[Measured]) -> dict[tile_table.Key, Tile]:
    """One tile for each entry of a table: of problems that share one, that which is fastest for them all."""
    buckets: dict[tile_table.Key, list[Measured]] = {}
    for measured in found:
        buckets.setdefault(tile_table.key_of(measured.problem), []).append(measured)
    chosen = {}
    for key, sharing in buckets.items():
        if len(sharing) == 1:
            chosen[key] = sharing[0].best
            continue
        common = set.intersection(*(set(m.seconds) for m in sharing))
        if common:
            chosen[key] = min(
                sorted(common, key=repr), key=lambda tile: sum(math.log(m.seconds[tile]) for m in sharing)
            )
    return chosen


class _Run:
    """Runs the step with given tiles, and knows which problem each launch belongs to: the last one chosen for."""

    def __init__(self, step: Callable[[], Any], stopwatch: Stopwatch) -> None:
        self.step, self.stopwatch = step, stopwatch
        self.taken: dict[Problem, Tile] = {}
        self._current: Problem | None = None
        self._owners: list[Problem | None] = []

    def plain(self, trial: Mapping[Problem, Tile]) -> list[Tensor]:
        """The step's results."""
        self.taken = {}
        # Backward passes of CUDA tensors run in threads of autograd's own, which no context variable reaches.
        single = torch.autograd.set_multithreading_enabled(False)
        with single, tiles.choosing(lambda problem: self._choose(problem, trial)):
            return [
                leaf.detach().clone() for leaf in pytree.tree_leaves(self.step()) if isinstance(leaf, Tensor)
            ]

    def timed(self, trial: dict[Problem, Tile], repeats: int) -> dict[Problem, list[float]]:
        """Seconds of each problem's launches in every repeat. What does not fit is taken out of `trial`."""
        while True:
            try:
                self.plain(trial)  # compiles
                break
            except _TOO_LARGE:
                if self._current is None or self._current not in trial:
                    raise
                del trial[self._current]
        times: dict[Problem, list[float]] = {problem: [] for problem in self.taken}
        for _ in range(repeats):
            self._owners = []
            self.stopwatch.begin()
            with watching(self._around):
                self.plain(trial)
            total = dict.fromkeys(times, 0.0)
            for owner, spent in zip(self._owners, self.stopwatch.seconds(), strict=True):
                if owner is not None:
                    total[owner] += spent
            for problem, spent in total.items():
                times[problem].append(spent)
        return times

    def _choose(self, problem: Problem, trial: Mapping[Problem, Tile]) -> Tile:
        self._current = problem
        tile = trial.get(problem) or tiles.untuned(problem)
        self.taken[problem] = tile
        return tile

    def _around(self, arguments: Mapping[str, Any]) -> AbstractContextManager[None]:
        self._owners.append(self._current if _has_part_in(arguments) else None)
        return self.stopwatch.around()


def _has_part_in(arguments: Mapping[str, Any]) -> bool:
    """Whether a launch is of a tile: its products, or what adds up the parts that they were cut into for it."""
    products = any(name.endswith("BLOCK_K") for name in arguments)
    return products or arguments.get("PARTS", 1) > 1 or arguments.get("splits", 1) > 1


def _same(found: Sequence[Tensor], wanted: Sequence[Tensor], most: float) -> None:
    for f, w in zip(found, wanted, strict=True):
        if not w.is_floating_point():
            continue
        f, w = f.double().nan_to_num(), w.double().nan_to_num()
        apart = float((f - w).norm() / w.norm().clamp_min(1e-30))
        if apart > most:
            raise ArithmeticError(f"the fastest tiles change the step's results by {apart:.1e} of their size")
