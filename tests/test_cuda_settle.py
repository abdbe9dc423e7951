"""The settling kernels for fully connected networks, run by an emulator of CUDA on this processor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from cuda_settle_cases import Device, Emulator, Found, Network, Solve, compiled, compiler, native, network

from lmser_kernels import _library

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(compiler() is None, reason="a C++ compiler builds the emulator; there is none"),
]

HERE = Path(__file__).parent / "cuda_emulator"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(compiled(HERE / "settle.cpp", tmp_path_factory.mktemp("emulator") / "settle.so"))


def same(found: Found, wanted: Found, tolerance: float = 1e-12) -> None:
    assert torch.equal(found.steps, wanted.steps)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for a, b in zip(found.states, wanted.states, strict=True):
        torch.testing.assert_close(a, b, **close)
    torch.testing.assert_close(found.readouts, wanted.readouts, **close)
    torch.testing.assert_close(found.change, wanted.change, **close)


NETWORKS = {
    "two layers": ((6, 9), 3, {}),
    "three layers": ((13, 9, 6), 5, {"evidence": "some"}),
    "wide, wholly held": ((70, 21, 5), 3, {"evidence": "all"}),
    "five layers, blended": ((5, 8, 1, 7, 3), 2, {"evidence": "some", "strength": 0.6, "external": True}),
    "free reverse weights, no biases": ((11, 6, 4), 4, {"reverse": True, "biases": False}),
}
DEVICES = {
    "one block a group": Device(),
    "turns drawn at random": Device(seed=7),
    "clusters of two": Device(cluster=2, group=4, seed=1),
    "clusters of eight": Device(cluster=8, group=1, threads=32),
    "weights streamed": Device(group=2, shared_bytes=0),
}


def on(device: Device, net: Network, order: str) -> Device:
    """Where nothing is said about shared memory for weights: what the states need, and two rows more."""
    if device.shared_bytes:
        return device
    sizes = [h.shape[1] for h in net.states]
    for half_kib in range(1, 128):
        plan = _library.module.settle_persistent_plan(
            sizes, device.group, 8, order == "up_down", True, 512 * half_kib, [1]
        )
        if plan["fits"] and plan["resident_weight_bytes"]:
            return dataclasses.replace(device, shared_bytes=512 * half_kib)
    raise AssertionError("no size of shared memory fits")


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
def test_equals_the_operator_of_this_processor(
    emulator: Emulator, device: str, name: str, order: str
) -> None:
    sizes, samples, options = NETWORKS[name]
    net = network(sizes, samples, **options)
    how = Solve(order=order, theta=0.03, max_steps=4, readouts=True)
    same(emulator.settle(net, how, on(DEVICES[device], net, order)), native(net, how))


def test_weights_are_streamed_where_they_do_not_fit(emulator: Emulator) -> None:
    net = network((13, 9, 6), 5)
    emulator.settle(net, Solve(), on(DEVICES["weights streamed"], net, "up_down"))
    assert emulator.plan["streamed_bytes"] > 0
    assert emulator.plan["resident_bytes"] > 0
    emulator.settle(net, Solve(), Device())
    assert emulator.plan["streamed_bytes"] == 0
