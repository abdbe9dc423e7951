"""The compiled library uses nothing of PyTorch but its stable ABI, and no CUDA library."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from lmser_kernels import _library

pytestmark = pytest.mark.native


def tool(name: str, *arguments: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} (binutils) is not installed")
    return subprocess.run([name, *arguments], capture_output=True, text=True, check=True).stdout


def undefined_symbols() -> list[str]:
    lines = tool("nm", "--dynamic", "--undefined-only", "--demangle", _library.module.__file__).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.strip()]


def test_no_unstable_symbol_of_torch():
    # A C++ symbol carries its namespace; typeinfo and vtables name it behind a few words.
    unstable = [s for s in undefined_symbols() if re.search(r"\b(at|c10|torch|caffe2|torchgen)::", s)]
    assert unstable == []


def test_it_does_use_the_stable_interface():
    symbols = undefined_symbols()
    assert any(s.startswith(("aoti_torch_", "torch_")) for s in symbols), (
        "nm found no torch symbol: wrong file?"
    )


def test_needs_no_shared_library_of_cuda():
    needed = re.findall(r"NEEDED.*\[(.+)\]", tool("readelf", "--dynamic", _library.module.__file__))
    assert needed, "readelf found no needed libraries: wrong file?"
    assert [name for name in needed if re.match(r"lib(cuda|cudart|cublas|cudnn|nv|c10)", name)] == []


def test_carries_no_path_of_the_machine_that_built_it():
    entries = tool("readelf", "--dynamic", _library.module.__file__)
    assert not re.findall(r"\((?:RPATH|RUNPATH)\).*\[(/.+)\]", entries)
