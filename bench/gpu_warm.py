"""``python -m bench.gpu_warm [--arch N] [--jobs N]``: the kernels that the benchmark's workloads and the smoke test launch,
compiled on all cores into Triton's cache, where those find them; one after the other they would take minutes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from time import perf_counter

import torch
from triton.backends.nvidia.driver import CudaLauncher

from bench import gpu_smoke
from bench.gpu_compile import Compiler
from bench.gpu_entrants import Entrant, Place, Step, Workload
from bench.gpu_static import Configuration, each, survey
from bench.gpu_workloads import workloads


def compile_one(entry: Configuration) -> str | None:
    """What went wrong, if anything."""
    try:
        compiled = Compiler(entry.arch).compile(entry.launch)
        if torch.cuda.is_available():
            # What calls it from Python is C, compiled by the first launch of each signature: 0.3 s, one after the other.
            CudaLauncher(compiled.src, compiled.metadata)
    except Exception as problem:  # the others are still compiled
        return f"{entry.launch.kernel.__name__}: {type(problem).__name__}: {problem}".splitlines()[0]
    return None


KINDS = {"float64": "float64", "float32": "ieee", "tf32": "tf32", "bfloat16": "bf16", "float16": "fp16"}


def smoke() -> list[tuple[Workload, str]]:
    """The cases of the smoke test as workloads, each with its kind."""

    def make(name: str, kind: str, place: Place) -> Step:
        return lambda: gpu_smoke.work(name, kind, gpu_smoke.drawn(name, kind), place.device)

    return [
        (Workload(f"smoke: {name}", (Entrant("fused", "ours", partial(make, name, kind)),)), KINDS[kind])
        for name in gpu_smoke.cases()
        for kind in gpu_smoke.TOLERANCE
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, compile."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_warm", description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument(
        "--every-tile", action="store_true", help="every tile that tuning tries, not the chosen alone"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = perf_counter()
    found = survey(
        [w for w in workloads() if options.only in w.name], [options.arch], every_tile=options.every_tile
    )
    for work, kind in smoke():
        if options.only in work.name:
            try:
                found.join(survey([work], [options.arch], [kind]))
            except Exception as problem:  # the others are still compiled
                print(f"{work.name}, {kind}: {type(problem).__name__}: {problem}")
    entries = list(found.configurations.values())
    wrong = [said for said in each(compile_one, entries, options.jobs) if said]
    for said in wrong:
        print(said)
    print(f"{len(entries)} kernels in {perf_counter() - start:.0f} s, {len(wrong)} not compiled")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
