"""The words that GPU workloads are written in.

An entrant's `make(place)` prepares its tensors and returns the step that is timed; on a GPU, on a CPU for the tests, or
without memory for what would be launched (`bench.gpu_record`). Every entrant of a workload draws the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float64": torch.float64}
Step = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Place:
    """Where tensors live and of which kind they are: "tf32", "tf32x3" and "ieee" are float32 with such products."""

    device: str
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES.get(self.kind, torch.float32)

    @property
    def products(self) -> str:
        """How float32 products are made in what runs here (see `bench.gpu_record.precision`)."""
        return self.kind if self.kind in ("tf32x3", "ieee") else "tf32"


@dataclass(frozen=True)
class Entrant:
    """`group` is "ours", "eager", "compiled" or "variant", which is measured beside ours and enters no ratio; a captured
    one runs as a CUDA graph as well. `mode` is `torch.compile`'s, of the compiled."""

    name: str
    group: str
    make: Callable[[Place], Step]
    captured: bool = False
    mode: str | None = None
    only_cuda: bool = False


@dataclass(frozen=True)
class Ask:
    """At least `least` times the speed of the best of `against`; of one's own rate where that is a bound."""

    against: str
    least: float


@dataclass(frozen=True)
class Workload:
    """`frames` of one call; `streamed`: the elements that it reads and writes, where it is bound by nothing else."""

    name: str
    entrants: tuple[Entrant, ...]
    kinds: tuple[str, ...] = ("bf16", "tf32")
    asks: tuple[Ask, ...] = ()
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"bf16": 5e-2, "tf32": 5e-3})
    frames: int = 1
    streamed: int = 0

    @property
    def ours(self) -> Entrant:
        return next(e for e in self.entrants if e.group == "ours")

    @property
    def oracle(self) -> Entrant:
        """Whose float64 results are right: the first eager one."""
        return next(e for e in self.entrants if e.group == "eager")
