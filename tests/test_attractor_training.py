"""Attractor networks in training: their loss, where they start, that they learn."""

from __future__ import annotations

import pytest
import torch
from attractor_cases import made

from lmser import CBAN, FBAN, attractor_loss


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
