"""How many registers a kernel asks its compiler for, where the compiler's own choice keeps values in local memory.

ptxas weighs registers of a thread against threads that run at once, and sometimes gives up a few registers for more
threads, so that values go to memory and back in the middle of a sum. What it needs to be told instead is found by
compiling (`python -m bench.gpu_registers`) and lies in registers.json: an entry holds for a kernel on one architecture,
with one kind of arithmetic and one shape of tiles, in all its variants. A kernel without an entry is compiled as ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Key = tuple[str, int, str, tuple[int, ...], int, int]
TABLE = Path(__file__).with_name("registers.json")
_NONE: Mapping[str, Any] = {}


def key_of(name: str, arguments: Mapping[str, Any], warps: int, stages: int, arch: int) -> Key:
    """What an entry is found by: kernel, architecture, arithmetic, sides of the tiles by their names, warps, stages."""
    dtype, precision = _arithmetic(arguments)
    kind = str(dtype).removeprefix("torch.") + ("" if precision is None else f"/{precision}")
    sides = sorted((given, value) for given, value in arguments.items() if "BLOCK" in given)
    return name, arch, kind, tuple(value for _, value in sides), warps, stages


def _arithmetic(arguments: Mapping[str, Any]) -> tuple[torch.dtype, str | None]:
    dtype = next(value.dtype for value in arguments.values() if isinstance(value, Tensor))
    return dtype, arguments.get("PRECISION")


def options(name: str, arguments: Mapping[str, Any], warps: int, stages: int, arch: int) -> Mapping[str, Any]:
    """Triton's options for compiling this launch of the kernel `name`."""
    # Every launch asks, and few kinds of kernels are in the table: the key is not made for the others.
    if (name, arch, *_arithmetic(arguments)) not in _kinds():
        return _NONE
    return table().get(key_of(name, arguments, warps, stages, arch), _NONE)


@cache
def table() -> Mapping[Key, Mapping[str, Any]]:
    """Every entry, by its key."""
    entries = json.loads(TABLE.read_text(encoding="utf-8"))["entries"]
    return {
        (e["kernel"], e["arch"], e["kind"], tuple(e["sides"]), e["warps"], e["stages"]): e["options"]
        for e in entries
    }


@cache
def _kinds() -> frozenset[tuple[str, int, torch.dtype, str | None]]:
    found = set()
    for name, arch, kind, *_ in table():
        dtype, _, precision = kind.partition("/")
        found.add((name, arch, getattr(torch, dtype), precision or None))
    return frozenset(found)


def forget() -> None:
    """Read the table again when it is next asked for."""
    table.cache_clear()
    _kinds.cache_clear()
