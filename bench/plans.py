"""``python -m bench.plans``: is the algorithm that the plan takes the fastest there is for a shape?

Every single layer of the benchmarks runs as the plan chooses, by the direct sum with a packed weight, by filtering
wherever the shape allows it (3x3 at stride 2 with its sums in buffers, in registers, and along rows alone) and, if it
has few pixels, with the weight as it lies, in turn and verified against float64. Told are the shapes where another form
is faster than the chosen one by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmser._atomic import atomic_write
from lmser.benchmarks.measure import TURN_SECONDS
from lmser.benchmarks.workloads import Workload, workloads
from lmser.contest import Contender, contest
from lmser.experiments.provenance import machine
from lmser_kernels import _library

CHOSEN = "chosen"
# What is said of minimal filtering, and of weights as they lie.
FORMS = {
    CHOSEN: ("where faster", "where faster"),
    "direct": ("never", "never"),
    "in buffers": ("in buffers", "never"),
    "in registers": ("in registers", "never"),
    "along rows": ("along rows", "never"),
    "as it lies": ("where faster", "where possible"),
}
WRONG = 1.1  # how much slower than another form the chosen one may be


def shapes() -> Iterator[Workload]:
    """The layers in question."""
    for work in workloads():
        if work.name.startswith("layer"):
            yield work


def _as(form: str, run: Callable[[], Any]) -> Callable[[], Any]:
    module = _library.module
    assert module is not None  # `main` has asked

    def call() -> Any:
        filtering, unpacking = FORMS[form]
        before = module.choose_filtering(filtering), module.choose_unpacking(unpacking)
        try:
            return run()
        finally:
            module.choose_filtering(before[0]), module.choose_unpacking(before[1])

    return call


def _row(work: Workload, repeats: int) -> dict[str, Any]:
    contenders, wanted = work.build()
    fused: Contender = next(c for c in contenders if c.name == "fused")
    results: list[Tensor] = wanted
    forms = [replace(fused, name=form, run=_as(form, fused.run), step=None) for form in FORMS]
    timings = contest(
        forms, results, tolerance=work.tolerance, repeats=repeats, warm_up=2, turn_seconds=TURN_SECONDS
    )
    times = {form: timings[form].median * 1e3 for form in FORMS}
    best = min(times, key=lambda form: times[form])
    return {"workload": work.name, "ms": times, "best": best, "lost": times[CHOSEN] / times[best]}


def main() -> None:
    """Measure the plan's choices."""
    parser = argparse.ArgumentParser(prog="python -m bench.plans", description=main.__doc__)
    parser.add_argument("--only", action="append", help="layers whose name contains it; may be repeated")
    parser.add_argument("--repeats", type=int, default=11, help="rounds of each layer")
    parser.add_argument("--json", type=Path, help="write the results here as they come")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1; got {options.repeats}")
    if _library.module is None:
        parser.error(f"there is nothing to measure: {_library.error}")
    only, repeats, path = options.only, options.repeats, options.json
    facts = machine()
    result: dict[str, Any] = {
        **{key: facts.get(key) for key in ("processor", "torch", "commit")},
        "threads": torch.get_num_threads(),
        "isa": _library.module.cpu_info()["isa"],
        "rows": [],
    }
    for work in shapes():
        if only and not any(part in work.name for part in only):
            continue
        row = _row(work, repeats)
        result["rows"].append(row)
        times = "  ".join(f"{form} {ms:9.3f} ms" for form, ms in row["ms"].items())
        print(f"{work.name:78} {times}  {'WRONG ' + row['best'] if row['lost'] > WRONG else ''}", flush=True)
        if path is not None:
            with atomic_write(path, "w") as file:
                json.dump(result, file, indent=1)
    wrong = [row for row in result["rows"] if row["lost"] > WRONG]
    print(f"{len(wrong)} of {len(result['rows'])} choices are more than 10 % slower than another form")


if __name__ == "__main__":
    main()
