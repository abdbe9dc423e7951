"""The compiled CPU kernels driven from C++: `tests/native`, which also runs under sanitizers (`make sanitize`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_settle_cases import compiler

NATIVE = Path(__file__).parent / "native"

pytestmark = pytest.mark.skipif(
    compiler() is None or shutil.which("make") is None, reason="make and a C++ compiler build it"
)


def _run(build: Path, *settings: str) -> str:
    command = ["make", "--silent", "-j2", "run", f"PYTHON={sys.executable}", f"BUILD={build}", *settings]
    # The settings of a `make` that runs the tests are not this one's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=NATIVE, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_against_plain_loops(tmp_path: Path) -> None:
    """Every kernel over odd sizes, strides, layouts and dtypes, and over offsets that 32 bits do not hold."""
    assert ", 0 failures" in _run(tmp_path, "ISAS=baseline", "FEW=1")


@pytest.mark.slow
def test_addresses_and_undefined_behaviour(tmp_path: Path) -> None:
    assert ", 0 failures" in _run(tmp_path, "SANITIZE=address,undefined")


@pytest.mark.slow
def test_threads(tmp_path: Path) -> None:
    assert ", 0 failures" in _run(tmp_path, "SANITIZE=thread", "ISAS=baseline", "ONLY=thread")
