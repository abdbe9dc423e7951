"""``python -m bench.gpu_static [--quick] [--arch N …] [--only TEXT] [--kinds K …] [--jobs N]``: every Triton kernel, as
the workloads launch it, compiled ahead of time for GPUs that are not here, and its binary read.

What a workload launches is recorded without a GPU (`bench.gpu_record`), compiled the way Triton's JIT does it
(`bench.gpu_compile`), and must not spill, must fit in shared memory, and must use matrix instructions where its dtype and
precision mean them. Beside that stands what the workload costs at least on an H200. The CUDA sources are compiled by nvcc
where that is at hand. Writes bench/results/gpu_static.md and .json unless told otherwise; exit code 1 where anything is
wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton

from bench import gpu_others
from bench.gpu_compile import Binary, Compiler
from bench.gpu_entrants import Place, Workload
from bench.gpu_record import Recorded, record
from bench.gpu_workloads import workloads as measured
from lmser._atomic import atomic_write
from lmser.experiments.provenance import commit
from lmser_kernels.gpu import tiles
from lmser_kernels.gpu.launch import Launch

ARCHS = (80, 90, 100)
KINDS = ("bf16", "fp16", "tf32", "tf32x3", "ieee", "float64")
# Networks that are compiled for every kind, the others for bf16 and tf32 (attractor networks: tf32).
EVERY_KIND = ("CLmser-STL10", "Lmser", "CBAN", "FBAN")
QUICK = ("layer 16→32 up, 28 px, stride 2, batch 128, forward + backward",)  # for Hopper alone
RESULTS = Path(__file__).parent / "results"


@dataclass
class Configuration:
    """A compiled kernel: the launch that it serves first, and everything that launches it."""

    arch: int
    operator: str
    launch: Launch
    kinds: set[str] = field(default_factory=set)
    served: set[str] = field(default_factory=set)

    @property
    def constants(self) -> dict[str, Any]:
        """The compile-time constants, by name."""
        given = self.launch.arguments
        return {p.name: given.get(p.name, p.default) for p in self.launch.kernel.params if p.is_constexpr}


@dataclass
class Bound:
    """What a workload costs at least on an H200, operator by operator; `launches` is how many kernels it takes, in the place
    of `by_cudnn` of which cuDNN is planned to make the convolution."""

    workload: str
    kind: str
    launches: int
    by_cudnn: int
    gflop: float
    megabytes: float
    ms: float


@dataclass
class Survey:
    """Every distinct kernel of some workloads."""

    configurations: dict[Any, Configuration] = field(default_factory=dict)
    bounds: list[Bound] = field(default_factory=list)
    without_kernel: set[str] = field(default_factory=set)

    def join(self, other: Survey) -> None:
        """Take in what another has found."""
        for key, entry in other.configurations.items():
            mine = self.configurations.setdefault(key, entry)
            mine.kinds |= entry.kinds
            mine.served |= entry.served
        self.bounds += other.bounds
        self.without_kernel |= other.without_kernel


def survey(
    chosen: Sequence[Workload],
    archs: Sequence[int],
    kinds: Sequence[str] | None = None,
    every_tile: bool = False,
) -> Survey:
    """Record what the workloads launch, each in its own kinds or in `kinds`; `every_tile` that tuning could choose, or the
    one that is taken."""
    found = Survey()
    for arch in archs:
        compiler = Compiler(arch)
        for work in chosen:
            for kind in work.kinds if kinds is None else kinds:
                place = Place("cpu", kind)
                for turn, made in enumerate(_recordings(work, place, arch, every_tile)):
                    found.without_kernel |= made.without_kernel
                    for operator, launch in made.launches:
                        key = (arch, *compiler.key(launch))
                        entry = found.configurations.setdefault(key, Configuration(arch, operator, launch))
                        entry.kinds.add(kind)
                        entry.served.add(work.name)
                    if arch == archs[0] and turn == 0:
                        found.bounds.append(_bound(work, kind, made))
    return found


def workloads() -> list[Workload]:
    """What the benchmark measures, and what else there is to launch."""
    return [*measured(), *gpu_others.workloads()]


def kinds_of(work: Workload) -> Sequence[str]:
    """The kinds of arithmetic that a workload's kernels are compiled for."""
    return KINDS if work.name.startswith(EVERY_KIND) else work.kinds


def _recordings(work: Workload, place: Place, arch: int, every_tile: bool) -> Iterator[Recorded]:
    """The step as it is launched; then, if asked for, with each further tile that its problems may take."""

    def step() -> object:
        return work.ours.make(place)()

    yield record(step, arch, place.products)
    turn, more = 0, every_tile
    while more:
        more = False

        def next_tile(problem: tiles.Problem, turn: int = turn) -> tiles.Tile:
            nonlocal more
            offered = tiles.candidates(problem)
            more = more or turn + 1 < len(offered)
            return offered[min(turn, len(offered) - 1)]

        with tiles.choosing(next_tile):
            yield record(step, arch, place.products)
        turn += 1


def _bound(work: Workload, kind: str, made: Recorded) -> Bound:
    plans = [launch.plan.kernel for _, launch in made.launches if launch.plan is not None]
    return Bound(
        work.name,
        kind,
        len(made.launches),
        plans.count("cudnn"),
        sum(c.flops for c in made.costs) / 1e9,
        sum(c.bytes for c in made.costs) / 1e6,
        1e3 * sum(c.seconds(kind) for c in made.costs),
    )


def read(entry: Configuration) -> Binary | str:
    """The binary of a configuration, or why there is none."""
    try:
        return Compiler(entry.arch).read(entry.launch, brief=True)
    except Exception as problem:  # whatever the compiler raises, the others are still read
        return f"{type(problem).__name__}: {problem}".strip().splitlines()[0]


_shared: tuple[Callable[[Configuration], Any], Sequence[Configuration]]


def _one(place: int) -> Any:
    work, entries = _shared
    return work(entries[place])


def each(
    work: Callable[[Configuration], Any],
    entries: Sequence[Configuration],
    jobs: int,
    say: Callable[[int, Any], None] = lambda done, result: None,
) -> list[Any]:
    """`work` of each, in `jobs` processes. They inherit the launches: nothing of a kernel can be sent."""
    global _shared
    found: list[Any] = []
    if jobs == 1:
        for entry in entries:
            found.append(work(entry))
            say(len(found), found[-1])
        return found
    _shared = (work, entries)
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for result in pool.imap(_one, range(len(entries))):
            found.append(result)
            say(len(found), result)
    return found


def problems(entries: Sequence[Configuration], binaries: Sequence[Binary | str]) -> list[str]:
    """What is wrong, a line each."""
    lines = []
    for entry, binary in zip(entries, binaries, strict=True):
        wrong = [f"not compiled: {binary}"] if isinstance(binary, str) else binary.problems()
        lines += [f"{title(entry)}, sm_{entry.arch}: {line}" for line in wrong]
    return lines


def title(entry: Configuration) -> str:
    """The kernel with what tells its configurations apart."""
    constants = ", ".join(f"{name}={value}" for name, value in entry.constants.items())
    launch = entry.launch
    how = f"{'/'.join(sorted(entry.kinds))}, {launch.num_warps} warps, {launch.num_stages} stages"
    how += "".join(f", {name} {value}" for name, value in launch.options.items())
    return f"{launch.kernel.__name__}[{constants}] ({how})"


def as_json(found: Survey, binaries: Sequence[Binary | str], cuda: Sequence[Any]) -> dict[str, Any]:
    """Everything, for a machine."""
    rows = []
    names = sorted({name for entry in found.configurations.values() for name in entry.served})
    for entry, binary in zip(found.configurations.values(), binaries, strict=True):
        rows.append(
            {
                "kernel": entry.launch.kernel.__name__,
                "operator": entry.operator,
                "arch": entry.arch,
                "kinds": sorted(entry.kinds),
                "constants": {name: str(value) for name, value in entry.constants.items()},
                "warps": entry.launch.num_warps,
                "stages": entry.launch.num_stages,
                "options": dict(entry.launch.options),
                "serves": [names.index(name) for name in sorted(entry.served)],
                "binary": {"problem": binary} if isinstance(binary, str) else asdict(binary),
            }
        )
    return {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "commit": commit(),
        "command": "python -m bench.gpu_static",
        "workloads": names,
        "kernels": rows,
        "bounds": [asdict(b) for b in found.bounds],
        "without_kernel": sorted(found.without_kernel),
        "cuda": list(cuda),
        "problems": problems(list(found.configurations.values()), binaries),
    }


def by_lines(result: dict[str, Any]) -> str:
    """JSON with a line for each row, so that versions of the file can be compared."""
    parts = []
    for key, value in result.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in value) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def cuda_sources() -> list[dict[str, Any]]:
    """Registers, spills and shared memory of every kernel in csrc/cuda, where nvcc is there."""
    try:
        from bench.ptxas import compiled
    except ImportError:
        return []
    rows: list[dict[str, Any]] = compiled()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Survey, compile, read, write."""
    from bench.gpu_static_report import markdown

    parser = argparse.ArgumentParser(prog="python -m bench.gpu_static", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one layer and its derivative, for Hopper alone")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, help="default: all, quick: 90")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, help="default: all of some networks, bf16 and tf32 of the others"
    )
    parser.add_argument(
        "--every-tile",
        action="store_true",
        help="with every tile that tuning could choose, not the chosen alone",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="stem of the files; default: bench/results/gpu_static")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [w for w in workloads() if options.only in w.name]
    if options.quick:
        chosen = [w for w in chosen if w.name.startswith(QUICK)]
    if not chosen:
        parser.error(f"no workload is called anything with {options.only!r}")
    archs = options.arch or ((90,) if options.quick else ARCHS)
    found = Survey()
    for work in chosen:
        kinds = options.kinds or (work.kinds if options.quick else kinds_of(work))
        found.join(survey([work], archs, kinds, options.every_tile))
    entries = list(found.configurations.values())
    print(f"{len(entries)} kernels for {', '.join(f'sm_{a}' for a in archs)}", flush=True)

    def say(done: int, binary: Binary | str) -> None:
        for line in problems(entries[done - 1 : done], [binary]):
            print(line, flush=True)
        if done % 50 == 0:
            print(f"{done} of {len(entries)}", flush=True)

    binaries: list[Binary | str] = each(read, entries, options.jobs, say)
    cuda = [] if options.quick or options.only else cuda_sources()
    result = as_json(found, binaries, cuda)
    result["command"] = " ".join(
        ["python -m bench.gpu_static", *(sys.argv[1:] if arguments is None else arguments)]
    )
    wrong = [
        *result["problems"],
        *(f"{row['kernel']}: {row['problem']}" for row in cuda if row.get("problem")),
    ]
    wrong += [f"{name} has no Triton kernel" for name in result["without_kernel"]]
    if options.out or not (options.quick or options.only or options.kinds or options.arch):
        stem = options.out or RESULTS / "gpu_static"
        with atomic_write(stem.with_suffix(".json"), "w") as file:
            file.write(by_lines(result))
        with atomic_write(stem.with_suffix(".md"), "w") as file:
            file.write(markdown(result))
    for line in wrong[len(result["problems"]) :]:
        print(line)
    print(f"{len(wrong)} problems" if wrong else "nothing wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
