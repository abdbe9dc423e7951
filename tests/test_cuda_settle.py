"""The settling kernels for fully connected networks, run by an emulator of CUDA on this processor."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from cuda_settle_cases import (
    Device,
    Emulator,
    Found,
    Network,
    Solve,
    arguments,
    compiled,
    compiler,
    native,
    network,
    settle_emulator,
)
from trajectories import whole_trajectory

from lmser_kernels import _library

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(compiler() is None, reason="a C++ compiler builds the emulator; there is none"),
]

HERE = Path(__file__).parent / "cuda_emulator"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return settle_emulator(tmp_path_factory.getbasetemp())


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


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "sigmoid", "leaky_sigmoid"])
def test_activations(emulator: Emulator, activation: str) -> None:
    net = network((9, 6, 4), 3, gain=1.2)
    how = Solve(activation=activation, max_steps=3)
    same(emulator.settle(net, how, Device(cluster=2, group=3)), native(net, how))


@pytest.mark.parametrize("group", [1, 2, 3, 5])
def test_float32_in_every_tile(emulator: Emulator, group: int) -> None:
    net = network((33, 21, 6), 5, evidence="some").to(torch.float32)
    how = Solve(theta=0.05, max_steps=6, readouts=True)
    found = emulator.settle(net, how, Device(group=group, cluster=2, seed=group))
    assert emulator.plan["tile"] == {1: 1, 2: 2, 3: 4, 5: 8}[group]
    same(found, native(net.to(torch.float64), how), 1e-5)


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("seed", [0, 3])
def test_every_sample_stops_by_itself(emulator: Emulator, order: str, seed: int) -> None:
    net = network((13, 9, 6), 7, evidence="some")
    how = Solve(order=order, theta=0.03, max_steps=30, per_sample=True, readouts=True)
    found = emulator.settle(net, how, Device(cluster=2, group=3, seed=seed))
    assert len(found.steps.unique()) > 2
    same(found, native(net, how))


@pytest.mark.parametrize("per_sample", [False, True])
def test_one_readout_is_the_last(emulator: Emulator, per_sample: bool) -> None:
    net = network((13, 9, 6), 5, evidence="some")
    how = Solve(theta=0.03, max_steps=30, per_sample=per_sample)
    same(emulator.settle(net, how, Device()), native(net, how))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
def test_keeps_the_states_of_every_update(emulator: Emulator, order: str, half: bool) -> None:
    net = network((13, 9, 6, 4), 5, evidence="some").to(torch.float32 if half else torch.float64)
    how = Solve(order=order, theta=0.03, max_steps=30, keep=True, half=half)
    found, wanted = emulator.settle(net, how, Device(cluster=2)), native(net, how)
    assert found.trajectory.dtype == wanted.trajectory.dtype
    tolerance = 2.0**-8 if half else 1e-12  # one rounding apart
    states = whole_trajectory(arguments(net, how), int(wanted.steps)).to(wanted.trajectory.dtype)
    torch.testing.assert_close(found.trajectory, states, rtol=tolerance, atol=1e-5 if half else 0)
    same(found, wanted, 1e-5 if half else 1e-12)


def test_stops_where_the_largest_change_of_all_groups_is_small(emulator: Emulator) -> None:
    """One sample far from rest keeps the others going."""
    net = network((13, 9, 6), 6)
    how = Solve(theta=0.02, max_steps=50)
    alone = [
        int(native(dataclasses.replace(net, states=[h[i : i + 1] for h in net.states]), how).steps)
        for i in range(6)
    ]
    found = emulator.settle(net, how, Device(group=1, seed=4))
    assert int(found.steps) == max(alone)
    assert min(alone) < max(alone)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("per_sample", [False, True])
def test_what_is_not_finite_stays_in_its_sample(emulator: Emulator, value: float, per_sample: bool) -> None:
    net = network((7, 5), 3)
    net.states[0][1, 2] = value
    how = Solve(activation="relu", theta=0.01, max_steps=5, per_sample=per_sample)
    found, wanted = emulator.settle(net, how, Device(cluster=2)), native(net, how)
    for a, b in zip(found.states, wanted.states, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
        assert bool(a[[0, 2]].isfinite().all())
    torch.testing.assert_close(found.change, wanted.change, equal_nan=True)
    assert torch.equal(found.steps, wanted.steps)


def test_the_order_of_the_threads_changes_no_bit(emulator: Emulator) -> None:
    net = network((13, 9, 6), 5).to(torch.float32)
    how = Solve(theta=0.05, max_steps=6, readouts=True)
    first = emulator.settle(net, how, Device(cluster=2, seed=0))
    for seed in (1, 2):
        found = emulator.settle(net, how, Device(cluster=2, seed=seed))
        assert all(torch.equal(a, b) for a, b in zip(found.states, first.states, strict=True))
        assert torch.equal(found.readouts, first.readouts)


def test_an_adjoint_of_nothing_ends_at_once(emulator: Emulator) -> None:
    net = network((6, 4), 3)
    zeros = [torch.zeros_like(h) for h in net.states]
    found = emulator.adjoint(net, Solve(max_steps=9), Device(), zeros, None, net.states[0])
    assert (int(found.steps), float(found.change)) == (1, 0.0)
    assert all(bool((h == 0).all()) for h in found.states)


def test_without_a_barrier_the_emulator_sees_wrong_states(tmp_path: Path) -> None:
    """The tests above can fail: the same kernel without the meeting after an update is found out."""
    root = HERE.parent.parent
    for part in ("csrc/cuda", "csrc/cpu", "tests/cuda_emulator"):
        shutil.copytree(root / part, tmp_path / part)
    shutil.copy(root / "csrc/activation.h", tmp_path / "csrc/activation.h")
    kernel = tmp_path / "csrc/cuda/settle_kernel.cuh"
    text = kernel.read_text()
    meeting = "if (u.sync) settle_meet_cluster(a);"
    assert meeting in text
    kernel.write_text(text.replace(meeting, ""))
    broken = Emulator(compiled(tmp_path / "tests/cuda_emulator/settle.cpp", tmp_path / "broken.so"))
    net, how = network((13, 9, 6), 5), Solve()
    wrong = broken.settle(net, how, Device(seed=1))
    assert any(
        not torch.allclose(a, b, rtol=1e-6)
        for a, b in zip(wrong.states, native(net, how).states, strict=True)
    )


# the layout


def plan(sizes: list[int], samples: int, itemsize: int = 4, **how: object) -> dict[str, object]:
    given = {
        "up_down": True,
        "together": True,
        "shared_bytes": 227 * 1024,
        "clusters": [132, 66, 32, 16],
        **how,
    }
    return _library.module.settle_persistent_plan(sizes, samples, itemsize, **given)


@pytest.mark.parametrize("samples", [1, 64, 128])
def test_weights_of_fban_stay_on_chip(samples: int) -> None:
    found = plan([812, 200, 50], samples)
    assert (found["fits"], found["cluster"], found["streamed_weight_bytes"]) == (True, 8, 0)
    assert found["shared_bytes"] <= 227 * 1024


def test_one_stop_for_all_needs_all_groups_at_once() -> None:
    assert plan([812, 200, 50], 250)["clusters"] <= 16
    assert not plan([812, 200, 50], 100_000)["fits"]
    alone = plan([812, 200, 50], 100_000, together=False)
    assert alone["fits"]
    assert alone["clusters"] * alone["samples_per_cluster"] >= 100_000


def test_without_clusters_one_block_takes_a_group() -> None:
    found = plan([812, 200, 50], 64, shared_bytes=163 * 1024, clusters=[108])
    assert (found["fits"], found["cluster"], found["clusters"]) == (True, 1, 64)
    assert found["shared_bytes"] <= 163 * 1024


@pytest.mark.parametrize(
    ("sizes", "samples"), [([5], 3), ([5, 0], 3), ([5, 4], 0), ([4] * 9, 3), ([60_000, 10], 3)]
)
def test_what_does_not_fit(sizes: list[int], samples: int) -> None:
    assert not plan(sizes, samples)["fits"]
    assert not _library.module.settle_persistent_fits(sizes, samples, 4, True, True, 227 * 1024, [132])


def test_the_plan_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="itemsize is 2; expected 4 or 8"):
        plan([5, 4], 3, itemsize=2)
    with pytest.raises(ValueError, match="clusters has 0 values"):
        plan([5, 4], 3, clusters=[])


def test_fban_as_a_gpu_would_hold_it(emulator: Emulator) -> None:
    """812-200-50 in a cluster of eight blocks, its weights on chip: places in memory that small networks do not reach."""
    net = network((812, 200, 50), 4, evidence="some").to(torch.float32)
    how = Solve(max_steps=2)
    found = emulator.settle(net, how, Device(cluster=8, group=4, threads=96, shared_bytes=227 * 1024, seed=2))
    assert emulator.plan["streamed_bytes"] == 0
    same(found, native(net.to(torch.float64), how), 1e-4)


@pytest.mark.parametrize("threads", [32, 512])
def test_any_number_of_warps(emulator: Emulator, threads: int) -> None:
    net = network((13, 9, 6), 5, evidence="some")
    how = Solve(theta=0.03, max_steps=4, readouts=True)
    same(emulator.settle(net, how, Device(cluster=2, group=3, threads=threads, seed=8)), native(net, how))


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_planned_layout(emulator: Emulator, per_sample: bool) -> None:
    net = network((13, 9, 6), 10, evidence="some")
    how = Solve(theta=0.03, max_steps=5, per_sample=per_sample, readouts=True)
    same(emulator.settle(net, how, Device(cluster=0, groups=3)), native(net, how))
    assert (emulator.plan["group"], emulator.plan["groups"]) == (4, 3)
