"""Which solves the persistent CUDA kernel takes: decided by sizes and the device's properties, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lmser_kernels import _library, settle
from lmser_kernels.settle import persistent

pytestmark = pytest.mark.native
H200 = SimpleNamespace(name="H200", shared_memory_per_block_optin=227 * 1024, multi_processor_count=132)


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H200)


def network(sizes, samples, dtype=torch.float32, pixels=1, device="cpu"):
    states = [torch.zeros(samples, c, pixels, pixels, dtype=dtype, device=device) for c in sizes]
    pairs = zip(sizes[1:], sizes, strict=False)
    return states, [torch.zeros(a, b, 1, 1, dtype=dtype, device=device) for a, b in pairs]


@pytest.mark.parametrize("samples", [0, 1, 64, 250])
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
def test_takes_the_networks_it_is_for(samples, order):
    assert persistent.obstacle(*network((812, 200, 50), samples), order, 0.01, False) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (network((8, 4), 2, pixels=3), "fully connected networks"),
        (network((8, 4), 2, dtype=torch.bfloat16), "float32 or float64, not in torch.bfloat16"),
        (network((812,) * 10, 2), "do not fit on H200 at once"),
        (network((4000, 4000), 100), "a sweep is 6.4 GFLOP, more than the 2"),
    ],
)
def test_says_what_it_does_not_take(given, message):
    assert message in persistent.obstacle(*given, "up_down", 0.01, False)


def test_does_not_take_room_for_sweeps_that_may_not_be_made():
    states, weights = network((812, 200, 50), 250)
    kept = {"keep": True, "half": False, "readouts": False}
    room = persistent.kept_bytes(states, "up_down", 0.01, 10_000, **kept)
    assert room == 10_000 * 4 * 250 * (812 + 200 + 50 + 200)
    assert "12.6 GB" in str(persistent.obstacle(states, weights, "up_down", 0.01, False, kept=room))
    assert persistent.kept_bytes(states, "up_down", 0.0, 10_000, **kept) == 0  # all of them are made
    assert persistent.kept_bytes(states, "odd_even", 0.01, 10, **kept) == 10 * 4 * 250 * (812 + 200 + 50)
    assert persistent.kept_bytes(states, "up_down", 0.01, 10, keep=False, half=False, readouts=False) == 0


def test_a_gpu_that_the_library_has_no_code_for_is_triton_s(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(persistent, "unusable", lambda device: f"no code for GPU {device}")
    with FakeTensorMode():
        given = network((812, 200, 50), 2, device="cuda:1")
        assert persistent.obstacle(*given, "up_down", 0.01, False) == "no code for GPU 1"


def test_the_library_says_why_it_cannot_run_here():
    if torch.cuda.is_available():
        pytest.skip("it can")
    said = _library.module.settle_persistent_obstacle(0)
    assert said
    assert _library.module.settle_persistent_obstacle(0) == said  # an error of CUDA's is not kept


def test_explicit_native_does_not_fall_back(monkeypatch):
    monkeypatch.setattr(_library, "cuda_operators", frozenset({"settle"}))
    with (
        FakeTensorMode(),
        pytest.raises(RuntimeError, match="no compiled kernel for CUDA tensors takes this: it"),
    ):
        settle(*network((8, 4), 2, pixels=3, device="cuda"), None, impl="native")
