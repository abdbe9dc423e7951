"""Attractor networks: energy, evidence, fixed points, gradients and the forms of their input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmser import CBAN, FBAN, attractor_loss
from lmser.models.attractor import AttractorNetwork
from lmser.models.barrier import barrier
from lmser.training import SGDL2
from lmser_kernels import settle, settle_step

DOUBLE = {"dtype": torch.float64}
SHAPES = {
    "FBAN": (lambda **k: FBAN((12, 9, 7, 5), **k), (4, 12)),
    "one hidden layer": (lambda **k: FBAN((12, 9), **k), (4, 12)),
    "CBAN": (lambda **k: CBAN((2, 5, 6), pools=(1, 1), **k), (3, 2, 5, 7)),
    "pooled CBAN": (lambda **k: CBAN((2, 5, 6, 4), pools=(1, 2, 2), **k), (3, 2, 8, 12)),
    "pooled at once": (lambda **k: CBAN((2, 5, 6), pools=((2, 3), (2, 1)), kernel_size=5, **k), (3, 2, 8, 6)),
}


def made(shape: str, **settings) -> tuple[AttractorNetwork, Tensor, Tensor]:
    """A network of large weights, evidence, and a mask of it."""
    make, size = SHAPES[shape]
    network = make(**{"init": 0.4, **DOUBLE, **settings})
    for bias in network.biases:
        torch.nn.init.normal_(bias, 0.0, 0.3)
    y = torch.rand(size, dtype=network.biases[0].dtype) * 1.9 - 0.95
    return network, y, torch.rand(size) < 0.4


def random_states(network: AttractorNetwork, y: Tensor) -> list[Tensor]:
    found = network.complete(y, max_steps=1)
    return [torch.rand_like(h) * 1.8 - 0.9 for h in found.states]


def energies(network: AttractorNetwork, y: Tensor, mask: Tensor, sweeps: int, energy=None) -> Tensor:
    """The energy after 0, 1, ... sweeps from random states, ``(sweeps + 1, N)``."""
    energy = energy or network.energy
    states = random_states(network, y)
    states[0] = torch.where(mask, y, states[0])
    with torch.no_grad():
        found = [energy(states)]
        for _ in range(sweeps):
            states = network.complete(y, mask, states=states, theta=0.0, max_steps=1).states
            found.append(energy(states))
    return torch.stack(found)


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("activation", ["tanh", "leaky_sigmoid", "sigmoid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_energy_never_rises(shape, activation, order):
    for share in (0.0, 0.4, 0.9):
        network, y, _ = made(shape, activation=activation, order=order, init=0.15)
        if activation == "sigmoid":
            y = y.abs()
        mask = torch.rand(y.shape) < share
        found = energies(network, y, mask, 25)
        if activation == "sigmoid":
            found = found[1:]  # the random start is outside of its range
        steps = found.diff(dim=0)
        rounding = 1e-12 * found.abs().amax()
        assert found.isfinite().all()
        assert (steps <= rounding).all()
        assert (found[-1] < found[0] - 1e-3).any()


def test_energy_rises_in_some_asymmetric_network():
    network, y, mask = made("FBAN", symmetric=False, init=0.6)
    assert energies(network, y, mask, 25).diff(dim=0).max() > 0.1


def test_energy_of_a_pooled_network_rises_without_its_layer_weights():
    """Why the energy differs from Eq. (5) as printed."""
    network, y, mask = made("pooled CBAN", init=0.15)

    def as_printed(states):
        total = 0
        for layer, h in enumerate(states):
            local = barrier(h) - network.biases[layer].view(1, -1, 1, 1) * h
            if layer > 0:
                below = F.avg_pool2d(states[layer - 1], network.pools[layer - 1])
                local = local - h * F.conv2d(below, network.weights[layer - 1], padding=1)
            total = total + local.flatten(1).sum(1)
        return total.detach()

    assert energies(network, y, mask, 25, as_printed).diff(dim=0).max() > 0.01


@pytest.mark.parametrize("symmetric", [True, False])
def test_energy_of_a_dense_network_is_eq_2(symmetric):
    network, y, _ = made("FBAN", symmetric=symmetric)
    states = random_states(network, y)
    sizes = (12, 9, 7, 5)
    ends = [sum(sizes[:i]) for i in range(5)]
    matrix = torch.zeros(33, 33, dtype=torch.float64)
    for edge in range(3):
        low, middle, high = ends[edge], ends[edge + 1], ends[edge + 2]
        down = network.weights if symmetric else network.reverse_weights
        matrix[middle:high, low:middle] = network.weights[edge].detach()[:, :, 0, 0]
        matrix[low:middle, middle:high] = down[edge].detach()[:, :, 0, 0].T
    x = torch.cat([h.flatten(1) for h in states], 1)
    bias = torch.cat([b.detach() for b in network.biases])
    expected = -0.5 * ((x @ matrix) * x).sum(1) - x @ bias + barrier(x).sum(1)
    torch.testing.assert_close(network.energy(states).detach(), expected)


@pytest.mark.parametrize("activation", ["tanh", "leaky_sigmoid"])
@pytest.mark.parametrize("shape", ["FBAN", "pooled CBAN"])
def test_a_contraction_reaches_one_point_from_every_start(shape, activation):
    network, y, mask = made(shape, activation=activation)
    scale = 0.9 / network.norm()
    with torch.no_grad():
        for weight in network.weights:
            weight.mul_(scale)
    assert 0.5 < network.lipschitz() < 1
    assert network.converges
    y, mask = (t[:1].expand(100, *t.shape[1:]).contiguous() for t in (y, mask))
    with torch.no_grad():
        found = network.complete(
            y, mask, states=random_states(network, y), theta=1e-13, max_steps=1000, per_sample=True
        )
    assert found.steps.shape == (100,)
    assert (found.change < 1e-13).all()
    for h in found.states:
        torch.testing.assert_close(h, h[:1].expand_as(h), rtol=0, atol=1e-11)


def test_appendix_c_bounds_states_but_does_not_make_the_fixed_point_unique():
    """alpha ||W|| = 0.4 < 1 with a slope of 1 at zero: 0 is unstable, and there is a fixed point on either side."""
    network = FBAN((1, 1), activation="leaky_sigmoid", slope=0.2, init=0.0, **DOUBLE)
    torch.nn.init.constant_(network.weights[0], 2.0)
    assert network.contraction() == pytest.approx(0.4)
    assert network.lipschitz() == pytest.approx(2.0)
    assert network.converges
    start = [torch.tensor([[[[0.1]]], [[[-0.1]]], [[[50.0]]]], dtype=torch.float64)] * 2
    nothing = torch.zeros(3, 1, dtype=torch.bool)
    found = network.complete(torch.zeros(3, 1, **DOUBLE), nothing, states=start, theta=1e-12, max_steps=500)
    torch.testing.assert_close(
        network.read(found).detach(), torch.tensor([[4 / 3], [-4 / 3], [4 / 3]], dtype=torch.float64)
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", ["FBAN", "CBAN", "pooled CBAN"])
def test_norm_is_the_largest_row_sum_of_the_drives(shape, symmetric):
    network, y, _ = made(shape, symmetric=symmetric, max_steps=1)
    if shape != "FBAN":
        y = torch.zeros(1, 2, 32, 32, dtype=torch.float64)  # so that every layer has units away from borders
    states = [h[:1].detach() for h in network.complete(y[:1]).states]
    if shape == "FBAN":
        states[0] = states[0].view(1, -1, 1, 1)
    down = network.weights if symmetric else network.reverse_weights
    rows = []
    for layer in range(len(states)):
        below, above = layer > 0, layer < network.depth
        # the drives of absolute weights by all-one states are the row sums
        drive, _ = settle_step(
            torch.ones_like(states[layer - 1]) if below else None,
            torch.ones_like(states[layer + 1]) if above else None,
            network.weights[layer - 1].abs() if below else None,
            down[layer].abs() if above else None,
            padding=network.padding,
            pool=network.pools[layer - 1] if below else 1,
            upsample=network.pools[layer] if above else 1,
            activation="identity",
        )
        rows.append(drive.detach().max())
    assert network.norm() == pytest.approx(float(max(rows)), rel=1e-12)
    assert network.contraction() == 0
    assert network.lipschitz() == network.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_clamped_units_never_move(shape):
    network, y, mask = made(shape, dtype=torch.float32)
    broken = torch.where(mask, y, math.nan)
    for steps in (1, 2, 5):
        found = network.complete(broken, mask, theta=0.0, max_steps=steps)
        assert torch.equal(network.read(found)[mask], y[mask])
        assert all(h.isfinite().all() for h in found.states)
        assert int(found.steps) == steps
    assert torch.equal(network.read(network.complete(y)), y)


@pytest.mark.parametrize("shape", SHAPES)
def test_free_units_end_at_what_they_would_take(shape):
    network, y, mask = made(shape)
    found = network.complete(y, mask, readouts=True, theta=1e-11, max_steps=3000)
    assert float(found.change) < 1e-11
    assert len(found.readouts) == int(found.steps)
    torch.testing.assert_close(
        network.read(found), torch.where(mask, y, network.unclamped(found)), rtol=0, atol=1e-9
    )


class TestEvidence:
    """Appendix A."""

    def fixed(self, mode: str, strength: float = 1.0, **settings):
        torch.manual_seed(5)
        network, y, mask = made(
            "FBAN", evidence=mode, strength=strength, theta=1e-12, max_steps=2000, init=0.2, **settings
        )
        return network, y, mask, network.complete(y, mask, readouts=True)

    def net_input(self, network, found):
        """Of the visible units, from the first hidden layer as it settled."""
        return found.states[1].flatten(1) @ network.weights[0][:, :, 0, 0] + network.biases[0]

    def test_init_starts_there_and_leaves(self):
        network, y, mask, found = self.fixed("init")
        first = network.complete(y, mask, readouts=True, max_steps=1)
        start = [torch.where(mask, y, 0).view(4, 12, 1, 1)]
        start += [y.new_zeros(4, n, 1, 1) for n in (9, 7, 5)]
        expected = settle(start, list(network.weights), list(network.biases), max_steps=1)
        torch.testing.assert_close(network.read(first), expected.states[0].flatten(1))
        torch.testing.assert_close(network.read(found), torch.tanh(self.net_input(network, found)))
        assert (network.read(found)[mask] - y[mask]).abs().max() > 0.1

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_blend(self, share):
        network, y, mask, found = self.fixed("blend", share)
        free = torch.tanh(self.net_input(network, found))
        torch.testing.assert_close(network.unclamped(found), free)
        torch.testing.assert_close(
            network.read(found), torch.where(mask, share * y + (1 - share) * free, free)
        )
        twin = self.fixed("clamp" if share == 1 else "init")[3]
        assert torch.equal(found.states[0], twin.states[0]) == (share != 0.3)

    def test_bias(self):
        network, y, mask, found = self.fixed("bias", 0.7)
        expected = torch.tanh(self.net_input(network, found) + 0.7 * torch.where(mask, y, 0))
        torch.testing.assert_close(network.read(found), expected)
        torch.testing.assert_close(network.unclamped(found), expected)
        first = network.complete(y, mask, max_steps=1)
        hidden = torch.tanh(torch.where(mask, y, 0) @ network.weights[0][:, :, 0, 0].T + network.biases[1])
        assert first.states[1].shape == (4, 9, 1, 1)
        one = FBAN((12, 9), evidence="bias", strength=0.7, **DOUBLE)
        one.load_state_dict({k: v for k, v in network.state_dict().items() if k in one.state_dict()})
        torch.testing.assert_close(one.complete(y, mask, max_steps=1).states[1].flatten(1), hidden)

    def test_bias_lowers_its_energy(self):
        network, y, mask, _ = self.fixed("bias", 0.7)
        external = 0.7 * torch.where(mask, y, 0)
        found = energies(network, y, mask, 20, lambda states: network.energy(states, external=external))
        assert (found.diff(dim=0) <= 1e-12 * found.abs().amax()).all()

    def test_replicate(self):
        network, y, mask, found = self.fixed("replicate")
        assert network.weights[0].shape == (9, 24, 1, 1)
        held, free = found.states[0].unbind(1)
        assert torch.equal(held, torch.where(mask, y, 0))
        torch.testing.assert_close(network.read(found), free)
        torch.testing.assert_close(free, torch.tanh(self.net_input(network, found))[:, 12:])
        torch.testing.assert_close(network.unclamped(found), free)
        assert network.trajectory(found).shape == (int(found.steps), 4, 12)

    def test_replicate_of_images(self):
        network, y, mask = made("pooled CBAN", evidence="replicate")
        found = network.complete(y, mask, readouts=True)
        assert found.states[0].shape == (3, 4, 8, 12)
        assert torch.equal(found.states[0][:, :2], torch.where(mask, y, 0))
        torch.testing.assert_close(network.read(found), found.states[0][:, 2:])
        torch.testing.assert_close(network.unclamped(found), network.read(found))
        assert network.dream(found).shape == y.shape
        again = network.complete(y, mask, states=found.states, max_steps=1)
        assert float(again.change) < 0.02

    @pytest.mark.parametrize(
        ("settings", "error", "match"),
        [
            ({"evidence": "hold"}, ValueError, "evidence: expected one of 'clamp', .* got 'hold'"),
            (
                {"strength": 0.5},
                ValueError,
                "strength: is for evidence='blend' and 'bias', got 0.5 with 'clamp'",
            ),
            ({"evidence": "blend", "strength": 1.5}, ValueError, "strength: expected a share"),
            ({"evidence": "bias", "strength": math.inf}, ValueError, "strength: expected a finite number"),
            ({"evidence": "bias", "strength": "1"}, TypeError, "strength: expected a number, got '1'"),
        ],
    )
    def test_refuses(self, settings, error, match):
        with pytest.raises(error, match=match):
            FBAN((4, 3), **settings)


def test_fully_connected_is_the_one_pixel_case():
    wide, y, mask = made("FBAN")
    deep = CBAN((12, 9, 7, 5), pools=(1, 1, 1), kernel_size=1, **DOUBLE)
    deep.load_state_dict(wide.state_dict())
    found = wide.complete(y, mask)
    expected = deep.complete(y[:, :, None, None], mask[:, :, None, None])
    torch.testing.assert_close(wide.read(found), deep.read(expected).flatten(1))
    torch.testing.assert_close(wide.energy(found.states), deep.energy(expected.states))
    torch.testing.assert_close(wide.dream(found), deep.dream(expected).flatten(1))


@pytest.mark.parametrize("mode", ["clamp", "replicate"])
def test_any_form_that_flattens(mode):
    network = FBAN((12, 5), evidence=mode, **DOUBLE)
    y, mask = torch.rand(3, 12, dtype=torch.float64), torch.rand(3, 12) < 0.5
    flat = network.complete(y, mask, readouts=True)
    found = network.complete(y.view(3, 1, 3, 4), mask.view(3, 1, 3, 4), readouts=True)
    for name in ("read", "unclamped", "dream"):
        got = getattr(network, name)(found)
        assert got.shape == (3, 1, 3, 4)
        torch.testing.assert_close(got.flatten(1), getattr(network, name)(flat))
    torch.testing.assert_close(network.energy(found.states), network.energy(flat.states))
    torch.testing.assert_close(network.loss(y.view(3, 3, 4), mask.view(3, 3, 4)), network.loss(y, mask))


def test_a_mask_broadcasts():
    network, y, _ = made("pooled CBAN")
    mask = torch.rand(3, 1, 8, 12) < 0.5
    got, expected = network.complete(y, mask), network.complete(y, mask.expand_as(y))
    assert torch.equal(network.read(got), network.read(expected))
    assert got.states[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", ["FBAN", "pooled CBAN"])
def test_implicit_gradient_is_that_of_many_sweeps(shape, symmetric):
    network, y, mask = made(shape, symmetric=symmetric, init=0.07, theta=1e-12, max_steps=400)
    network.adjoint_theta = 1e-12
    grads = []
    for backward in ("bptt", "implicit"):
        found = network.complete(y, mask, readouts=True, backward=backward)
        loss = attractor_loss(network.trajectory(found), y, td="last")
        loss = loss + network.read(found).pow(3).sum() + found.states[-1].square().sum()
        grads.append(torch.autograd.grad(loss, list(network.parameters())))
    for got, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


class TestLoss:
    @pytest.mark.parametrize("kind", ["se", "delta_e", "delta_e_plus"])
    @pytest.mark.parametrize("td", [1.0, 0.5, "last"])
    def test_is_that_of_the_readouts(self, kind, td):
        network, y, mask = made("pooled CBAN", init=0.1)
        found = network.complete(y, mask, readouts=True)
        expected = attractor_loss(found.readouts, y, kind=kind, td=td)
        torch.testing.assert_close(network.loss(y, mask, kind=kind, td=td), expected)

    def test_counts_observed_units_at_their_unclamped_value(self):
        network, y, _ = made("FBAN", init=0.1)
        loss = network.loss(y)  # everything observed
        assert loss > 0.1
        loss.backward()
        assert all(p.grad.abs().max() > 0 for p in network.parameters())

    def test_stationary_share(self):
        network, y, mask = made("FBAN", init=0.1, theta=1e-12, max_steps=400)
        network.adjoint_theta = 1e-12
        parameters = list(network.parameters())

        def loss_and_grads(**settings):
            loss = network.loss(y, mask, **settings)
            return [loss.detach(), *torch.autograd.grad(loss, parameters)]

        transient, at_rest = loss_and_grads(stationary=0.0), loss_and_grads(stationary=1.0)
        last = loss_and_grads(td="last")
        mixed = loss_and_grads(stationary=0.25)
        for a, b, c, d in zip(transient, at_rest, mixed, last, strict=True):
            torch.testing.assert_close(c, 0.75 * a + 0.25 * b, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(b, d, rtol=1e-6, atol=1e-8)
        assert transient[0] != at_rest[0]
        network.backward = "implicit"
        torch.testing.assert_close(loss_and_grads()[0], at_rest[0])

    @pytest.mark.parametrize("share", [0.5, 1.0])
    def test_the_fixed_point_is_sought_from_where_the_sweeps_ended(self, share, monkeypatch):
        network, y, mask = made("pooled CBAN", evidence="init", init=0.1)
        starts = []
        complete = network.complete

        def watched(*args, **kwargs):
            starts.append(kwargs.get("states"))
            return complete(*args, **kwargs)

        monkeypatch.setattr(network, "complete", watched)
        network.loss(y, mask, stationary=share)
        if share == 1:
            assert starts == [None]
        else:
            assert len(starts) == 2
            expected = complete(y, mask).states
            for got, state in zip(starts[1], expected, strict=True):
                torch.testing.assert_close(got, state)
                assert not got.requires_grad

    @pytest.mark.parametrize("stationary", [0.0, 1.0])
    @pytest.mark.parametrize("mode", ["clamp", "blend", "bias", "replicate"])
    @pytest.mark.parametrize("shape", ["FBAN", "pooled CBAN"])
    def test_equals_the_reference(self, shape, mode, stationary, impl):
        strength = 0.6 if mode in ("blend", "bias") else 1.0
        settings = {"evidence": mode, "strength": strength, "init": 0.03, "theta": 1e-11}
        network, y, mask = made(shape, impl=impl, **settings)
        twin = made(shape, impl="reference", **settings)[0]
        twin.load_state_dict(network.state_dict())
        found = []
        for model in (network, twin):
            model.adjoint_theta = 1e-10
            loss = model.loss(y, mask, kind="delta_e", stationary=stationary)
            found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)

    def test_other_evidence_than_the_target(self):
        network, y, mask = made("FBAN", evidence="replicate", init=0.1)
        noisy = y + 0.1
        found = network.complete(noisy, mask, readouts=True)
        expected = attractor_loss(network.trajectory(found), y)
        torch.testing.assert_close(network.loss(y, mask, evidence=noisy), expected)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"stationary": 1.5}, "stationary: expected a share between 0 and 1, got 1.5"),
            ({"evidence": torch.zeros(4, 11)}, r"evidence: expected the target's shape \(4, 12\)"),
            ({"kind": "mse"}, "kind: expected one of"),
            ({"td": 2.0}, "td: expected a number"),
        ],
    )
    def test_refuses(self, change, match):
        network, y, mask = made("FBAN")
        with pytest.raises(ValueError, match=match):
            network.loss(y, mask, **change)


@pytest.mark.parametrize("shape", ["FBAN", "pooled CBAN", "pooled at once"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_dream_is_one_pass_down_from_the_top(shape, symmetric):
    network, y, mask = made(shape, symmetric=symmetric, activation="leaky_sigmoid", slope=0.3)
    found = network.complete(y, mask)
    state = found.states[-1]
    down = network.weights if symmetric else network.reverse_weights
    for edge in range(network.depth - 1, -1, -1):
        state = F.conv_transpose2d(state, down[edge], padding=network.padding)
        state = F.interpolate(state, scale_factor=network.pools[edge])
        z = state + network.biases[edge].view(1, -1, 1, 1)
        state = torch.where(z.abs() > 1, z.sign() * (1 + 0.3 * (z.abs() - 1)), z)
    torch.testing.assert_close(network.dream(found), state.reshape(y.shape))


class TestInitialisation:
    @pytest.mark.parametrize(("name", "exponent"), [("bars", -0.5), ("mnist", -1.0)])
    def test_appendix_d_fully_connected(self, name, exponent):
        network = FBAN((800, 200, 300), init=name)
        stds = [0.1 * (0.5 * a + 0.5 * b + 1) ** exponent for a, b in ((800, 200), (200, 300))]
        for weight, std in zip(network.weights, stds, strict=True):
            assert float(weight.detach().std()) == pytest.approx(std, rel=0.02)
            assert abs(float(weight.detach().mean())) < 0.02 * std
        for bias, std in zip(network.biases, (*stds, stds[-1]), strict=True):
            assert float(bias.detach().std()) == pytest.approx(std, rel=0.2)

    def test_appendix_d_convolutional(self):
        network = CBAN((3, 40, 120), pools=(1, 2), init=0.0001, symmetric=False)
        for weight in (*network.weights, *network.reverse_weights):
            assert float(weight.detach().std()) == pytest.approx(0.0001, rel=0.05)
        assert not torch.equal(network.weights[0], network.reverse_weights[0])
        assert not any(bias.any() for bias in network.biases)

    def test_drawn_from_the_global_generator(self):
        torch.manual_seed(1)
        network = FBAN((6, 4))
        torch.manual_seed(1)
        twin = FBAN((6, 4), init="mnist")
        assert not torch.equal(network.weights[0], twin.weights[0])
        torch.manual_seed(1)
        network.reset_parameters()
        twin.init = "bars"
        torch.manual_seed(1)
        twin.reset_parameters()
        assert torch.equal(network.weights[0], twin.weights[0])

    @pytest.mark.parametrize(
        ("make", "error", "match"),
        [
            (
                lambda: FBAN((4, 3), init="he"),
                ValueError,
                "init: expected 'bars', 'mnist' or a number, got 'he'",
            ),
            (
                lambda: FBAN((4, 3), init=-1.0),
                ValueError,
                "init: expected a standard deviation of at least 0",
            ),
            (lambda: FBAN((4, 3), init=None), TypeError, "init: expected a name or a standard deviation"),
            (
                lambda: CBAN((4, 3), pools=(1,), init="bars"),
                ValueError,
                "init: 'bars' is for fully connected",
            ),
        ],
    )
    def test_refuses(self, make, error, match):
        with pytest.raises(error, match=match):
            make()


def test_learns_bars():
    """Forty steps on five images halve the loss."""
    torch.manual_seed(0)
    rows = torch.full((5, 5), -0.999)
    images = torch.stack([rows.clone() for _ in range(5)])
    for i in range(5):
        images[i, i] = 0.999
    network = FBAN((25, 30), max_steps=20)
    optimiser = SGDL2(network.parameters(), lr=0.1)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = network.loss(images, torch.rand(5, 5, 5) < 0.5, kind="delta_e_plus")
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_state_dict_and_copies():
    network, y, mask = made("pooled CBAN", symmetric=False)
    assert list(network.state_dict()) == [
        *(f"weights.{i}" for i in range(3)),
        *(f"biases.{i}" for i in range(4)),
        *(f"reverse_weights.{i}" for i in range(3)),
    ]
    twin = copy.deepcopy(network)
    assert torch.equal(twin.read(twin(y, mask)), network.read(network(y, mask)))


def test_half_precision():
    network, y, mask = made("pooled CBAN", dtype=torch.bfloat16, init=0.1)
    found = network.complete(y, mask, readouts=True)
    assert network.read(found).dtype == torch.bfloat16
    loss = network.loss(y, mask, kind="delta_e")
    energy = network.energy(found.states)
    assert loss.dtype == energy.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_autocast():
    network, y, mask = made("pooled CBAN", dtype=torch.float32, init=0.1)
    exact = network.loss(y, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network.loss(y, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)


def test_settings_of_one_call():
    network, y, mask = made("FBAN", theta=0.0, max_steps=3)
    assert int(network(y, mask).steps) == 3
    assert int(network.complete(y, mask, max_steps=5).steps) == 5
    assert int(network.complete(y, mask, theta=10.0).steps) == 1
    with torch.no_grad():
        assert network.complete(y, mask, per_sample=True, theta=0.5, max_steps=50).steps.shape == (4,)


CALLS = {
    r"evidence: expected 12 values for each sample, got \(4, 11\)": lambda n, y, m: n.complete(y[:, :11]),
    r"mask: expected a shape that broadcasts to the evidence's \(4, 12\), got \(3, 12\)": (
        lambda n, y, m: n.complete(y, m[:3])
    ),
    r"mask: expected bool, True where observed, got torch.float32": lambda n, y, m: n.complete(y, m.float()),
    r"mask: expected a bool tensor, got list": lambda n, y, m: n.complete(y, [True]),
    r"states: expected those of 4 layers, got 2": lambda n, y, m: n.energy([y, y]),
    r"settled: expected one with readouts": lambda n, y, m: n.unclamped(n.complete(y, m)),
    r"theta must not be negative; got -1": lambda n, y, m: n.complete(y, m, theta=-1.0),
    r"external: expected 12 values": lambda n, y, m: n.energy(n.complete(y).states, external=y[:, :3]),
}


@pytest.mark.parametrize("match", CALLS)
def test_refuses_bad_calls(match):
    network, y, mask = made("FBAN")
    with pytest.raises((TypeError, ValueError), match=match):
        CALLS[match](network, y, mask)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FBAN((4,)), "channels must name at least two layers"),
        (lambda: FBAN((4, 0)), "channels must be positive ints; got 0"),
        (lambda: CBAN((1, 4), pools=(1, 2)), "pools must have one window for each of the 1 edges; got 2"),
        (lambda: FBAN((4, 3), order="down_up"), "order must be one of"),
        (lambda: FBAN((4, 3), backward="rtrl"), "backward must be one of"),
        (lambda: FBAN((4, 3), theta=-1.0), "theta must not be negative"),
        (lambda: FBAN((4, 3), max_steps=0), "max_steps must be at least 1"),
        (lambda: FBAN((4, 3), activation="elu"), "activation must be one of"),
        (lambda: FBAN((4, 3), impl="fast"), "impl must be one of"),
    ],
)
def test_refuses_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_refuses_images_that_the_pools_do_not_divide():
    network, _, _ = made("pooled CBAN")
    with pytest.raises(ValueError, match=r"layer 2 of \(8, 10\) is \(4, 5\), its window \(2, 2\)"):
        network.complete(torch.zeros(1, 2, 8, 10, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"evidence: expected shape \(N, 2, H, W\), got \(1, 3, 8, 8\)"):
        network.complete(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
