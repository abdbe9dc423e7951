"""``python -m bench.gpu_warm [--arch N] [--jobs N]``: the kernels that the benchmark's workloads launch, compiled on all
cores into Triton's cache, where the benchmark finds them; one after the other they would take minutes of its time."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from time import perf_counter

import torch

from bench.gpu_compile import Compiler
from bench.gpu_static import Configuration, each, survey
from bench.gpu_workloads import workloads


def compile_one(entry: Configuration) -> str | None:
    """What went wrong, if anything."""
    try:
        Compiler(entry.arch).compile(entry.launch)
    except Exception as problem:  # the others are still compiled
        return f"{entry.launch.kernel.__name__}: {type(problem).__name__}: {problem}".splitlines()[0]
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, compile."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_warm", description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = perf_counter()
    found = survey([w for w in workloads() if options.only in w.name], [options.arch])
    entries = list(found.configurations.values())
    wrong = [said for said in each(compile_one, entries, options.jobs) if said]
    for said in wrong:
        print(said)
    print(f"{len(entries)} kernels in {perf_counter() - start:.0f} s, {len(wrong)} not compiled")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
