"""``python -m bench.gpu_bench [--only TEXT] [--kinds K …] [--json FILE] [--seconds N]``: the workloads on a GPU.

Contenders share inputs and weights and alternate; each is checked against float64 first, and without that has no speed.
Every row is written when it is done. The last columns are what was asked of it.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import subprocess
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
LONGEST_ROW = 200.0  # seconds: a process that has not made a row by then is at an end
LOST = 75  # exit code: after an error of its kernels a process has no GPU any more


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
    before: dict[str, Any] | None = None,
    longest_row: float | None = None,
) -> dict[str, Any]:
    """Everything, written to `path` after each row; behind the rows of `before`, which a process before this one made.

    A row that takes more than `longest_row` seconds ends the process.
    """
    began = perf_counter()
    if before is None:
        result: dict[str, Any] = facts(clock.device) | {"cuda_operators": sorted(_library.cuda_operators)}
        result["copy_bandwidth"] = copy_bandwidth(clock)
        result["matmul_rates"] = matmul_rates(clock)
        result |= {"rows": [], "grid": None}
        _write(path, result)
    else:
        result = before
    rows: list[dict[str, Any]] = result["rows"]
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
        if place < len(rows):
            continue
        # The default mode is compiled for every workload before another mode is for any.
        default = sum(e.mode == "default" for later, _ in todo[place + 1 :] for e in later.entrants)
        budget.kept = DEFAULT_MODE * default
        if perf_counter() - began > seconds:
            rows.append({"workload": work.name, "kind": kind, "problem": "not reached: the time is up"})
        else:
            result["running"] = {"workload": work.name, "kind": kind}
            _write(path, result)
            if longest_row is not None:
                faulthandler.dump_traceback_later(longest_row, exit=True)
            try:
                rows.append(measure(work, kind, clock, rounds, budget, result["copy_bandwidth"]))
            except Exception as problem:  # the others still run
                said = " ".join(str(problem).split())[:300]
                rows.append(
                    {"workload": work.name, "kind": kind, "problem": f"{type(problem).__name__}: {said}"}
                )
            faulthandler.cancel_dump_traceback_later()
        result["grid"] = grid(rows, sum(work.name.startswith("layer") for work, _ in todo))
        result["seconds"] = perf_counter() - began
        result["compile_seconds_left"] = budget.left if budget.left < float("inf") else None
        _write(path, result)
        print(table(rows[-1]), flush=True)
        if _lost(clock):
            print("the GPU is lost to this process", flush=True)
            sys.exit(LOST)
    result.pop("running", None)
    result["complete"] = True
    _write(path, result)
    return result


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        with atomic_write(path, "w") as file:
            json.dump(result, file, indent=1, ensure_ascii=False)


def _lost(clock: Clock) -> bool:
    """Whether an error of a kernel, an illegal access say, has ended this process's use of the GPU."""
    if clock.device == "cuda":
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").item()
        except RuntimeError:
            return True
    return False


def in_turns(arguments: Sequence[str], path: Path, seconds: float, compile_seconds: float) -> int:
    """One process after the other, each behind the row that the one before ended in; returns the last one's code."""
    began, path_is_new = perf_counter(), True
    while True:
        remaining = seconds - (perf_counter() - began)
        code = subprocess.call(
            [sys.executable, "-m", "bench.gpu_bench", *arguments, "--worker", "--seconds", str(remaining),
             "--compile-seconds", str(compile_seconds), *(() if path_is_new else ("--behind",))]
        )  # fmt: skip
        path_is_new = False
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return code
        running = found.pop("running", None)
        if found.get("complete") or running is None:  # done, or ended before its first row
            return code
        if code != LOST:  # it ended within a row
            found["rows"].append({**running, "problem": f"its process ended with {code}"})
        if found.get("compile_seconds_left") is not None:
            compile_seconds = found["compile_seconds_left"]
        _write(path, found)


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
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--behind", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no GPU: torch.cuda.is_available() is False")
    if not _library.available or _library.triton_error is not None:
        parser.error(f"there is nothing to measure: {_library.error or _library.triton_error}")
    if options.json is not None and not options.worker:
        options.json.unlink(missing_ok=True)  # what is found there later is of this run
        given = sys.argv[1:] if arguments is None else arguments
        return in_turns(given, options.json, options.seconds, options.compile_seconds)
    result = run(
        CudaClock(), only=options.only, kinds=options.kinds, path=options.json, seconds=options.seconds,
        compile_seconds=options.compile_seconds, rounds=options.rounds,
        before=json.loads(options.json.read_text(encoding="utf-8")) if options.behind else None,
        # Without a limit to compiling, a sound row may take any time.
        longest_row=LONGEST_ROW if options.worker and options.compile_seconds < float("inf") else None,
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
