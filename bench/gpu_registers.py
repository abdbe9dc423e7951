"""``python -m bench.gpu_registers [--only TEXT] [--arch N …] [--jobs N]``: finds what kernels must be told so that they
keep nothing in local memory, and writes lmser_kernels/gpu/registers.json.

Everything that the workloads launch is compiled as the compiler likes it. Of a kernel that spills, every variant that an
entry of the table would hold for is compiled with more and more registers, until none does; the first that is enough is
taken. Kernels that spill all the same are named, and the exit code is 1. A part of the workloads or architectures knows
only some of the variants: it takes nothing out of the table, and compiles as that says.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton

from bench.gpu_compile import Binary
from bench.gpu_static import ARCHS, Configuration, Survey, each, kinds_of, read, survey, title, workloads
from lmser._atomic import atomic_write
from lmser_kernels.gpu import registers

# Registers of a thread that more threads fit beside, and then all there are; then another weighing altogether.
TRIED: tuple[Mapping[str, Any], ...] = (
    *({"maxnreg": count} for count in (80, 96, 112, 128, 144, 160, 192, 224, 255)),
    {"ptx_options": "--register-usage-level=8"},
)


def key_of(entry: Configuration) -> registers.Key:
    """The table's key of a configuration."""
    launch = entry.launch
    return registers.key_of(
        launch.kernel.__name__, launch.arguments, launch.num_warps, launch.num_stages, entry.arch
    )


def told(entry: Configuration, options: Mapping[str, Any]) -> Configuration:
    """The configuration with these options of the compiler."""
    return replace(entry, launch=replace(entry.launch, options=options))


def spills(binary: Binary | str) -> bool:
    """Whether it does, or could not be compiled at all."""
    return isinstance(binary, str) or bool(binary.stack or binary.counts["local"])


def found(
    entries: Sequence[Configuration],
    jobs: int,
    known: Mapping[registers.Key, Mapping[str, Any]] | None = None,
) -> tuple[dict[registers.Key, Mapping[str, Any]], list[Configuration]]:
    """What each kernel that spills, told what is `known`, must be told instead, and those that nothing helps."""
    plain = [told(entry, (known or {}).get(key_of(entry), {})) for entry in entries]
    binaries = each(read, plain, jobs, _progress(len(plain)))
    sharing: dict[registers.Key, list[Configuration]] = {}
    spilling = set()
    for entry, binary in zip(plain, binaries, strict=True):
        sharing.setdefault(key_of(entry), []).append(entry)
        if spills(binary):
            spilling.add(key_of(entry))
    print(f"{len(spilling)} keys of the table for kernels that spill", flush=True)
    chosen: dict[registers.Key, Mapping[str, Any]] = {}
    open_keys = sorted(spilling)
    for options in TRIED:
        trial = [told(entry, options) for key in open_keys for entry in sharing[key]]
        made = iter(each(read, trial, jobs)) if trial else iter(())
        fits = {key: sum(spills(next(made)) for _ in sharing[key]) == 0 for key in open_keys}
        chosen |= {key: options for key, enough in fits.items() if enough}
        open_keys = [key for key in open_keys if not fits[key]]
        print(f"{options}: {len(open_keys)} are left", flush=True)
    return chosen, [entry for key in open_keys for entry in sharing[key]]


def _progress(count: int) -> Any:
    def say(done: int, _: object) -> None:
        if done % 100 == 0:
            print(f"{done} of {count}", flush=True)

    return say


def write(table: Mapping[registers.Key, Mapping[str, Any]]) -> None:
    """Put the table in its place, whole or not at all."""
    names = ("kernel", "arch", "kind", "sides", "warps", "stages")
    rows = [
        json.dumps({**dict(zip(names, key, strict=True)), "options": dict(options)})
        for key, options in sorted(table.items())
    ]
    head = json.dumps({"about": "python -m bench.gpu_registers", "triton": triton.__version__})
    with atomic_write(registers.TABLE, "w") as file:
        file.write(head[:-1] + ', "entries": [\n ' + ",\n ".join(rows) + "\n]}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Survey, compile, choose, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_registers", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        help="workloads whose name contains one of these; default: all, anew",
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=ARCHS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    surveyed = Survey()
    for work in workloads():
        if any(part in work.name for part in options.only):
            surveyed.join(survey([work], options.arch, kinds_of(work)))
    if not surveyed.configurations:
        parser.error(f"no workload is called anything with {options.only!r}")
    entries = list(surveyed.configurations.values())
    print(f"{len(entries)} kernels", flush=True)
    whole = options.only == [""] and set(options.arch) == set(ARCHS)
    known = {} if whole else dict(registers.table())
    more, hopeless = found(entries, options.jobs, known)
    table = {**known, **more}
    write(table)
    for entry in hopeless:
        print(f"spills all the same: {title(entry)}, sm_{entry.arch}")
    print(f"{len(table)} entries in {registers.TABLE.name}")
    return bool(hopeless)


if __name__ == "__main__":
    sys.exit(main())
