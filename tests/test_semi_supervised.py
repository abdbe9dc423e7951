"""`SemiSupervised`, its terms and weights, the sampler of two streams, and labels taken away."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from lmser import SemiSupervised, invert
from lmser.data import few_labels
from lmser.inversion import LearnedWeights, entropy, reconstruction_error
from lmser.training import TrainConfig, TwoStreamSampler, train
from lmser_kernels.nn import Conv2dAddAct, TiedLinear


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        Conv2dAddAct(1, 4, 3, activation="relu", dtype=dtype),
        Conv2dAddAct(4, 5, 3, activation="relu", pool=2, dtype=dtype),
        nn.Flatten(),
        TiedLinear(5, 3, dtype=dtype),
    )


def batch(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.rand(6, 1, 8, 8, dtype=dtype), torch.tensor([0, 2, -1, 1, -1, -1])


def by_hand(model, x, y, alpha, beta):
    """Eq. (10) term by term."""
    logits, found = model(x), invert(model, x, method="autograd")
    p = logits.softmax(1)
    known = y >= 0
    e = -(p * p.log()).sum(1)[~known].mean()
    r = (found - x).flatten(1).square().mean()
    return alpha * F.cross_entropy(logits[known], y[known]) + (1 - alpha) * (beta * r + (1 - beta) * e)


class TestLoss:
    @pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.2), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
    def test_equation_10(self, alpha, beta):
        model = SemiSupervised(network(), alpha, beta)
        x, y = batch()
        wanted = by_hand(model.model, x, y, alpha, beta)
        loss = model.loss(x, y)
        torch.testing.assert_close(loss, wanted)
        parameters = list(model.parameters())
        for got, want in zip(
            torch.autograd.grad(loss, parameters, allow_unused=True),
            torch.autograd.grad(wanted, parameters, allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(got, want)

    def test_equation_11(self):
        inner = network()
        model = SemiSupervised(inner, 0.5, 0.3, gammas=(0.1, 0.2, 0.3, 0.4))
        x, y = batch()
        states = [x]
        for layer in list(inner)[:-1]:
            states.append(layer(states[-1]))
        logits = inner[-1](states[-1])
        errors = [
            (torch.autograd.grad(logits, z, logits.detach(), retain_graph=True)[0] - z).square().mean()
            for z in states[1:]
        ]
        errors.insert(0, (invert(inner, x) - x).square().mean())
        wanted = (
            0.5 * F.cross_entropy(logits[y >= 0], y[y >= 0])
            + 0.3 * entropy(logits.log_softmax(1)).mean()
            + sum(gamma * error for gamma, error in zip((0.1, 0.2, 0.3, 0.4), errors, strict=True))
        )
        torch.testing.assert_close(model.loss(x, y), wanted)

    def test_composition_of_the_batch_does_not_change_the_weights(self):
        model = SemiSupervised(network())
        x, y = batch()
        unlabelled = y < 0
        more = torch.cat([x, x[unlabelled]]), torch.cat([y, y[unlabelled]])
        first, second = model.terms(x, y), model.terms(*more)
        torch.testing.assert_close(first.cross_entropy, second.cross_entropy)
        torch.testing.assert_close(first.entropy, second.entropy)

    @pytest.mark.parametrize("fill", [-1, 1])
    def test_none_or_all_labelled(self, fill):
        model = SemiSupervised(network())
        x, y = batch()
        terms = model.terms(x, torch.full_like(y, fill))
        assert float(terms.entropy if fill > 0 else terms.cross_entropy) == 0
        model.loss(x, torch.full_like(y, fill)).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    def test_any_number_below_0_is_no_label(self):
        model = SemiSupervised(network())
        x, y = batch()
        torch.testing.assert_close(model.loss(x, torch.where(y < 0, -100, y)), model.loss(x, y))

    def test_gammas_belong_to_their_layers(self):
        inner = network()
        x, y = batch()
        first = SemiSupervised(inner, gammas=(0, 0.2, 0.5), layers=[inner[1], inner[3]])
        second = SemiSupervised(inner, gammas=(0, 0.5, 0.2), layers=[inner[3], inner[1]])
        torch.testing.assert_close(first.loss(x, y), second.loss(x, y))

    def test_compiles(self):
        model = SemiSupervised(network(), method="gated")
        loss = torch.compile(model.loss, fullgraph=True, backend="aot_eager")(*batch())
        torch.testing.assert_close(loss, model.loss(*batch()))

    def test_weights_that_vary(self):
        """Eq. (13)."""
        model = SemiSupervised(network(), alpha=lambda t: 1 / (1 + t), beta=0.5)
        x, y = batch()
        seen = []
        for _ in range(3):
            seen.append(model.weights())
            model.loss(x, y)
        for got, wanted in zip(seen, [(1, 0, 0), (1 / 2, 1 / 4, 1 / 4), (1 / 3, 1 / 3, 1 / 3)], strict=True):
            assert got == pytest.approx(wanted)
        model.eval()
        model.loss(x, y)
        assert int(model.step) == 3
        assert int(model.state_dict()["step"]) == 3

    def test_no_inversion_where_it_has_no_weight(self, monkeypatch):
        def never(*arguments, **keywords):
            raise AssertionError("inverted")

        monkeypatch.setattr("lmser.inversion.semi_supervised.inverted", never)
        x, y = batch()
        SemiSupervised(network(), 1.0, 0.0).loss(x, y)
        with pytest.raises(AssertionError):
            SemiSupervised(network(), 0.5, 0.5).loss(x, y)

    def test_any_module(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, x):
                return self.inner(x) * 2

        model = SemiSupervised(Own())
        x, y = batch()
        torch.testing.assert_close(model.loss(x, y), by_hand(model.model, x, y, 0.7, 0.2))
        assert model(x).shape == (6, 3)
        assert model.reconstruct(x).shape == x.shape


class TestTerms:
    def test_reconstruction(self):
        x, found = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
        squared = ((found - x) ** 2).sum((1, 2))
        torch.testing.assert_close(reconstruction_error(found, x, "squared"), squared)
        torch.testing.assert_close(reconstruction_error(found, x), squared / 8)
        cosine = 1 - (found * x).sum((1, 2)) / (found.norm(dim=(1, 2)) * x.norm(dim=(1, 2)))
        torch.testing.assert_close(reconstruction_error(found, x, "cosine"), cosine)

    def test_entropy(self):
        even = torch.zeros(2, 10).log_softmax(1)
        torch.testing.assert_close(entropy(even), torch.full((2,), math.log(10)))
        assert float(entropy(torch.tensor([[1e4, 0.0, -1e4]]).log_softmax(1))) == 0

    def test_errors(self):
        x = torch.zeros(2, 3)
        with pytest.raises(ValueError, match="found: expected the shape of x"):
            reconstruction_error(x, x[:, :2])
        with pytest.raises(ValueError, match="kind: expected one of"):
            reconstruction_error(x, x, "l1")


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"alpha": 1.5}, ValueError, r"alpha: expected a number in \[0, 1\], got 1.5"),
            ({"beta": "a"}, TypeError, "beta: expected a number"),
            ({"reconstruction": "l1"}, ValueError, "reconstruction: expected one of"),
            ({"method": "x"}, ValueError, "method: expected one of"),
            (
                {"gammas": (1.0,)},
                ValueError,
                "gammas: expected one for x and one for each of 3 layers, got 1",
            ),
            ({"gammas": (1.0,) * 4 + (-1.0,)}, ValueError, "gammas: expected a number of at least 0"),
            ({"layers": ()}, ValueError, "layers: expected with gammas only"),
        ],
    )
    def test_arguments(self, change, error, words):
        with pytest.raises(error, match=words):
            SemiSupervised(network(), **change)

    def test_of_functions_of_the_step(self):
        model = SemiSupervised(network(), alpha=lambda t: 0.5 + t)
        model.loss(*batch())
        with pytest.raises(ValueError, match=r"alpha at step 1: expected a number in \[0, 1\], got 1.5"):
            model.loss(*batch())

    def test_logits(self):
        with pytest.raises(ValueError, match=r"model: expected logits of shape \(N, C\) of it"):
            SemiSupervised(nn.Conv2d(1, 3, 3).double()).loss(*batch())

    def test_labels(self):
        x, y = batch()
        with pytest.raises(ValueError, match="y: expected int64 of shape"):
            SemiSupervised(network()).loss(x, y.float())
        with pytest.raises(ValueError, match="y: expected int64 of shape"):
            SemiSupervised(network()).loss(x, y[:3])


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("gammas", [None, (0.2, 0.1, 0.05, 0.3)])
def test_learned_weights_follow_the_gradient_through_the_update(gammas, explicit):
    """Against autograd through the step of Eq. (14), which differentiates a gradient."""
    lr, rate = 0.05, 0.5
    model = SemiSupervised(network(), 0.6, 0.3, gammas=gammas, method="autograd")
    x, y = batch()
    names = [name for name, _ in model.named_parameters()]
    start = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    values = torch.tensor([0.6, 0.3, *(gammas or ())], dtype=torch.float64, requires_grad=True)

    def loss_at(parameters, values):
        class Terms(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self):
                found = model.terms(x, y)
                return torch.stack([found.cross_entropy, found.entropy, *found.reconstruction])

        terms = functional_call(Terms(), {f"inner.{name}": p for name, p in parameters.items()})
        alpha, beta = values[:2]
        weights = values if gammas else torch.stack([alpha, (1 - alpha) * (1 - beta), (1 - alpha) * beta])
        return (weights * terms).sum()

    gradients = torch.autograd.grad(loss_at(start, values), [start[n] for n in names], create_graph=True)
    new = {name: start[name] - lr * g for name, g in zip(names, gradients, strict=True)}
    at = values if explicit else values.detach()
    (slope,) = torch.autograd.grad(loss_at(new, at), values)

    learner = LearnedWeights(model, lr, rate, explicit=explicit)
    before = learner.step(x, y)
    torch.testing.assert_close(before, loss_at(start, values).detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, new[name])
    wanted = (values - rate * slope).clamp(0, None if gammas else 1)
    torch.testing.assert_close(torch.tensor(learner.values, dtype=torch.float64), wanted.detach())
    assert (model.alpha, model.beta) == learner.values[:2]


def test_learned_weights_refuse():
    with pytest.raises(TypeError, match="function of the step"):
        LearnedWeights(SemiSupervised(network(), alpha=lambda t: 0.5), 0.1)
    with pytest.raises(ValueError, match="lr: expected a positive number"):
        LearnedWeights(SemiSupervised(network()), 0)


class TestFewLabels:
    def test_the_same_number_of_each_class(self):
        labels = torch.arange(10).repeat(20)
        left = few_labels(labels, 5, seed=0)
        assert torch.equal(left[left >= 0].bincount(), torch.full((10,), 5))
        assert torch.equal(left[left >= 0], labels[left >= 0])
        assert torch.equal(left, few_labels(labels, 5, seed=0))
        assert not torch.equal(left, few_labels(labels, 5, seed=1))

    def test_the_fewer_are_among_the_more(self):
        labels = torch.arange(3).repeat(20)
        few, more = few_labels(labels, 2, 0) >= 0, few_labels(labels, 7, 0) >= 0
        assert bool((more | ~few).all())

    def test_errors(self):
        labels = torch.tensor([0, 0, 1])
        with pytest.raises(ValueError, match="per_class: class 1 has 1 samples, fewer than 2"):
            few_labels(labels, 2, 0)
        with pytest.raises(ValueError, match="per_class: expected a positive int"):
            few_labels(labels, 0, 0)
        with pytest.raises(TypeError, match="labels: expected int64"):
            few_labels(labels.float(), 1, 0)
        with pytest.raises(ValueError, match="labels: expected classes from 0 on"):
            few_labels(labels - 1, 1, 0)


class TestTwoStreams:
    labels = few_labels(torch.arange(3).repeat(40)[:100], 4, 0)

    def test_every_batch_has_its_share(self):
        sampler = TwoStreamSampler(self.labels, 20, 8, seed=0)
        for step in range(12):
            indices = sampler.indices(step)
            assert len(indices) == 20
            assert int((self.labels[indices] >= 0).sum()) >= 8

    def test_an_epoch_sees_all(self):
        sampler = TwoStreamSampler(self.labels, 22, 12, seed=0)
        assert len(sampler) == 10
        seen = torch.cat([sampler.indices(step) for step in range(10)]).bincount(minlength=100)
        assert bool((seen >= 1).all())
        assert bool((seen[self.labels >= 0] == 11).all())

    def test_is_a_function_of_the_step(self):
        first, second = (TwoStreamSampler(self.labels, 20, 8, seed=4) for _ in range(2))
        for _ in range(3):
            second.indices(17)
        assert torch.equal(first.indices(5), second.indices(5))
        assert not torch.equal(first.indices(5), TwoStreamSampler(self.labels, 20, 8, seed=5).indices(5))

    def test_with_torchs_loader(self):
        data = TensorDataset(torch.arange(100), self.labels)
        batches = list(DataLoader(data, batch_sampler=TwoStreamSampler(self.labels, 22, 12, seed=0)))
        assert len(batches) == 10
        assert all(len(x) == 22 and int((y >= 0).sum()) >= 12 for x, y in batches)

    def test_every_pass_is_another_epoch(self):
        sampler = TwoStreamSampler(self.labels, 22, 12, seed=0)
        loader = DataLoader(TensorDataset(torch.arange(100)), batch_sampler=sampler)
        seen = [x for _ in range(2) for (x,) in loader]
        assert not torch.equal(seen[0], seen[10])
        assert all(torch.equal(x, sampler.indices(step)) for step, x in enumerate(seen))

    def test_errors(self):
        with pytest.raises(
            ValueError, match="labelled: expected at most as many as there are labels, 12, got 13"
        ):
            TwoStreamSampler(self.labels, 20, 13, 0)
        with pytest.raises(ValueError, match="batch_size: expected more than labelled"):
            TwoStreamSampler(self.labels, 8, 8, 0)
        with pytest.raises(TypeError, match="labels: expected a tensor, got list"):
            TwoStreamSampler([0, -1], 2, 1, 0)
        with pytest.raises(ValueError, match="labels: expected int64"):
            TwoStreamSampler(self.labels.float(), 8, 4, 0)

    def test_training_resumes_to_the_same_bits(self, tmp_path):
        x = torch.rand(100, 1, 8, 8)

        def run(steps, folder, resume=False):
            model = SemiSupervised(network(torch.float32))
            config = TrainConfig(steps=6, batch_size=20, lr=0.01, checkpoint_every=2)
            sampler = TwoStreamSampler(self.labels, 20, 8, seed=0)

            def stop(step, loss):
                if step == steps:
                    raise KeyboardInterrupt

            with contextlib.suppress(KeyboardInterrupt):
                train(
                    model, lambda m, a, b: m.loss(a, b), (x, self.labels), config, sampler=sampler,
                    run_dir=folder, resume=resume, on_step=stop, progress=False,
                )  # fmt: skip
            return model.state_dict()

        whole = run(None, tmp_path / "whole")
        run(3, tmp_path / "parts")
        parts = run(None, tmp_path / "parts", resume=True)
        assert int(whole["step"]) == 6
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def test_another_batch_size_is_refused(self):
        with pytest.raises(ValueError, match=r"sampler: expected batches of config\.batch_size, 10, got 20"):
            train(
                network(torch.float32), lambda m, a, b: m(a).sum(), (torch.rand(100, 1, 8, 8), self.labels),
                TrainConfig(steps=1, batch_size=10, lr=0.1), sampler=TwoStreamSampler(self.labels, 20, 8, 0),
            )  # fmt: skip
