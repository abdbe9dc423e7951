"""Losses on readouts: against energies, against plain loops, and near the ends of the range."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lmser import CBAN, FBAN, attractor_loss
from lmser.models import delta_e
from lmser.models.attractor_loss import returns

RANGES = {"tanh": (-0.95, 0.95), "sigmoid": (0.05, 0.95), "leaky_sigmoid": (-2.5, 2.5), "identity": (-3, 3)}


def uniform(*shape: int, activation: str = "tanh") -> torch.Tensor:
    low, high = RANGES[activation]
    return low + (high - low) * torch.rand(*shape, dtype=torch.float64)


@pytest.mark.parametrize("activation", RANGES)
@pytest.mark.parametrize("kind", ["FBAN", "CBAN", "CBAN, visible layer pooled", "replicate", "bias"])
def test_delta_e_is_the_difference_of_two_energies(activation, kind):
    """E(x) - E(x~), equal hidden states, the visible layer at the target and unclamped (004 Appendix B.1)."""
    settings = {"activation": activation, "init": 0.05, "dtype": torch.float64, "max_steps": 7, "theta": 0.0}
    external = None
    if kind.startswith("CBAN"):
        pools = (2, 2) if "pooled" in kind else (1, 2)
        network, shape = CBAN((2, 5, 6), pools=pools, **settings), (3, 2, 8, 4)
    else:
        if kind in ("replicate", "bias"):
            settings["evidence"] = kind
        network, shape = FBAN((12, 7, 5), **settings), (3, 12)
    torch.nn.init.normal_(network.biases[0])
    y = uniform(*shape, activation=activation)
    mask = torch.rand(shape) < 0.5
    found = network.complete(y, mask, readouts=True)
    target, unclamped = y, network.unclamped(found)
    if kind == "replicate":
        target = torch.stack([found.states[0][:, 0], y], 1)
        unclamped = torch.stack([found.states[0][:, 0], unclamped], 1)
    if kind == "bias":
        external = torch.where(mask, y, 0)
    expected = network.energy([target, *found.states[1:]], external=external) - network.energy(
        [unclamped, *found.states[1:]], external=external
    )
    got = delta_e(network.unclamped(found), y, activation)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    assert (got > 0).all()


@pytest.mark.parametrize("activation", RANGES)
def test_delta_e_is_zero_at_the_target_alone(activation):
    y = uniform(4, 6, activation=activation)
    torch.testing.assert_close(delta_e(y, y, activation), torch.zeros(4, dtype=torch.float64))
    moved = y.clone()
    moved[:, 2] += 1e-3 * (1 if activation == "identity" else 1 - y[:, 2].abs().clamp(max=0.9))
    assert (delta_e(moved, y, activation) > 1e-9).all()


def plain(readouts, y, kind, rate):
    """The losses by sums over steps, samples and returns as they are defined."""
    steps, samples = readouts.shape[:2]
    total = 0.0
    for t in range(1, steps + 1):
        goal = rate ** (steps - t) * y
        for k in range(1, steps - t + 1):
            goal = goal + (1 - rate) * rate ** (k - 1) * readouts[t + k - 1].detach()
        for n in range(samples):
            v, g = readouts[t - 1, n].flatten(), goal[n].flatten()
            if kind == "se":
                value = ((v - g) ** 2).sum()
            else:
                z = torch.atanh(v)

                def rho(x):
                    return 0.5 * ((1 + x) * torch.log(1 + x) + (1 - x) * torch.log(1 - x))

                value = (z * (v - g) + rho(g) - rho(v)).sum()
                if kind == "delta_e_plus":
                    value = torch.log(1 + torch.exp(value))
            total = total + value / (steps * samples)
    return total


@pytest.mark.parametrize("kind", ["se", "delta_e", "delta_e_plus"])
@pytest.mark.parametrize("rate", [1.0, 0.7, 0.0])
def test_td_equals_a_plain_loop(kind, rate):
    readouts = uniform(5, 3, 2, 4).requires_grad_()
    y = uniform(3, 2, 4)
    got = attractor_loss(readouts, y, kind=kind, td=rate)
    expected = plain(readouts, y, kind, rate)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got, readouts)[0], torch.autograd.grad(expected, readouts)[0]
    )


def test_returns_at_both_ends():
    readouts, y = uniform(4, 2, 3), uniform(2, 3)
    torch.testing.assert_close(returns(readouts, y, 1.0), y.expand(4, 2, 3))
    torch.testing.assert_close(returns(readouts, y, 0.0), torch.cat([readouts[1:], y[None]]))


@pytest.mark.parametrize("kind", ["se", "delta_e", "delta_e_plus"])
def test_last_is_the_last_step_alone(kind):
    readouts, y = uniform(5, 3, 4), uniform(3, 4)
    torch.testing.assert_close(
        attractor_loss(readouts, y, kind=kind, td="last"), attractor_loss(readouts[-1:], y, kind=kind)
    )


@pytest.mark.parametrize("kind", ["se", "delta_e", "delta_e_plus"])
def test_a_power_is_of_each_samples_mean_over_steps(kind):
    readouts, y = uniform(5, 3, 4), uniform(3, 4)
    each = [attractor_loss(readouts[:, n : n + 1], y[n : n + 1], kind=kind, td=0.5) for n in range(3)]
    got = attractor_loss(readouts, y, kind=kind, td=0.5, power=2.5)
    torch.testing.assert_close(got, sum(value**2.5 for value in each) / 3)


def test_gradient_of_delta_e_in_the_net_input_is_the_error():
    """Σ f⁻¹(v)(v - y) + ρ(y) - ρ(v) with v = f(z) has the derivative v - y in z, also close to saturation."""
    z = torch.tensor([[-8.0, -6.0, -0.1, 3.0, 7.0, 8.2]], requires_grad=True)
    y = torch.tensor([[0.999, -0.999, 0.5, -0.2, 0.999, -0.999]])
    v = torch.tanh(z)
    (grad,) = torch.autograd.grad(delta_e(v, y).sum(), z)
    torch.testing.assert_close(grad, (v - y).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["delta_e", "delta_e_plus"])
def test_saturated_readouts_give_finite_losses_and_gradients(dtype, kind):
    readouts = torch.tensor([[[1.0, -1.0, 1.0, 0.99, 0.0]]], dtype=dtype, requires_grad=True)
    y = torch.tensor([[1.0, 1.0, -0.999, 0.999, -1.0]], dtype=dtype)
    loss = attractor_loss(readouts, y, kind=kind)
    (grad,) = torch.autograd.grad(loss, readouts)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert loss > 5
    assert loss.dtype == (dtype if dtype == torch.float64 else torch.float32)


def test_delta_e_plus_of_a_large_difference():
    readouts = torch.full((1, 1, 5000), 0.9999)
    y = -readouts[0]
    difference = delta_e(readouts[0], y)
    assert difference > 1000
    torch.testing.assert_close(attractor_loss(readouts, y, kind="delta_e_plus"), difference[0])


def test_delta_e_of_binary_targets_is_a_cross_entropy():
    v = uniform(2, 6)
    y = torch.tensor([[1.0, -1, 1, -1, 1, 1], [-1, -1, 1, 1, -1, 1]], dtype=torch.float64)
    expected = F.binary_cross_entropy((1 + v) / 2, (1 + y) / 2, reduction="none").sum(1)
    torch.testing.assert_close(delta_e(v, y), expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "mse"}, "kind: expected one of 'se', 'delta_e', 'delta_e_plus', got 'mse'"),
        ({"td": 1.5}, "td: expected a number between 0 and 1 or 'last', got 1.5"),
        ({"td": "first"}, "td: expected .* got 'first'"),
        ({"td": math.nan}, "td: expected .* got nan"),
        ({"power": 0.5}, "power: expected a finite number of at least 1, got 0.5"),
        ({"power": math.inf}, "power: expected .* got inf"),
        ({"target": torch.zeros(3, 5)}, r"target: expected the shape of a readout, \(3, 4\), got \(3, 5\)"),
        (
            {"target": torch.full((3, 4), 1.5), "kind": "delta_e"},
            "target: expected values between -1 and 1, the range of tanh, got 1.5 to 1.5",
        ),
        ({"kind": "delta_e_plus", "activation": "relu"}, "activation: expected one that has an inverse"),
    ],
)
def test_refuses(change, match):
    given = {"readouts": torch.zeros(2, 3, 4), "target": torch.zeros(3, 4), **change}
    with pytest.raises(ValueError, match=match):
        attractor_loss(given.pop("readouts"), given.pop("target"), **given)


def test_delta_e_refuses_another_shape():
    with pytest.raises(ValueError, match="target: expected the readout's shape"):
        delta_e(torch.zeros(2, 3), torch.zeros(3))
