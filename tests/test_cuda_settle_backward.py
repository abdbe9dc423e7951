"""The backward passes of settling by the CUDA kernels, which an emulator runs, and the products around them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from cuda_settle_cases import (
    Device,
    Emulator,
    Found,
    Network,
    Solve,
    compiler,
    image,
    native,
    network,
    settle_emulator,
)
from torch import Tensor

from lmser_kernels import _library
from lmser_kernels.settle import persistent, persistent_backward

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(compiler() is None, reason="a C++ compiler builds the emulator; there is none"),
]

DEVICE = Device(cluster=2, group=3, seed=5)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return settle_emulator(tmp_path_factory.getbasetemp())


@pytest.fixture
def emulated(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The operators that have CUDA kernels alone, run by the emulator for CPU tensors."""

    def flat(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.flatten(1) if t.dim() == 4 else t

    def net_of(
        states: list[Tensor], weights: list[Tensor], reverse: list[Tensor], *held: Tensor | None
    ) -> Network:
        return Network(
            list(map(flat, states)), [w[:, :, 0, 0] for w in weights], [None] * len(states),
            [w[:, :, 0, 0] for w in reverse], *map(flat, held),
        )  # fmt: skip

    def adjoint(
        grads, grad_readout, states, weights, reverse, hold, readout, activation, slope, order, theta, steps
    ):
        how = Solve(activation, slope, order, theta, steps)
        given = net_of(states, weights, reverse, None, hold)
        given.states[0] = flat(readout)
        found = emulator.adjoint(
            given, how, DEVICE, list(map(flat, grads)), flat(grad_readout), flat(readout)
        )
        return [image(a) for a in found.states], image(found.readouts[0]), found.steps, found.change

    def back(
        grads, grad_readouts, states, weights, reverse, evidence, hold, readouts, trajectory, activation, slope, order,
        want_states, want_evidence,
    ):  # fmt: skip
        given = net_of(states, weights, reverse, evidence, hold)
        found = Found([], readouts[..., 0, 0], trajectory, torch.empty(0), torch.empty(0))
        shown = grad_readouts[..., 0, 0] if grad_readouts.numel() else None
        made = emulator.back(
            given, Solve(activation, slope, order), DEVICE, found, list(map(flat, grads)), shown
        )
        return [image(h) for h in made.states], made.up, made.down, made.visible, image(made.evidence)

    library = torch.library.Library("lmser", "IMPL")
    library.impl("settle_adjoint_persistent", adjoint, "CPU")
    library.impl("settle_backward_persistent", back, "CPU")
    monkeypatch.setattr(persistent, "obstacle", lambda *_, **__: None)
    yield emulator
    library._destroy()


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.stride() == b.stride() or a.numel() < 2 or 1 in a.shape
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


VARIANTS = {
    "plain": {},
    "some evidence": {"evidence": "some"},
    "blended": {"evidence": "some", "strength": 0.6, "external": True},
    "all evidence": {"evidence": "all"},
    "free reverse weights": {"reverse": True},
}


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("sizes", [(7, 5), (11, 8, 5), (6, 9, 4, 5, 3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_back_through_the_sweeps(
    emulated: Emulator, order: str, sizes: tuple[int, ...], variant: str
) -> None:
    check_back(emulated, network(sizes, 4, **VARIANTS[variant]), Solve(order=order, max_steps=3, keep=True))


def check_back(
    emulator: Emulator, net: Network, how: Solve, *, all_grads: bool = True, tolerance: float = 1e-10
) -> None:
    """The gradients are those of `settle_backward` on this processor."""
    # Each pass has the trajectory of its own solve: of a wholly held network this processor keeps less.
    solved, wanted = emulator.settle(net, how, DEVICE), native(net, how)
    grads = [torch.randn_like(h)[:, :, None, None] for h in net.states]
    shown = torch.randn_like(solved.readouts)[..., None, None]
    if not all_grads:
        grads = [*([net.states[0].new_empty(0)] * (len(grads) - 1)), grads[-1]]
        shown = net.states[0].new_empty(0)
    ones, none = [1] * (2 * len(net.weights)), [0] * (2 * len(net.weights))
    held = [None if t is None else image(t) for t in (net.evidence, net.hold)]
    gradients = [
        backward(
            grads, shown, [image(h) for h in net.states], [image(w) for w in net.weights],
            [image(w) for w in net.reverse], *held, net.external is not None, found.readouts[..., None, None],
            found.trajectory, ones, none, how.activation, how.slope, how.order, [True] * 5,
        )
        for backward, found in (
            (persistent_backward.settle_backward, solved), (torch.ops.lmser.settle_backward.default, wanted),
        )
    ]  # fmt: skip
    close(*gradients, tolerance)


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("sweeps", [1, 2, 5])
def test_where_nothing_flows_there_is_no_gradient(emulated: Emulator, order: str, sweeps: int) -> None:
    """The final state of the top layer alone is asked about."""
    net = network((9, 6, 5), 4, evidence="some")
    check_back(emulated, net, Solve(order=order, max_steps=sweeps, keep=True), all_grads=False)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "leaky_sigmoid"])
def test_activations(emulated: Emulator, activation: str) -> None:
    net = network((9, 6, 5), 3, gain=1.2)
    check_back(emulated, net, Solve(activation=activation, max_steps=3, keep=True))


@pytest.mark.parametrize("half", [False, True])
def test_float32_and_a_trajectory_in_bfloat16(emulated: Emulator, half: bool) -> None:
    net = network((9, 6, 5), 3, evidence="some").to(torch.float32)
    check_back(emulated, net, Solve(max_steps=3, keep=True, half=half), tolerance=0.02 if half else 1e-5)


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("variant", ["plain", "some evidence", "free reverse weights"])
def test_adjoint_of_a_fixed_point(emulated: Emulator, order: str, variant: str) -> None:
    net = network((11, 8, 5), 4, **VARIANTS[variant])
    fixed = native(net, Solve(order=order, theta=1e-12, max_steps=400))
    grads = [image(torch.randn_like(h)) for h in fixed.states]
    grads[1] = torch.empty(0, dtype=torch.float64)
    arguments = (
        grads, image(torch.randn_like(fixed.readouts[0])), [image(h) for h in fixed.states],
        [image(w) for w in net.weights], [image(w) for w in net.reverse],
        None if net.evidence is None else image(net.evidence), None if net.hold is None else image(net.hold), True,
        image(fixed.readouts[0]), [1] * 4, [0] * 4, "tanh", 0.2, order, 1e-9, 60, [False, True, True, True, True],
    )  # fmt: skip
    found, steps, change = persistent_backward.settle_adjoint(*arguments)
    wanted, wanted_steps, wanted_change = torch.ops.lmser.settle_adjoint(*arguments)
    close(found, wanted)
    assert int(steps) == int(wanted_steps)
    torch.testing.assert_close(change, wanted_change, rtol=1e-3, atol=0)


def test_only_what_is_asked_for(emulated: Emulator) -> None:
    net = network((7, 5), 2)
    found = emulated.settle(net, Solve(max_steps=2, keep=True), DEVICE)
    made = persistent_backward.settle_backward(
        [image(torch.ones_like(h)) for h in net.states], net.states[0].new_empty(0), [image(h) for h in net.states],
        [image(w) for w in net.weights], [], None, None, False, found.readouts[..., None, None], found.trajectory,
        [1, 1], [0, 0], "tanh", 0.2, "up_down", [False] * 5,
    )  # fmt: skip
    assert [g.numel() for g in made] == [0] * 7


def test_the_order_of_the_threads_changes_no_bit(emulator: Emulator) -> None:
    net = network((9, 6, 5), 4, evidence="some").to(torch.float32)
    how = Solve(max_steps=3, keep=True)
    found = emulator.settle(net, how, DEVICE)
    grads, shown = [torch.randn_like(h) for h in net.states], torch.randn_like(found.readouts)
    first, second = (
        emulator.back(net, how, dataclasses.replace(DEVICE, seed=seed), found, grads, shown)
        for seed in (0, 9)
    )
    for a, b in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("name", _library._CHOOSING)
def test_what_chooses_takes_the_arguments_of_the_operator(name: str) -> None:
    room = importlib.import_module(f"lmser_kernels.{_library._CHOOSING[name]}")
    schema = getattr(torch.ops.lmser, name).default._schema
    assert list(inspect.signature(getattr(room, name)).parameters) == [a.name for a in schema.arguments]


@pytest.mark.parametrize("name", ["settle_backward", "settle_adjoint"])
def test_other_networks_take_tritons_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent, "obstacle", lambda *_, **__: "it is not fully connected")
    taken = []
    monkeypatch.setattr(
        torch.ops, "lmser_triton", SimpleNamespace(**{name: lambda *given: taken.append(given)})
    )
    function = getattr(persistent_backward, name)
    arguments = tuple(range(len(inspect.signature(function).parameters)))
    function(*arguments)
    assert taken == [arguments]
