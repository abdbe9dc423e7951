"""The settling kernels on a GPU, where there is one: what the emulator showed, on the device itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cuda_settle_cases import Found, Network, Solve, image, native, network
from cuda_settle_cases import arguments as processor_arguments
from torch import Tensor
from trajectories import whole_trajectory

from lmser_kernels import _library, settle

pytestmark = [
    pytest.mark.native,
    pytest.mark.device,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and "settle" in _library.cuda_operators),
        reason="needs a GPU and the library compiled by nvcc",
    ),
]

NETWORKS = {
    "two layers": ((6, 9), 3, {}),
    "three layers": ((13, 9, 6), 5, {"evidence": "some"}),
    "wholly held": ((70, 21, 5), 3, {"evidence": "all"}),
    "five layers, blended": ((5, 8, 1, 7, 3), 2, {"evidence": "some", "strength": 0.6, "external": True}),
    "free reverse weights, no biases": ((11, 6, 4), 40, {"reverse": True, "biases": False}),
    "digits": ((812, 200, 50), 64, {"evidence": "some"}),
    "digits, a large batch": ((812, 200, 50), 250, {"evidence": "some"}),
    "more samples than blocks": ((25, 50), 3000, {"evidence": "some"}),
}
WAYS = {
    "a number of sweeps": Solve(max_steps=5, readouts=True),
    "one stop": Solve(theta=0.05, max_steps=40, readouts=True),
    "one stop, the last readout": Solve(theta=0.05, max_steps=40),
    "a stop for each sample": Solve(theta=0.05, max_steps=40, per_sample=True, readouts=True),
    "kept": Solve(theta=0.05, max_steps=12, keep=True),
}


def placed(net: Network, device: str, dtype: torch.dtype = torch.float64) -> Network:
    def there(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(device, dtype)

    lists = ([there(t) for t in part] for part in (net.states, net.weights, net.biases, net.reverse))
    return Network(*lists, there(net.evidence), there(net.hold), there(net.external))


def arguments(net: Network, how: Solve) -> tuple[object, ...]:
    held = [None if t is None else image(t) for t in (net.evidence, net.hold, net.external)]
    return (
        [image(h) for h in net.states], [image(w) for w in net.weights], [image(w) for w in net.reverse],
        [net.states[0].new_empty(0) if b is None else b for b in net.biases], *held, how.activation, how.slope, how.order,
        how.theta, how.max_steps, how.per_sample, how.keep, how.half, how.readouts,
    )  # fmt: skip


def on_device(net: Network, how: Solve) -> Found:
    states, readouts, trajectory, steps, change = torch.ops.lmser.settle_persistent(*arguments(net, how))
    return Found([h[:, :, 0, 0] for h in states], readouts[..., 0, 0], trajectory, steps, change)


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_operator_of_the_processor(name: str, way: str, order: str) -> None:
    sizes, samples, options = NETWORKS[name]
    net = placed(network(sizes, samples, **options), "cpu")
    how = dataclasses.replace(WAYS[way], order=order)
    found, wanted = on_device(placed(net, "cuda"), how), native(net, how)
    close = {"rtol": 1e-9, "atol": 1e-9}
    assert torch.equal(found.steps.cpu(), wanted.steps)
    for a, b in zip(found.states, wanted.states, strict=True):
        torch.testing.assert_close(a.cpu(), b, **close)
    torch.testing.assert_close(found.readouts.cpu(), wanted.readouts, **close)
    torch.testing.assert_close(found.change.cpu(), wanted.change, **close)
    if how.keep and options.get("evidence") != "all":  # under a wholly held layer not every update is made
        states = whole_trajectory(processor_arguments(net, how), int(wanted.steps))
        torch.testing.assert_close(found.trajectory.cpu(), states, **close)


@pytest.mark.parametrize("samples", [1, 2, 17, 64, 128, 250, 1000])
def test_float32_in_every_tile(samples: int) -> None:
    net, how = placed(network((812, 200, 50), samples, evidence="some"), "cpu"), Solve(max_steps=20)
    found = on_device(placed(net, "cuda", torch.float32), how)
    for a, b in zip(found.states, native(net, how).states, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-4)


def test_the_same_bits_again() -> None:
    net = placed(network((812, 200, 50), 64, evidence="some"), "cuda", torch.float32)
    first, second = (on_device(net, Solve(theta=0.01, max_steps=40, readouts=True)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.states, second.states, strict=True))
    assert torch.equal(first.readouts, second.readouts)


@pytest.mark.parametrize("theta", [0.0, 0.05])
def test_in_a_cuda_graph(theta: float) -> None:
    net = placed(network((812, 200, 50), 64, evidence="some"), "cuda", torch.float32)
    how = Solve(theta=theta, max_steps=30)
    wanted = on_device(net, how)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = on_device(net, how)
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found.steps, wanted.steps)
    assert all(torch.equal(a, b) for a, b in zip(found.states, wanted.states, strict=True))


def test_two_solves_on_two_streams() -> None:
    net = placed(network((812, 200, 50), 64), "cuda", torch.float32)
    how = Solve(theta=0.01, max_steps=60)
    wanted = on_device(net, how)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(on_device(net, how))
    torch.cuda.synchronize()
    for one in found:
        assert all(torch.equal(a, b) for a, b in zip(one.states, wanted.states, strict=True))


@pytest.mark.parametrize("backward", ["bptt", "implicit"])
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("evidence", ["none", "some", "all"])
def test_gradients_are_those_of_the_processor(evidence: str, order: str, backward: str) -> None:
    """Through the public function, which takes these kernels for this network."""
    net = placed(network((33, 21, 9), 12, evidence=evidence), "cpu")
    found = {}
    for device in ("cpu", "cuda"):
        there = placed(net, device)
        leaves = [image(h) for h in there.states], [image(w) for w in there.weights], there.biases
        for t in (*leaves[0], *leaves[1], *leaves[2]):
            t.requires_grad_()
        settled = settle(
            *leaves, evidence=None if there.evidence is None else image(there.evidence),
            mask=None if there.hold is None else image(there.hold) > 0, order=order,
            theta=0.02 if backward == "bptt" else 1e-10, max_steps=200, backward=backward, readouts=True, impl="native",
        )  # fmt: skip
        loss = sum(h.square().sum() for h in settled.states) + settled.readouts.sin().sum()
        wanted = [*leaves[1], *leaves[2], *(leaves[0] if backward == "bptt" else [])]
        found[device] = torch.autograd.grad(loss, wanted, allow_unused=True)
    for a, b in zip(found["cuda"], found["cpu"], strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-7)
