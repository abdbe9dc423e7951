"""How an observation holds the visible units, each way against its definition (004 Appendix A)."""

from __future__ import annotations

import math

import pytest
import torch
from attractor_cases import DOUBLE, energies, made

from lmser import FBAN
from lmser_kernels import settle


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
