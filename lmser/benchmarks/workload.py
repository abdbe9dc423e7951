"""One thing that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lmser.contest import Contender


@dataclass(frozen=True)
class Workload:
    """`build()` gives (contenders, float64 results).

    `flops` of one call are the definition's multiply-adds x 2; `bytes` are what its operations read and write, each
    tensor once an operation.
    """

    name: str
    flops: float
    bytes: float
    build: Callable[[], tuple[list[Contender], list[Tensor]]]
    tolerance: float = 1e-3
    repeats: int = 11
