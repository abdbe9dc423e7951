"""``lmser bench``: every workload, contenders alternating, verified against float64 before any time is told."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lmser._atomic import atomic_write
from lmser.benchmarks.workload import Workload
from lmser.contest import Contender, Timing, contest
from lmser.experiments.provenance import machine
from lmser.training.memory import PeakMemory
from lmser_kernels import _library

__all__ = ["HEAD", "TURN_SECONDS", "chosen", "line", "run", "summary", "write"]

FUSED = "fused"
HEAD = (
    f"{'workload':74} {'fused ms':>9} {'± %':>5} {'best ms':>9} {'ratio':>6} {'± %':>5} {'GFLOP/s':>8} {'peak %':>6} "
    f"{'MB':>6} {'other':>6} {'error':>8}  best other"
)
_PROBE_SECONDS = 1e-3  # of the FMA peak, after every round of a workload
TURN_SECONDS = 1e-3  # of a contender, in every round


def chosen(works: Sequence[Workload], only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Workload]:
    """The workloads whose name contains one of `only` (all where there is none) and none of `skip`.

    Raises:
        ValueError: none is left.
    """
    left = [
        work
        for work in works
        if (not only or any(part in work.name for part in only))
        and not any(part in work.name for part in skip)
    ]
    if not left:
        raise ValueError(
            f"no workload is left by --only {', '.join(only) or '(all)'} and --skip {', '.join(skip) or '(none)'}; "
            "--list names them"
        )
    return left


def run(
    works: Sequence[Workload],
    *,
    compiled: bool = True,
    repeats: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure `works` one after another on this process's threads.

    Args:
        compiled: let `torch.compile` compete where a workload has it.
        repeats: rounds of every workload; None: its own number.
        say: gets each line of the table.
        keep: gets the result so far after each workload.

    Returns:
        Plain values: the machine, and of each workload times, ratio, rates, peak memory and error.

    Raises:
        RuntimeError: the compiled kernels are not there.
        ArithmeticError: a contender's result is not float64's; nothing is told of that workload.
    """
    library = _library.module
    if library is None:
        raise RuntimeError(f"there is nothing to measure: {_library.error}")
    threads = torch.get_num_threads()
    facts = machine()
    result: dict[str, Any] = {
        "processor": facts["processor"],
        "threads": threads,
        "isa": library.cpu_info()["isa"],
        "torch": facts["torch"],
        "python": facts["python"],
        "lmser": facts["lmser"],
        "commit": facts.get("commit"),
        "copy_bandwidth_gbs": library.measure_copy_bandwidth(0.5, threads),
        "rows": [],
    }
    say(HEAD)
    for work in works:
        row = _row(work, compiled, work.repeats if repeats is None else repeats)
        result["rows"].append(row)
        say(line(row))
        keep(result)
    return result


def _row(work: Workload, compiled: bool, repeats: int) -> dict[str, Any]:
    contenders, wanted = work.build()
    contenders = [c for c in contenders if compiled or "compiled" not in c.name]
    peaks: list[float] = []

    library = _library.module
    assert library is not None  # `run` has asked

    def probe() -> None:
        peaks.append(library.measure_fma_peak(_PROBE_SECONDS, torch.get_num_threads()))

    timings = contest(
        contenders,
        wanted,
        tolerance=work.tolerance,
        repeats=repeats,
        warm_up=2,
        turn_seconds=TURN_SECONDS,
        after_round=probe,
    )
    memory = {c.name: _peak_mb(c) for c in contenders}
    fused = timings[FUSED]
    best = min((t for name, t in timings.items() if name != FUSED), key=lambda t: t.median)
    others = [mb for name, mb in memory.items() if name != FUSED and mb is not None]
    return {
        "workload": work.name,
        "flops": work.flops,
        "bytes": work.bytes,
        "fused_ms": fused.median * 1e3,
        "spread": fused.spread,
        "best": best.name,
        "best_ms": best.median * 1e3,
        "ratio": best.median / fused.median,
        "ratio_spread": _ratio_spread(best, fused),
        "gflops": work.flops / fused.median / 1e9,
        "gbs": work.bytes / fused.median / 1e9,
        # As the contenders: the median of rounds that alternate with theirs. A neighbour who takes half a core takes it
        # from all of them; the best round is what the processor can do alone.
        "fma_peak_gflops": statistics.median(peaks),
        "fma_peak_best_gflops": max(peaks),
        "peak_mb": memory[FUSED],
        "least_other_mb": min(others) if others else None,
        "error": fused.error,
        "all_ms": {name: t.median * 1e3 for name, t in timings.items()},
        "all_mb": memory,
    }


def _ratio_spread(other: Timing, fused: Timing) -> float:
    """Distance between the quartiles of the rounds' own ratios over their median: neighbours in time share its noise."""
    ratios = [a / b for a, b in zip(other.seconds, fused.seconds, strict=True)]
    if len(ratios) < 4:
        return (max(ratios) - min(ratios)) / statistics.median(ratios)
    first, middle, third = statistics.quantiles(ratios, n=4)
    return (third - first) / middle


def _peak_mb(contender: Contender) -> float | None:
    """Most memory in use during one call, above what was in use before it; None where the system does not tell."""
    peak = PeakMemory(torch.device("cpu"))
    kept = (contender.step or contender.run)()
    found = peak.bytes()
    del kept
    return None if found is None else found / 1e6


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    memory = [f"{mb:6.0f}" if mb is not None else "     -" for mb in (row["peak_mb"], row["least_other_mb"])]
    return (
        f"{row['workload']:74} {row['fused_ms']:9.3f} {100 * row['spread']:5.1f} {row['best_ms']:9.3f} "
        f"{row['ratio']:6.2f} {100 * row['ratio_spread']:5.1f} {row['gflops']:8.1f} "
        f"{100 * row['gflops'] / row['fma_peak_gflops']:6.0f} {' '.join(memory)} {row['error']:8.1e}  {row['best']}"
    )


def summary(result: dict[str, Any]) -> str | None:
    """The single layers together, if there are any."""
    ratios = {row["workload"]: row["ratio"] for row in result["rows"] if row["workload"].startswith("layer")}
    if not ratios:
        return None
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    lowest = min(ratios, key=lambda name: ratios[name])
    return f"{len(ratios)} single layers: geometric mean {mean:.2f}, lowest {ratios[lowest]:.2f} ({lowest})"


def write(result: dict[str, Any], path: Path) -> None:
    """The result as JSON, in place of the file whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(result, file, indent=1)
