"""FBAN with its drive counted from a centre: the network that its other form is, with the gradients of its own."""

from __future__ import annotations

import copy

import pytest
import torch

from lmser import FBAN, attractor_loss


def pair(**options):
    """A centred network, and the plain one that computes the same."""
    torch.manual_seed(0)
    network = FBAN((9, 7, 4), centred=True, init=0.3, dtype=torch.float64, theta=0.0, max_steps=5, **options)
    for bias in network.biases:
        torch.nn.init.normal_(bias, 0, 0.2)
    centre = torch.rand(9, dtype=torch.float64) - 0.8
    network.centre_on(centre)
    plain = FBAN((9, 7, 4), init=0.3, dtype=torch.float64, theta=0.0, max_steps=5, **options)
    values = {k: v for k, v in network.state_dict().items() if k != "centre"}
    shift = network.weights[0].flatten(1) @ network.centre
    plain.load_state_dict({**values, "biases.1": values["biases.1"] - shift.detach()})
    y = torch.rand(6, 9, dtype=torch.float64) * 1.6 - 0.8
    return network, plain, y, torch.rand(6, 9) < 0.6


@pytest.mark.parametrize("evidence", ["clamp", "bias", "replicate"])
@pytest.mark.parametrize("backward", ["bptt", "implicit"])
def test_is_another_form_of_the_same_network(evidence, backward):
    network, plain, y, mask = pair(evidence=evidence, backward=backward, unconverged="ignore")
    a, b = (n.complete(y, mask, readouts=True) for n in (network, plain))
    for one, other in zip([*a.states, a.readouts], [*b.states, b.readouts], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network.energy(a.states), plain.energy(b.states), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network.dream(a), plain.dream(b), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_centred_form():
    network, plain, y, mask = pair()
    for n in (network, plain):
        seen = n.trajectory(n.complete(y, mask, readouts=True))
        attractor_loss(seen, y, kind="delta_e_plus").backward()
    for layer in range(3):
        torch.testing.assert_close(
            network.biases[layer].grad, plain.biases[layer].grad, rtol=1e-10, atol=1e-12
        )
    outer = plain.biases[1].grad[:, None] * network.centre
    want = plain.weights[0].grad - outer.view_as(plain.weights[0])
    torch.testing.assert_close(network.weights[0].grad, want, rtol=1e-10, atol=1e-12)
    assert (outer.abs() > 1e-4).any()


def test_centre_is_kept_with_the_weights():
    network, _, y, mask = pair()
    other = FBAN((9, 7, 4), centred=True, dtype=torch.float64, theta=0.0, max_steps=5)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.read(other(y, mask)), network.read(network(y, mask)))
    assert torch.equal(copy.deepcopy(network).centre, network.centre)
    assert network.float().centre.dtype == torch.float32
    assert "centre" not in FBAN((9, 7, 4)).state_dict()


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="made with centred=True"):
        FBAN((9, 7)).centre_on(torch.zeros(9))
    with pytest.raises(TypeError, match="values: expected a tensor, got list"):
        FBAN((9, 7), centred=True).centre_on([0.0] * 9)
    with pytest.raises(ValueError, match="values: expected 9, got"):
        FBAN((9, 7), centred=True).centre_on(torch.zeros(8))
