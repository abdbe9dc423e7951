"""Several losses in one step, each with its own parameters and optimiser."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_cases import Crash, assert_same_run, crash_after
from training_cases import few_objects_to_collect as few_objects_to_collect

from lmser.training import ConfigMismatch, Diverged, Objective, Run, Sampler, TrainConfig, train
from lmser.training.randomness import seed_generators

CONFIG = TrainConfig(steps=24, batch_size=7, lr=0.01, gamma=0.99, seed=5, checkpoint_every=5)


class Adversaries(nn.Module):
    """A generator with dropout, and a critic that tells its pictures from the data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.generator = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.2))
        self.critic = nn.Linear(6, 1)


def generator_loss(model: Adversaries, x: Tensor, *, shared: dict[str, Tensor]) -> Tensor:
    assert not shared
    assert all(p.requires_grad for p in model.generator.parameters())
    assert not any(p.requires_grad for p in model.critic.parameters())
    fake = model.generator(x)
    shared["fake"] = fake.detach()
    return (fake - x).square().mean() - 0.1 * model.critic(fake).mean()


def critic_loss(model: Adversaries, x: Tensor, *, shared: dict[str, Tensor]) -> Tensor:
    assert not any(p.requires_grad for p in model.generator.parameters())
    return (1 - model.critic(x)).relu().mean() + (1 + model.critic(shared["fake"])).relu().mean()


GENERATOR = Objective("generator", lambda model: model.generator.parameters(), generator_loss)
CRITIC = Objective("critic", lambda model: model.critic.parameters(), critic_loss, lr=0.04, betas=(0.5, 0.9))


def data() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def run(objectives=(GENERATOR, CRITIC), path: Path | None = None, config=CONFIG, **kwargs):
    model = Adversaries()
    return model, train(model, None, data(), config, objectives=objectives, run_dir=path, **kwargs)


def test_equals_a_plain_loop_bit_for_bit():
    model, result = run()
    plain, x, sampler = Adversaries(), data(), Sampler(40, 7, seed=5)
    adam = torch.optim.Adam(plain.generator.parameters(), lr=0.01, fused=True)
    critic_adam = torch.optim.Adam(plain.critic.parameters(), lr=0.04, betas=(0.5, 0.9), fused=True)
    with torch.random.fork_rng():
        seed_generators(5, torch.device("cpu"), "noise")
        curve, further = [], []
        for step in range(24):
            batch = x[sampler.indices(step)]
            adam.param_groups[0]["lr"] = 0.01 * 0.99**step
            critic_adam.param_groups[0]["lr"] = 0.04 * 0.99**step
            fake = plain.generator(batch)
            loss = (fake - batch).square().mean() - 0.1 * plain.critic(fake).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            critic_adam.zero_grad()  # of what the generator's loss has left there
            second = (1 - plain.critic(batch)).relu().mean() + (1 + plain.critic(fake.detach())).relu().mean()
            second.backward()
            critic_adam.step()
            curve.append((step + 1, loss.item()))
            further.append((step + 1, second.item()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert result.curve == curve
    assert result.extras == {"loss.critic": further}
    assert all(p.requires_grad for p in model.parameters())


def test_resumes_to_the_same_bits(tmp_path):
    run(path=tmp_path / "whole")
    with pytest.raises(Crash):
        run(path=tmp_path / "parts", on_step=crash_after(13))
    run(path=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    line = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[2])
    assert list(line) == ["step", "loss", "loss.critic"]
    assert Run(tmp_path / "whole").result().extras["loss.critic"][2] == (3, line["loss.critic"])


@pytest.mark.parametrize(
    "changed",
    [
        (CRITIC, GENERATOR),
        (GENERATOR, dataclasses.replace(CRITIC, lr=0.05)),
        (GENERATOR, dataclasses.replace(CRITIC, betas=None)),
        (GENERATOR, dataclasses.replace(CRITIC, name="judge")),
        (dataclasses.replace(GENERATOR, parameters=lambda model: model.parameters()), CRITIC),
    ],
)
def test_refuses_to_resume_with_other_objectives(tmp_path, changed):
    with pytest.raises(Crash):
        run(path=tmp_path, on_step=crash_after(6))
    with pytest.raises(ConfigMismatch, match="objectives was"):
        run(changed, tmp_path, resume=True)


def test_one_objective_is_the_loss():
    def loss(model, x):
        return model.generator(x).square().mean() + model.critic(x).square().mean()

    everything = Objective("all", lambda m: m.parameters(), lambda m, x, shared: loss(m, x))
    first = Adversaries()
    alone = train(first, loss, data(), CONFIG)
    second, result = run([everything])
    assert result.curve == alone.curve
    assert result.extras == {}
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_tied_parameter_counts_once_and_a_frozen_one_stays():
    def loss(model, x, shared):
        return model.generator(x).square().mean()

    def parameters(model):
        return itertools.chain(model.generator.parameters(), model.parameters())

    model = Adversaries()
    model.critic.weight.requires_grad_(False)
    before = model.critic.weight.clone(), model.generator[0].weight.clone()
    train(model, None, data(), CONFIG, objectives=[Objective("all", parameters, loss)])
    assert torch.equal(model.critic.weight, before[0])
    assert not model.critic.weight.requires_grad
    assert not torch.equal(model.generator[0].weight, before[1])


def test_gradients_are_wanted_again_after_an_error():
    def failing(model, x, shared):
        raise Crash

    model = Adversaries()
    with pytest.raises(Crash):
        train(model, None, data(), CONFIG, objectives=(GENERATOR, dataclasses.replace(CRITIC, loss=failing)))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_further_objective_that_diverges_is_named(tmp_path, log_every):
    steps = []

    def breaking(model, x, shared):
        steps.append(None)
        return critic_loss(model, x, shared=shared) * (math.inf if len(steps) == 10 else 1)

    with pytest.raises(Diverged, match=r"the loss of critic became (inf|nan) at step 10") as caught:
        run(
            (GENERATOR, dataclasses.replace(CRITIC, loss=breaking)),
            tmp_path,
            dataclasses.replace(CONFIG, log_every=log_every),
        )
    assert caught.value.objective == "critic"
    assert caught.value.step == {1: 10, 4: 10}[log_every]
    assert all(math.isfinite(loss) for _, loss in caught.value.curve)
    assert Run(tmp_path).step == 5


def test_refuses_bad_objectives(tmp_path):
    def refused(error, message, objectives, loss=None, model=None):
        with pytest.raises(error, match=message):
            train(
                model or Adversaries(), loss, data(), CONFIG, objectives=objectives, run_dir=tmp_path / "run"
            )

    refused(ValueError, "loss_fn: expected None beside objectives", (GENERATOR, CRITIC), generator_loss)
    refused(TypeError, "loss_fn: expected a function, got None; or give objectives", None)
    refused(TypeError, "objectives: expected a non-empty sequence of Objective", ())
    refused(TypeError, "objectives: expected a non-empty sequence of Objective", (GENERATOR, critic_loss))
    refused(ValueError, "objectives: expected different names, got critic, critic", (CRITIC, CRITIC))
    refused(ValueError, "objectives: none trains critic.weight; freeze it", (GENERATOR,))
    empty = Objective("empty", lambda model: [], critic_loss)
    refused(ValueError, "objectives: empty has no parameter to train", (GENERATOR, CRITIC, empty))
    foreign = Objective("critic", lambda model: nn.Linear(6, 2).parameters(), critic_loss)
    refused(ValueError, r"objectives: critic: a parameter of shape \(2, 6\) is not the model's", (foreign,))
    vector = Objective("vector", lambda model: model.parameters(), lambda model, x, shared: x.sum(1))
    with pytest.raises(ValueError, match=r"objectives: vector: expected a 0-d tensor, got shape \(7,\)"):
        run((vector,))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"name": ""}, TypeError, "name: expected a word"),
        ({"parameters": []}, TypeError, "parameters: expected a function"),
        ({"loss": None}, TypeError, "loss: expected a function"),
        ({"lr": "1"}, TypeError, "lr: expected a number or None"),
        ({"lr": 0.0}, ValueError, "lr: expected a finite number of more than 0"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas: expected 0 <= beta < 1"),
        ({"betas": 0.9}, TypeError, "betas: expected two numbers"),
    ],
)
def test_refuses_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(CRITIC, **fields)
