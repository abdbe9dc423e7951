"""The emulator of CUDA that kernels are tested in: it computes what a device would, and sees what one would not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cuda_settle_cases import compiled, compiler

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="a C++ compiler builds the emulator; there is none"
)

SEEDS = (0, 1, 2)
Run = Callable[[str, torch.Tensor, torch.Tensor, int], str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    source = Path(__file__).parent / "cuda_emulator" / "faults.cpp"
    call = compiled(source, tmp_path_factory.mktemp("faults") / "faults.so").run_fault
    call.restype = ctypes.c_char_p

    def run(name: str, given: torch.Tensor, out: torch.Tensor, seed: int) -> str:
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (given, out)]
        return call(name.encode(), len(given), ctypes.c_int64(seed), *pointers).decode()

    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_and_shuffles(run: Run, seed: int) -> None:
    given, out = torch.arange(96.0), torch.full((96,), torch.nan)
    assert run("reverse", given, out, seed) == ""
    assert torch.equal(out, given.flip(0))
    assert run("add", given, out, seed) == ""
    assert torch.equal(out, given.sum().expand(96))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_shows(run: Run, seed: int) -> None:
    given, out = torch.arange(96.0), torch.full((96,), torch.nan)
    assert run("race", given, out, seed) == ""
    assert bool(out.isnan().any()), "memory that was not yet written is NaN"


def test_a_write_outside_of_shared_memory_is_an_error(run: Run) -> None:
    given, out = torch.arange(32.0), torch.empty(32)
    assert run("outside", given, out, 0) == "block 0 wrote outside its shared memory, at byte 128"


def test_a_barrier_that_one_thread_misses_is_an_error(run: Run) -> None:
    given, out = torch.arange(32.0), torch.empty(32)
    assert run("missed", given, out, 0).startswith("threads look at a word that nobody writes")


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_wait_for_one_another(run: Run, seed: int) -> None:
    given, out = torch.arange(32.0), torch.full((96,), torch.nan)
    assert run("meet", given, out, seed) == ""
    assert torch.equal(out, torch.full((96,), 3.0))
    assert run("never", given, out, seed) == "threads look at a word that nobody writes"
