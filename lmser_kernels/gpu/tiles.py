"""The tile that a matrix-product kernel takes for a problem: (M, N) of the output, K of the sum.

What was measured on this GPU by `tune` comes first, then what ships measured with this package (tiles.json), then the
model's prediction. No call measures anything unless it was asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from lmser_kernels.gpu import tile_table
from lmser_kernels.gpu.launch import recording_now
from lmser_kernels.gpu.tile_model import Problem, Tile, candidates, predicted

__all__ = ["Problem", "Tile", "candidates", "choose", "choosing", "forget", "predicted", "untuned"]

Chooser = Callable[[Problem], Tile | None]
_chooser: ContextVar[Chooser | None] = ContextVar("lmser_kernels.gpu.tiles.chooser", default=None)


def choose(kernel: str, m: int, n: int, k: int, dtype: torch.dtype, precision: str, arch: int) -> Tile:
    """The tile for `(m, k) @ (k, n)` in `kernel`."""
    chooser = _chooser.get()
    if chooser is not None:
        tile = chooser(Problem(kernel, m, n, k, dtype, precision, arch))
        if tile is not None:
            return tile
    # By plain values: making a problem and its hash takes as long as all the rest of a call.
    return _settled(kernel, m, n, k, dtype, precision, arch, None if recording_now() else _device())


def untuned(problem: Problem) -> Tile:
    """The tile where no `choosing` decides."""
    return _settled(
        problem.kernel, problem.m, problem.n, problem.k, problem.dtype, problem.precision, problem.arch,
        None if recording_now() else _device(),
    )  # fmt: skip


def forget() -> None:
    """Read the measured tables again when they are next asked for."""
    tile_table.forget()
    _settled.cache_clear()


def _device() -> int | None:
    """The GPU in use; None where CUDA is not in use."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


@lru_cache(maxsize=4096)
def _settled(
    kernel: str, m: int, n: int, k: int, dtype: torch.dtype, precision: str, arch: int, device: int | None
) -> Tile:
    problem = Problem(kernel, m, n, k, dtype, precision, arch)
    return tile_table.measured(problem, device) or predicted(problem)


@contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """Inside, `chooser(problem)` decides, where it does not return None."""
    token = _chooser.set(chooser)
    try:
        yield
    finally:
        _chooser.reset(token)
