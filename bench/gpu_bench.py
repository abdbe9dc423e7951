"""``python -m bench.gpu_bench [--only TEXT] [--kinds K …] [--json FILE] [--seconds N]``: the workloads on a GPU.

Contenders share inputs and weights and alternate; each is checked against float64 first, and without that has no speed.
Every row is written when it is done. The last columns are what was asked of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from bench.gpu_clock import Clock, CudaClock
from bench.gpu_contest import CompileBudget, grid, measure
from bench.gpu_facts import copy_bandwidth, facts, matmul_rates
from bench.gpu_workloads import workloads
from lmser._atomic import atomic_write
from lmser_kernels import _library

DEFAULT_MODE = 12.0  # seconds that `torch.compile` is expected to take in its default mode


def table(row: dict[str, Any]) -> str:
    """A row as a line."""
    if "problem" in row:
        return f"{row['workload']:64} {row['kind']:5} {row['problem']}"
    ours = "-" if row["ours_ms"] is None else f"{row['ours_ms']:.3f}"
    ratios = ", ".join(f"{name} {found['ratio']:.2f}" for name, found in row["ratios"].items())
    asks = ", ".join(
        f"{ask['against']} {ask['asked']}: {'?' if ask['met'] is None else 'yes' if ask['met'] else 'NO'}"
        for ask in row["asks"]
    )
    wrong = "; ".join(f"{e['name']}: {e['problem']}" for e in row["entrants"] if e["problem"])
    return f"{row['workload']:64} {row['kind']:5} {ours:>9} ms  {ratios}  [{asks}] {wrong}".rstrip()


def run(
    clock: Clock,
    *,
    only: str = "",
    kinds: Sequence[str] | None = None,
    path: Path | None = None,
    seconds: float = float("inf"),
    compile_seconds: float = float("inf"),
    rounds: int = 11,
) -> dict[str, Any]:
    """Everything, written to `path` after each row."""
    began = perf_counter()
    result: dict[str, Any] = facts(clock.device)
    result["copy_bandwidth"] = copy_bandwidth(clock)
    result["matmul_rates"] = matmul_rates(clock)
    rows: list[dict[str, Any]] = []
    result |= {"rows": rows, "grid": None}
    budget = CompileBudget(compile_seconds)
    # Each capture collects garbage: not through all that is imported.
    gc.collect()
    gc.freeze()
    todo = [
        (work, kind)
        for work in workloads()
        if only in work.name
        for kind in work.kinds
        if kinds is None or kind in kinds
    ]
    for place, (work, kind) in enumerate(todo):
        # The default mode is compiled for every workload before another mode is for any.
        default = sum(e.mode == "default" for later, _ in todo[place + 1 :] for e in later.entrants)
        budget.kept = DEFAULT_MODE * default
        if perf_counter() - began > seconds:
            rows.append({"workload": work.name, "kind": kind, "problem": "not reached: the time is up"})
        else:
            try:
                rows.append(measure(work, kind, clock, rounds, budget, result["copy_bandwidth"]))
            except Exception as problem:  # the others still run
                said = " ".join(str(problem).split())[:300]
                rows.append(
                    {"workload": work.name, "kind": kind, "problem": f"{type(problem).__name__}: {said}"}
                )
        result["grid"] = grid(rows)
        result["seconds"] = perf_counter() - began
        if path is not None:
            with atomic_write(path, "w") as file:
                json.dump(result, file, indent=1, ensure_ascii=False)
        print(table(rows[-1]), flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_bench", description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--kinds", nargs="+", choices=["bf16", "tf32"])
    parser.add_argument("--json", type=Path, help="write results here, row by row")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after this")
    parser.add_argument(
        "--compile-seconds", type=float, default=float("inf"), help="what torch.compile may take"
    )
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no GPU: torch.cuda.is_available() is False")
    if not _library.available or _library.triton_error is not None:
        parser.error(f"there is nothing to measure: {_library.error or _library.triton_error}")
    result = run(
        CudaClock(), only=options.only, kinds=options.kinds, path=options.json, seconds=options.seconds,
        compile_seconds=options.compile_seconds, rounds=options.rounds,
    )  # fmt: skip
    if not result["rows"]:
        parser.error(f"no workload is called anything with {options.only!r}")
    if result["grid"]:
        for way, found in result["grid"].items():
            mean, least = found["geometric_mean"], found["lowest"]
            print(
                f"single layers, {way}: geometric mean {mean:.2f}, lowest {least:.2f} ({found['lowest_of']})"
            )
    return any("problem" in row or _ours_failed(row) for row in result["rows"])


def _ours_failed(row: dict[str, Any]) -> bool:
    return any(e["group"] == "ours" and e["problem"] for e in row["entrants"])


if __name__ == "__main__":
    sys.exit(main())
