"""Adam's constants, weight decay, bfloat16 and compilation."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn
from training_cases import Crash, assert_same_run, crash_after
from training_cases import few_objects_to_collect as few_objects_to_collect

from lmser.training import ConfigMismatch, Sampler, TrainConfig, train

CONFIG = TrainConfig(steps=16, batch_size=7, lr=0.01, gamma=1.0, seed=5, checkpoint_every=3)


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 6))


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().mean()


def data() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def resumed(tmp_path, config: TrainConfig) -> None:
    """The run in parts equals the whole one."""
    train(network(), loss_fn, data(), config, run_dir=tmp_path / "whole")
    with pytest.raises(Crash):
        train(network(), loss_fn, data(), config, run_dir=tmp_path / "parts", on_step=crash_after(10))
    train(network(), loss_fn, data(), config, run_dir=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_betas_and_weight_decay_are_the_optimisers(optimizer):
    adam = optimizer == "adam"
    config = TrainConfig(
        steps=12, batch_size=40, lr=0.01, gamma=1.0, optimizer=optimizer, weight_decay=0.1,
        betas=(0.5, 0.8) if adam else (0.9, 0.999), momentum=0.0 if adam else 0.9,
    )  # fmt: skip
    model, plain, x = nn.Linear(6, 6), nn.Linear(6, 6), data()
    plain.load_state_dict(model.state_dict())
    train(model, loss_fn, x, config)
    if adam:
        stepper = torch.optim.Adam(plain.parameters(), 0.01, betas=(0.5, 0.8), weight_decay=0.1, fused=True)
    else:
        stepper = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9, weight_decay=0.1, fused=True)
    sampler = Sampler(40, 40, seed=0)
    for step in range(12):
        stepper.zero_grad()
        loss_fn(plain, x[sampler.indices(step)]).backward()
        stepper.step()
    assert torch.equal(model.weight, plain.weight)


def test_bfloat16_is_autocast_and_leaves_the_weights_alone():
    seen = []

    def loss(model: nn.Linear, x: Tensor) -> Tensor:
        y = model(x)
        seen.append((y.dtype, x.dtype, torch.is_autocast_enabled("cpu")))
        return (y - x).square().mean()

    def evaluate(model: nn.Module) -> dict[str, object]:
        return {"dtype": str(model(data()).dtype)}

    config = dataclasses.replace(CONFIG, precision="bfloat16")
    model = nn.Linear(6, 6)
    result = train(model, loss, data(), config, evaluate=evaluate)
    assert set(seen) == {(torch.bfloat16, torch.float32, True)}
    assert result.evaluations[16] == {"dtype": "torch.float32"}
    assert (
        {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    )
    assert not torch.is_autocast_enabled("cpu")
    exact = train(network(), loss_fn, data(), CONFIG)
    rounded = train(network(), loss_fn, data(), config)
    assert exact.curve != rounded.curve
    for (_, a), (_, b) in zip(exact.curve, rounded.curve, strict=True):
        assert a == pytest.approx(b, rel=0.05)


def test_bfloat16_resumes_to_the_same_bits(tmp_path):
    resumed(tmp_path, dataclasses.replace(CONFIG, precision="bfloat16"))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has `torch.compile` run what it traced as it is, in place of a minute with a compiler; counts."""
    pytest.importorskip("torch._dynamo")
    torch._dynamo.reset()
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        found.append(next(len(i) for i in inputs if i.dim() == 2 and len(i) in (7, 5)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return found


def test_compiles_one_program_per_shape(programs):
    plain, compiled = network(), network()
    curve = train(plain, loss_fn, data(), CONFIG).curve
    assert not programs
    found = train(compiled, loss_fn, data(), dataclasses.replace(CONFIG, compile=True)).curve
    assert programs == [7, 5]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in curve], rel=1e-6)


def test_compiled_resumes_to_the_same_bits(tmp_path, programs):
    resumed(tmp_path, dataclasses.replace(CONFIG, compile=True))
    assert programs


@pytest.mark.slow
def test_compiled_to_machine_code_resumes_to_the_same_bits(tmp_path):
    resumed(tmp_path, dataclasses.replace(CONFIG, compile=True))


@pytest.mark.parametrize(
    "changed", [{"betas": (0.5, 0.9)}, {"weight_decay": 0.1}, {"precision": "bfloat16"}, {"compile": True}]
)
def test_refuses_to_resume_under_another(tmp_path, changed):
    with pytest.raises(Crash):
        train(network(), loss_fn, data(), CONFIG, run_dir=tmp_path, on_step=crash_after(4))
    config = dataclasses.replace(CONFIG, **changed)
    with pytest.raises(ConfigMismatch, match=f"{next(iter(changed))} was not given when the run began"):
        train(network(), loss_fn, data(), config, run_dir=tmp_path, resume=True)


def test_a_configuration_is_plain_values_and_back():
    config = dataclasses.replace(CONFIG, betas=[0.5, 0.9], weight_decay=0.1, precision="bfloat16")
    assert config.betas == (0.5, 0.9)
    assert config.deciding()["betas"] == [0.5, 0.9]
    assert dataclasses.replace(config, checkpoint_every=0) == TrainConfig(**config.deciding())
    assert not {"betas", "weight_decay", "precision", "compile", "workers"} & CONFIG.deciding().keys()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"betas": (0.9,)}, TypeError, "betas: expected two numbers"),
        ({"betas": (0.9, True)}, TypeError, "betas: expected two numbers"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas: expected 0 <= beta < 1"),
        ({"betas": (0.5, 0.9), "optimizer": "sgd"}, ValueError, "betas: SGD takes none"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay: expected a finite number of at least 0"),
        ({"precision": "float16"}, ValueError, "precision: expected 'float32' or 'bfloat16', got 'float16'"),
        ({"compile": 1}, TypeError, "compile: expected a bool"),
        ({"workers": -1}, ValueError, "workers: expected at least 0"),
    ],
)
def test_refuses_bad_settings(fields, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(CONFIG, **fields)
