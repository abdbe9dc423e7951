"""Training steps of all networks where nothing but their own device can be touched (see `faraway_device`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faraway_device import CASES
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no backends made in Python",
)

REFUSED = {"reads a value": "_local_scalar_dense", "meets the CPU": "same device"}


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    script = Path(__file__).with_name("faraway_device.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_step_stays_on_the_device_and_reads_nothing(found, name):
    assert found[name] == ""


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_is_seen(found, name):
    assert REFUSED[name] in found[name]
