"""One workload: every entrant checked against float64, then timed in alternation; what was asked, and whether it is met."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from bench.gpu_clock import Clock, calls_for
from bench.gpu_entrants import Ask, Entrant, Place, Step, Workload
from bench.gpu_record import precision
from lmser.contest import Timing, relative_error

MB = 1e6
PEERS = ("eager", "compiled")


@dataclass
class CompileBudget:
    """Seconds that `torch.compile` may take in all, of which `kept` are for the default mode of later workloads; what
    comes after is said not to have run."""

    left: float = math.inf
    kept: float = 0.0

    def allows(self, mode: str) -> bool:
        """Whether there is time to compile once more."""
        return self.left > (0.0 if mode == "default" else self.kept)


@dataclass
class Result:
    """Of one entrant. Without `seconds` it has no speed, and `problem` says why."""

    name: str
    group: str
    captured: bool
    error: float | None = None
    peak_mb: float | None = None
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        del found["seconds"]
        if self.seconds:
            timing = Timing(self.name, tuple(self.seconds), self.error or 0.0)
            found |= {"ms": 1e3 * timing.median, "spread": timing.spread}
        return found


def measure(
    work: Workload,
    kind: str,
    clock: Clock,
    rounds: int = 11,
    budget: CompileBudget | None = None,
    copy_bandwidth: float | None = None,
) -> dict[str, Any]:
    """A row of the table."""
    budget = CompileBudget() if budget is None else budget
    place = Place(clock.device, kind)
    torch._dynamo.reset()  # what earlier workloads compiled is not used again
    # Of float64 one call is made: trying every algorithm for it would take seconds.
    torch.backends.cudnn.benchmark = False
    with precision("ieee"):
        wanted = [t.detach().double() for t in work.oracle.make(Place(clock.device, "float64"))()]
    torch.backends.cudnn.benchmark = True
    results: list[Result] = []
    steps: list[tuple[Result, Step, int]] = []
    with precision(place.products):
        for entrant in work.entrants:
            if entrant.only_cuda and clock.device != "cuda":
                continue
            results += _prepare(entrant, place, clock, wanted, budget, steps)
        _check(results, work, kind)
        _time(steps, rounds, clock)
    del steps, wanted
    gc.collect()
    if clock.device == "cuda":
        torch.cuda.empty_cache()
    row = {"workload": work.name, "kind": kind, "entrants": [r.as_json() for r in results]}
    return row | _ratios(work, place, results) | {
        "asks": [_answer(ask, work, place, results, copy_bandwidth) for ask in work.asks]
    }  # fmt: skip


def _time(steps: Sequence[tuple[Result, Step, int]], rounds: int, clock: Clock) -> None:
    """Rounds of all that have no problem, one after another."""
    for _ in range(rounds):
        for result, step, calls in steps:
            if result.problem is None:
                try:
                    result.seconds.append(clock.seconds(step, calls))
                except Exception as problem:  # what the others did until then is kept
                    result.problem = _line(problem)
                    result.seconds.clear()


def _prepare(
    entrant: Entrant, place: Place, clock: Clock, wanted: Sequence[Tensor], budget: CompileBudget,
    steps: list[tuple[Result, Step, int]],
) -> list[Result]:  # fmt: skip
    """The entrant as it is and, if it is to be, captured: called, checked, weighed."""
    plain = Result(entrant.name, entrant.group, False)
    if entrant.mode is not None and not budget.allows(entrant.mode):
        plain.problem = "not run: the time for compiling is spent"
        return [plain]
    start = perf_counter()
    try:
        step = entrant.make(place)
        plain.error = relative_error(step(), wanted)
        step()
        plain.peak_mb = clock.peak(step) / MB
        steps.append((plain, step, calls_for(clock, step)))
    except Exception as problem:  # the other entrants still run
        plain.problem = _line(problem)
        return [plain]
    finally:
        if entrant.mode is not None:
            budget.left -= perf_counter() - start
    if not entrant.captured:
        return [plain]
    graphed = Result(f"{entrant.name}, CUDA graph", entrant.group, True)
    try:
        replay, kept = clock.captured(step)
        graphed.error = relative_error(replay(), wanted)
        graphed.peak_mb = kept / MB
        steps.append((graphed, replay, calls_for(clock, replay)))
    except Exception as problem:
        graphed.problem = _line(problem)
    return [plain, graphed]


def _line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]


def _check(results: Sequence[Result], work: Workload, kind: str) -> None:
    """A speed whose result is wrong is not measured. Where eager PyTorch itself is far off, twice that is allowed."""
    eager = next(r for r in results if r.name == work.oracle.name and not r.captured)
    allowed = work.tolerance[kind]
    if eager.error is not None and eager.error < 10 * allowed:
        allowed = max(allowed, 2 * eager.error)
    for result in results:
        if result.problem is None and not (result.error is not None and result.error < allowed):
            result.problem = f"off by {result.error:.1e} from float64, more than {allowed:.1e}"


def best(results: Sequence[Result], group: str) -> Result | None:
    """The fastest of a group: "ours", "eager" (as it is), "compiled" (as it is or captured), "graphed" (of others)."""
    chosen = [
        r
        for r in results
        if r.seconds
        and {
            "ours": r.group == "ours",
            "eager": r.group == "eager" and not r.captured,
            "compiled": r.group == "compiled",
            "graphed": r.group in PEERS and r.captured,
        }[group]
    ]
    return min(chosen, key=lambda r: r.median, default=None)


def _ratios(work: Workload, place: Place, results: Sequence[Result]) -> dict[str, Any]:
    ours = best(results, "ours")
    found: dict[str, Any] = {"ours_ms": None if ours is None else 1e3 * ours.median, "ratios": {}}
    if ours is None:
        return found
    plain = [r for r in results if r.group == "ours" and not r.captured and r.seconds]
    for group in ("eager", "compiled", "graphed"):
        other = best(results, group)
        if other is not None:
            as_called = other.median / plain[0].median if plain else None
            found["ratios"][group] = {
                "of": other.name, "ratio": other.median / ours.median, "without_graph": as_called,
            }  # fmt: skip
    # Without graphs, which keep what they need.
    others = [r.peak_mb for r in results if r.group in PEERS and not r.captured and r.peak_mb]
    if plain and plain[0].peak_mb is not None and others:
        found["ratios"]["memory"] = {"of": "least of the others", "ratio": plain[0].peak_mb / min(others)}
    if work.frames > 1:
        found["ms_per_frame"] = 1e3 * ours.median / work.frames
    if work.streamed:
        found["gb_per_second"] = work.streamed * place.dtype.itemsize / ours.median / 1e9
    return found


def _answer(
    ask: Ask, work: Workload, place: Place, results: Sequence[Result], copy_bandwidth: float | None
) -> dict[str, Any]:
    """What came of an ask; `met` is None where it could not be told."""
    numbers = _ratios(work, place, results)
    answer: dict[str, Any] = {"against": ask.against, "asked": ask.least, "found": None, "met": None}
    if ask.against == "ms per frame":
        found = numbers.get("ms_per_frame")
        return answer | ({} if found is None else {"found": found, "met": found <= ask.least})
    if ask.against == "copy":
        rate = numbers.get("gb_per_second")
        found = None if rate is None or not copy_bandwidth else rate * 1e9 / copy_bandwidth
        return answer | ({} if found is None else {"found": found, "met": found >= ask.least})
    group = "graphed" if ask.against == "graphed-compiled" else ask.against
    ratio = numbers["ratios"].get(group)
    if ratio is None:
        return answer
    met = ratio["ratio"] <= ask.least if group == "memory" else ratio["ratio"] >= ask.least
    return answer | {"found": ratio["ratio"], "of": ratio["of"], "met": met}


def grid(rows: Sequence[dict[str, Any]], expected: int) -> dict[str, Any] | None:
    """The single layers together: the geometric mean of their ratios to the best eager line, and the lowest.

    `met` is None as long as there are fewer than the `expected` ones.

    "as called" compares calls without a graph, the host's work included; "captured" both as CUDA graphs, the kernels.
    """
    found = {}
    for way, group, figure in (("as called", "eager", "without_graph"), ("captured", "graphed", "ratio")):
        ratios = {
            f"{row['workload']}, {row['kind']}": row["ratios"][group][figure]
            for row in rows
            if row["workload"].startswith("layer") and group in row.get("ratios", {})
        }
        if not ratios:
            continue
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        lowest = min(ratios, key=lambda name: ratios[name])
        found[way] = {
            "layers": len(ratios), "of": expected, "geometric_mean": mean, "lowest": ratios[lowest],
            "lowest_of": lowest, "asked": [1.8, 0.95],
            "met": (mean >= 1.8 and ratios[lowest] >= 0.95) if len(ratios) >= expected else None,
        }  # fmt: skip
    return found or None
