"""What nvcc makes of every kernel in csrc/cuda: registers, spills and shared memory, as ptxas says them.

python -m bench.ptxas
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CSRC = Path(__file__).parent.parent / "csrc"
ARCHS = (80, 90, 100)
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of torch 2.11

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w?'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parsed(text: str) -> list[dict[str, Any]]:
    """One row a kernel and architecture of what `nvcc -Xptxas -v` printed; `spills` in bytes, `shared` what is static.

    A row of a kernel that spills has a `problem` that says so.
    """
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        if found := _ENTRY.search(line):
            rows.append({"kernel": found[1], "arch": int(found[2]), "registers": 0, "spills": 0, "shared": 0})
        elif not rows:
            continue
        elif found := _SPILLS.search(line):
            rows[-1]["spills"] = int(found[2]) + int(found[3])
        elif found := _USED.search(line):
            rows[-1]["registers"] = int(found[1])
            if shared := _SHARED.search(line):
                rows[-1]["shared"] = int(shared[1])
    for row in rows:
        if row["spills"]:
            row["problem"] = f"spills {row['spills']} bytes on sm_{row['arch']}"
    return rows


def compiled(sources: Sequence[Path] | None = None, archs: Sequence[int] = ARCHS) -> list[dict[str, Any]]:
    """The rows of `sources` (all of csrc/cuda), compiled for `archs`; none where there is no nvcc.

    Raises:
        RuntimeError: a source that does not compile, with nvcc's own words.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    import torch

    command = [nvcc, "-std=c++20", "-O3", "--threads", "2", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    command += [
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        "-isystem",
        str(Path(torch.__file__).parent / "include"),
    ]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((CSRC / "cuda").glob("*.cu")) if sources is None else sources:
            done = subprocess.run(
                [*command, "-c", str(source), "-o", f"{folder}/{source.stem}.o"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{source}: nvcc failed\n{done.stderr}{done.stdout}")
            found = parsed(done.stderr + done.stdout)
            for row, name in zip(found, demangled([row["kernel"] for row in found]), strict=True):
                row["kernel"] = name
            rows += found
    return rows


def demangled(names: Sequence[str]) -> list[str]:
    """C++ names without their arguments, where binutils are there to tell."""
    if not names or shutil.which("c++filt") is None:
        return list(names)
    told = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    return [
        re.sub(r"\(.*", "", re.sub(r"^void |lmser::|\(anonymous namespace\)::", "", name)) for name in told
    ]


if __name__ == "__main__":
    for row in compiled():
        print(
            "{kernel}, sm_{arch}: {registers} registers, {spills} bytes spilled, {shared} shared".format(
                **row
            )
        )
