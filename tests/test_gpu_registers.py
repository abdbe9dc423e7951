"""What kernels tell their compiler so that they keep to the registers: the table, and how it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench import gpu_registers
from bench.gpu_compile import COUNTED, Binary
from bench.gpu_static import Configuration
from lmser_kernels.gpu import registers
from lmser_kernels.gpu.launch import Launch, recording
from lmser_kernels.tied_conv.triton_drives import up

KERNEL = SimpleNamespace(__name__="conv_up", params=[])


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    registers.forget()
    yield
    registers.forget()


def _launch(kind: str, side: int = 64, dtype: torch.dtype = torch.bfloat16) -> Launch:
    arguments = {
        "x": torch.empty(1, dtype=dtype),
        "ACT": kind,
        "PRECISION": "ieee",
        "BLOCK_M": side,
        "BLOCK_N": 32,
    }
    return Launch(KERNEL, (1,), arguments, 4, 3)


def _table(path: Path, *entries: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({"about": "a test", "entries": entries}))


def test_the_table_that_ships_can_be_read_and_tells_what_triton_takes() -> None:
    entries = json.loads(registers.TABLE.read_text())["entries"]
    for entry in entries:
        assert entry["arch"] in (80, 90, 100)
        assert set(entry["options"]) <= {"maxnreg", "ptx_options"}
        assert 32 <= entry["options"].get("maxnreg", 255) <= 255
        # So many threads of a block, with so many registers each, a multiprocessor has.
        assert entry["options"].get("maxnreg", 0) * 32 * entry["warps"] <= 65536


def test_an_entry_holds_for_its_kernel_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "TABLE", tmp_path / "registers.json")
    entry = {
        "kernel": "conv_up",
        "arch": 90,
        "kind": "bfloat16/ieee",
        "sides": [64, 32],
        "warps": 4,
        "stages": 3,
    }
    _table(registers.TABLE, entry | {"options": {"maxnreg": 96}})
    given = _launch("relu").arguments
    assert registers.options("conv_up", given, 4, 3, 90) == {"maxnreg": 96}
    assert registers.options("conv_up", _launch("tanh").arguments, 4, 3, 90) == {"maxnreg": 96}
    for other in (
        ("conv_down", given, 4, 3, 90),
        ("conv_up", given, 8, 3, 90),
        ("conv_up", given, 4, 2, 90),
        ("conv_up", given, 4, 3, 100),
        ("conv_up", _launch("relu", 128).arguments, 4, 3, 90),
        ("conv_up", _launch("relu", dtype=torch.float16).arguments, 4, 3, 90),
        ("conv_up", given | {"PRECISION": "tf32"}, 4, 3, 90),
    ):
        assert registers.options(*other) == {}


def test_a_launch_is_compiled_as_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> Launch:
        with recording(90) as found, torch.device("meta"):
            up(
                torch.empty(2, 16, 8, 8),
                torch.empty(16, 16, 3, 3),
                stride=(1, 1),
                padding=(1, 1),
                size=(8, 8),
            )
        (launch,) = found.launches
        return launch

    monkeypatch.setattr(registers, "TABLE", tmp_path / "registers.json")
    _table(registers.TABLE)
    plain = made()
    assert plain.options == {}
    name, arch, kind, sides, warps, stages = registers.key_of(
        "conv_up", plain.arguments, plain.num_warps, plain.num_stages, 90
    )
    entry = {"kernel": name, "arch": arch, "kind": kind, "sides": sides, "warps": warps, "stages": stages}
    _table(registers.TABLE, entry | {"options": {"maxnreg": 112}})
    registers.forget()
    assert made().options == {"maxnreg": 112}


# how the table is made


def _compiler(needs: Mapping[str, float]) -> Callable[..., list[Any]]:
    """Stands for compiling: a variant spills unless it may have as many registers as it `needs`."""

    def each(read: Any, entries: Sequence[Configuration], jobs: int, say: Any = None) -> list[Any]:
        binaries = []
        for entry in entries:
            need = needs[entry.launch.arguments["ACT"]]
            local = 0 if need == 0 or entry.launch.options.get("maxnreg", 0) >= need else 2
            counts = dict.fromkeys(COUNTED, 0) | {"local": local}
            binaries.append(Binary("conv_up", entry.arch, 96, 4 * local, 0, counts, False))
        return binaries

    return each


def test_the_fewest_registers_that_are_enough_for_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu_registers, "each", _compiler({"relu": 0, "tanh": 100, "sigmoid": 130, "identity": 1e9})
    )
    entries = [
        Configuration(90, "o", _launch("relu", 16)),  # never spills: no entry
        Configuration(90, "o", _launch("relu", 32)),
        Configuration(90, "o", _launch("tanh", 32)),
        Configuration(90, "o", _launch("tanh", 64)),
        Configuration(90, "o", _launch("sigmoid", 64)),
        Configuration(90, "o", _launch("identity", 128)),
    ]
    table, hopeless = gpu_registers.found(entries, 1)
    assert {key[3][0]: options["maxnreg"] for key, options in table.items()} == {32: 112, 64: 144}
    assert [entry.launch.arguments["ACT"] for entry in hopeless] == ["identity"]


def test_a_part_takes_nothing_out_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "TABLE", tmp_path / "registers.json")
    one, other = (
        registers.key_of("conv_up", _launch("relu", side).arguments, 4, 3, 90) for side in (64, 128)
    )
    gpu_registers.write({one: {"maxnreg": 96}, other: {"maxnreg": 128}})
    known = dict(registers.table())
    assert known == {one: {"maxnreg": 96}, other: {"maxnreg": 128}}
    # One variant of each is known here: of the first what is told is enough, of the second it is not any more.
    monkeypatch.setattr(gpu_registers, "each", _compiler({"relu": 90, "tanh": 130}))
    entries = [Configuration(90, "o", _launch("relu", 64)), Configuration(90, "o", _launch("tanh", 128))]
    more, hopeless = gpu_registers.found(entries, 1, known)
    assert more == {other: {"maxnreg": 144}}
    assert not hopeless
    assert registers.options("conv_up", _launch("tanh").arguments, 4, 3, 90) == {"maxnreg": 96}
