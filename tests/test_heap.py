"""Training whose results have ever other sizes leaves no gaps in the C library's heap."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.native

# An attractor network that learns: the number of its sweeps, and with it the size of what is kept for backward, changes
# from step to step.
PROGRAM = """
import ctypes
import torch
from lmser.models import FBAN, attractor_loss

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Heap
torch.set_num_threads(1)
torch.manual_seed(0)
network = FBAN([812, 200, 50], activation="tanh", evidence="clamp", theta=0.0, max_steps=4)
observed = torch.zeros(250, 812, dtype=torch.bool)
observed[:, :784] = True
held = []
for step in range(141):
    network.max_steps = 1 + step * 7 % 5
    target = torch.rand(250, 812) * 1.6 - 0.8
    found = network.trajectory(network.complete(target, observed, readouts=True))
    loss = attractor_loss(torch.where(observed, target, found), target, kind="delta_e_plus", td=1.0, power=1.0,
                          activation=network.activation, slope=network.slope)
    loss.backward()
    network.zero_grad()
    if step in (40, 140):
        held.append(library.mallinfo2().fordblks)
print(held[1] - held[0])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's heap")
def test_no_gaps_are_left():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20e6
