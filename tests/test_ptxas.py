"""What is read from the words of ptxas."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.ptxas import compiled, demangled, parsed

WORDS = """
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_ZN5lmser3addIfEEvT_' for 'sm_90'
ptxas info    : Function properties for _ZN5lmser3addIfEEvT_
    24 bytes stack frame, 40 bytes spill stores, 128 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 24 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Compile time = 630.516 ms
ptxas info    : Compiling entry function '_ZN5lmser3addIdEEvT_' for 'sm_100a'
ptxas info    : Function properties for _ZN5lmser3addIdEEvT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 1032 bytes cmem[0]
"""


def test_a_row_for_each_kernel_and_architecture() -> None:
    first, second = parsed(WORDS)
    assert first == {
        "kernel": "_ZN5lmser3addIfEEvT_",
        "arch": 90,
        "registers": 128,
        "spills": 168,
        "shared": 2048,
        "problem": "spills 168 bytes on sm_90",
    }
    assert (second["arch"], second["registers"], second["spills"], second["shared"]) == (100, 32, 0, 0)
    assert "problem" not in second


def test_nothing_said_is_no_row() -> None:
    assert parsed("") == []


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt (binutils) is not installed")
def test_names_are_those_of_the_source() -> None:
    assert demangled(["_ZN5lmser3addIfEEvT_"]) == ["add<float>"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_is_asked(tmp_path: Path) -> None:
    source = tmp_path / "twice.cu"
    source.write_text("""
        extern "C" __global__ void turned(float* x) {
          __shared__ float s[32];
          s[threadIdx.x] = x[threadIdx.x];
          __syncthreads();
          x[threadIdx.x] += s[31 - threadIdx.x];
        }""")
    (row,) = compiled([source], [90])
    assert (row["kernel"], row["arch"], row["spills"], row["shared"]) == ("turned", 90, 0, 128)
    assert row["registers"] > 0
    source.write_text("no C++")
    with pytest.raises(RuntimeError, match=r"twice\.cu: nvcc failed"):
        compiled([source], [90])
