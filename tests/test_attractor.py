"""Attractor networks: energy, fixed points, implicit gradients, dreams, and the forms of their input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from attractor_cases import DOUBLE, SHAPES, energies, made, random_states

from lmser import CBAN, FBAN, attractor_loss
from lmser.models.barrier import barrier
from lmser.training import SGDL2
from lmser_kernels import settle_step


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
