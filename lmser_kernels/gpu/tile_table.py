"""Measured tiles: those that ship with this package, and those that `tune` stored on this machine.

A table is a JSON file, one entry per kernel, architecture, kind of arithmetic and size of the problem, where sizes are
rounded up to powers of two. The machine's own is named after its GPU and the version of Triton, and is looked at by
processes in which CUDA is in use; it is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from lmser_kernels.gpu.tile_model import Problem, Tile, candidates

Key = tuple[str, int, str, int, int, int]
SHIPPED = Path(__file__).with_name("tiles.json")


def key_of(problem: Problem) -> Key:
    """What an entry is found by."""
    sizes = (1 << max(0, size - 1).bit_length() for size in (problem.m, problem.n, problem.k))
    return (problem.kernel, problem.arch, problem.kind, *sizes)  # type: ignore[return-value]


def measured(problem: Problem, device: int | None = None) -> Tile | None:
    """The measured tile, if there is one that this problem may take: on this GPU of the machine, or as it shipped."""
    key = key_of(problem)
    tile = None if device is None else _own(device).get(key)
    if tile is None:
        tile = _shipped().get(key)
    # Of a smaller problem in the same bucket the tile may be too large.
    return tile if tile is None or tile in candidates(problem) else None


@cache
def _shipped() -> Mapping[Key, Tile]:
    return read(SHIPPED)


@cache
def _own(device: int) -> Mapping[Key, Tile]:
    try:
        return read(cache_file(torch.cuda.get_device_name(device)))
    except (OSError, RuntimeError):  # nothing was stored, or the user has no home that may be read
        return {}


def forget() -> None:
    """Read the tables again when they are next asked for."""
    _shipped.cache_clear()
    _own.cache_clear()


def read(path: Path) -> dict[Key, Tile]:
    """The table in a file; `ValueError` naming it where it is not one."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        return {
            (e["kernel"], e["arch"], e["kind"], e["m"], e["n"], e["k"]): Tile(*map(int, e["tile"]))
            for e in entries
        }
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} is not a table of tiles ({type(problem).__name__}: {problem}): remove it"
        ) from problem


def write(path: Path, table: Mapping[Key, Tile], about: str, **facts: Any) -> None:
    """Put a table in place of the file, whole or not at all."""
    entries: Sequence[dict[str, Any]] = [
        {
            **dict(zip(("kernel", "arch", "kind", "m", "n", "k"), key, strict=True)),
            "tile": [tile.m, tile.n, tile.k, tile.warps, tile.stages],
        }
        for key, tile in sorted(table.items())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            rows = ",\n  ".join(json.dumps(entry) for entry in entries)
            head = json.dumps({"about": about, **facts}, indent=1)[:-2]
            file.write(f'{head},\n "entries": [{rows}]\n}}\n')
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def cache_file(device: str) -> Path:
    """Where tiles measured on GPUs of this name are kept."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return cache_directory() / f"tiles-{slug}-triton-{triton.__version__}.json"


def cache_directory() -> Path:
    """The user's directory for what can be made again, where the platform usually has it."""
    if sys.platform == "win32":
        base = Path.home() / "AppData/Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Caches"
    else:
        base = Path.home() / ".cache"
    return base / "lmser"
