"""``python -m bench.gpu_tune [--only TEXT] [--kinds K …] [--out FILE]``: the table of tiles that ships with the kernels,
made by measurement on the GPU at hand.

Every workload's own step is tuned; of problems that share an entry, the tile that is fastest for them all is kept.
Entries of other GPUs, and of problems that no workload has, stay as they are. All tiles together are thousands of
kernels: `python -m bench.gpu_warm --every-tile` compiles them on all cores beforehand. The table is written after every
workload, so that what `--seconds` leave undone is done by the next run (`--after NAME`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch

from bench.gpu_entrants import Place
from bench.gpu_facts import facts
from bench.gpu_layers import without_cudnn
from bench.gpu_record import precision
from bench.gpu_workloads import workloads
from lmser_kernels.gpu import tile_table, tiles, tuning

ABOUT = (
    "Tiles found by measurement (python -m bench.gpu_tune), which come before the model's prediction. "
    "Measured on: {device}, Triton {triton}."
)

# Relative difference of results: a training step's gradients pass activations' kinks, on either side of which another
# order of a sum may fall.
SAME = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, merge, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_tune", description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--kinds", nargs="+", help="default: the workload's own")
    parser.add_argument("--out", type=Path, default=tile_table.SHIPPED)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--after", default="", help="only what comes behind the workload of this name")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="no workload begins later than that"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no GPU: torch.cuda.is_available() is False")
    names = [work.name for work in workloads()]
    if options.after and options.after not in names:
        parser.error(f"--after: no workload is called {options.after!r}")
    found: list[tuning.Measured] = []
    began, here = perf_counter(), facts("cuda")
    for work in workloads()[names.index(options.after) + 1 if options.after else 0 :]:
        if options.only not in work.name:
            continue
        if perf_counter() - began > options.seconds:
            print(f"the time is up before {work.name}", flush=True)
            break
        for kind in options.kinds or work.kinds:
            place = Place("cuda", kind)
            with precision(place.products), without_cudnn():  # every product is a tile's
                step = work.ours.make(place)
                try:
                    measured = tuning.tune(step, repeats=options.repeats, store=False, same=SAME)
                except Exception as problem:  # the others are still tuned
                    print(f"{work.name}, {kind}: {type(problem).__name__}: {problem}", flush=True)
                    continue
            found += measured
            table = tile_table.read(options.out) if options.out.exists() else {}
            table.update(tuning.by_bucket(found))
            tile_table.write(
                options.out, table, ABOUT.format(**here), clocks=here["smi"].get("clocks.sm", "")
            )
            gained = sum(m.seconds[m.before] for m in measured if m.before in m.seconds)
            gained /= sum(m.seconds[m.best] for m in measured if m.before in m.seconds) or 1.0
            print(f"{work.name}, {kind}: {len(measured)} problems, {gained:.2f} times as fast", flush=True)
    if not found:
        print("nothing was measured")
        return 1
    tiles.forget()
    print(f"{len(tile_table.read(options.out))} entries in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
