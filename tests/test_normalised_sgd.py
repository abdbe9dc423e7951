"""SGD-L2 and SGD-Linf: a plain loop over tensors, then SGD."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmser.training import SGDL2, SGDLinf, TrainConfig, normalise_gradients, train

NORMS = {"l2": lambda g: g.square().sum().sqrt(), "linf": lambda g: g.abs().max()}
OPTIMISERS = {"l2": SGDL2, "linf": SGDLinf}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def loss_of(model: nn.Module, scale: float = 1.0) -> torch.Tensor:
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5)
    return scale * (model(x) - 0.3).square().sum()


@pytest.mark.parametrize("norm", NORMS)
def test_each_tensor_has_norm_one_and_its_direction(norm):
    model = network()
    loss_of(model, 37.0).backward()
    before = [p.grad.clone() for p in model.parameters()]
    normalise_gradients(model, norm)
    for grad, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, grad / NORMS[norm](grad))
        torch.testing.assert_close(NORMS[norm](parameter.grad), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"fused": True}])
def test_equals_a_plain_loop(norm, settings):
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())
    optimiser = OPTIMISERS[norm](model.parameters(), lr=0.1, **settings)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, **{k: v for k, v in settings.items() if k != "fused"})
    for step in range(4):
        optimiser.zero_grad()
        loss_of(model, 10.0**step).backward()
        assert optimiser.step() is None
        plain.zero_grad()
        loss_of(twin).backward()  # the scale of the loss does not matter
        for parameter in twin.parameters():
            parameter.grad /= NORMS[norm](parameter.grad)
        plain.step()
    for got, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", NORMS)
def test_closure(norm):
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())
    optimiser = OPTIMISERS[norm](model.parameters(), lr=0.1)
    expected = loss_of(twin)

    def closure():
        optimiser.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    torch.testing.assert_close(optimiser.step(closure), expected)
    expected.backward()
    normalise_gradients(twin.parameters(), norm)
    for got, start in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, start - 0.1 * start.grad)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_extreme_missing_and_broken_gradients(norm):
    zero, tiny, huge, missing, broken, empty = (nn.Parameter(torch.zeros(n)) for n in (3, 3, 3, 3, 3, 0))
    zero.grad = torch.zeros(3)
    tiny.grad = torch.tensor([3e-30, 0.0, 4e-30])
    huge.grad = torch.tensor([3e30, 0.0, 4e30])
    broken.grad = torch.tensor([1.0, float("nan"), 2.0])
    empty.grad = torch.zeros(0)
    normalise_gradients([zero, tiny, huge, missing, broken, empty], norm)
    expected = torch.tensor([0.6, 0.0, 0.8]) if norm == "l2" else torch.tensor([0.75, 0.0, 1.0])
    assert not zero.grad.any()
    assert missing.grad is None
    torch.testing.assert_close(tiny.grad, expected)
    torch.testing.assert_close(huge.grad, expected)
    assert broken.grad.isnan().any()


@pytest.mark.parametrize("norm", NORMS)
def test_half_precision(norm):
    parameter = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    parameter.grad = torch.full((1000,), 300.0, dtype=torch.bfloat16)
    normalise_gradients([parameter], norm)
    expected = 1000**-0.5 if norm == "l2" else 1.0
    torch.testing.assert_close(parameter.grad.float(), torch.full((1000,), expected), rtol=0.005, atol=0)


def test_refuses_another_norm():
    with pytest.raises(ValueError, match="norm: expected 'l2' or 'linf', got 'l1'"):
        normalise_gradients(network(), "l1")


@pytest.mark.parametrize("norm", NORMS)
def test_a_training_run_takes_it_by_name(norm):
    x = torch.randn(8, 5, dtype=torch.float64)
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())
    config = TrainConfig(steps=3, batch_size=8, lr=0.05, optimizer=f"sgd-{norm}", gamma=1.0, momentum=0.5)
    train(model, lambda network, batch: network(batch).square().mean(), (x,), config)
    optimiser = OPTIMISERS[norm](twin.parameters(), lr=0.05, momentum=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        twin(x).square().mean().backward()
        optimiser.step()
    for got, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_betas_are_adams():
    with pytest.raises(ValueError, match="betas: SGD takes none"):
        TrainConfig(steps=1, batch_size=1, lr=0.1, optimizer="sgd-l2", betas=(0.5, 0.9))
