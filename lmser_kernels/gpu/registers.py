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

from torch import Tensor

Key = tuple[str, int, str, tuple[int, ...], int, int]
TABLE = Path(__file__).with_name("registers.json")
_NONE: Mapping[str, Any] = {}


def key_of(name: str, arguments: Mapping[str, Any], warps: int, stages: int, arch: int) -> Key:
    """What an entry is found by: kernel, architecture, arithmetic, sides of the tiles by their names, warps, stages."""
    dtype = next(value.dtype for value in arguments.values() if isinstance(value, Tensor))
    kind = str(dtype).removeprefix("torch.")
    if "PRECISION" in arguments:
        kind = f"{kind}/{arguments['PRECISION']}"
    sides = tuple(value for name, value in sorted(arguments.items()) if "BLOCK" in name)
    return name, arch, kind, sides, warps, stages


def options(name: str, arguments: Mapping[str, Any], warps: int, stages: int, arch: int) -> Mapping[str, Any]:
    """Triton's options for compiling this launch of the kernel `name`."""
    if (name, arch) not in _kernels():
        return _NONE
    return _table().get(key_of(name, arguments, warps, stages, arch), _NONE)


@cache
def _table() -> Mapping[Key, Mapping[str, Any]]:
    entries = json.loads(TABLE.read_text(encoding="utf-8"))["entries"]
    return {
        (e["kernel"], e["arch"], e["kind"], tuple(e["sides"]), e["warps"], e["stages"]): e["options"]
        for e in entries
    }


@cache
def _kernels() -> frozenset[tuple[str, int]]:
    return frozenset((name, arch) for name, arch, *_ in _table())


def forget() -> None:
    """Read the table again when it is next asked for."""
    _table.cache_clear()
    _kernels.cache_clear()
