"""The training loop: what it computes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import math
import random
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_cases import few_objects_to_collect as few_objects_to_collect

import lmser._extras
from lmser import Lmser
from lmser.training import (
    Diverged,
    Run,
    Sampler,
    TrainConfig,
    learning_rate,
    load_weights,
    save_weights,
    steps_per_epoch,
    train,
)
from lmser.training.memory import PeakMemory


def network() -> Lmser:
    torch.manual_seed(7)
    return Lmser((6, 5, 3))


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model.loss(x)


def data(n: int = 40) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# The order of the samples.


@pytest.mark.parametrize(
    ("n", "size", "drop_last"), [(10, 5, False), (10, 4, False), (10, 4, True), (3, 7, False)]
)
def test_sampler_visits_each_sample_once_per_epoch(n, size, drop_last):
    sampler = Sampler(n, size, seed=3, drop_last=drop_last)
    per_epoch = steps_per_epoch(n, size, drop_last)
    orders = []
    for epoch in range(3):
        batches = [sampler.indices(epoch * per_epoch + b).tolist() for b in range(per_epoch)]
        assert all(len(batch) == size for batch in batches[:-1])
        order = [index for batch in batches for index in batch]
        assert len(set(order)) == len(order) == (n // size * size if drop_last else n)
        orders.append(order)
    assert len({tuple(order) for order in orders}) > 1


def test_sampler_is_a_pure_function_of_seed_and_step():
    sampler = Sampler(50, 7, seed=3)
    there = [sampler.indices(step).tolist() for step in range(30)]
    back = [Sampler(50, 7, seed=3).indices(step).tolist() for step in reversed(range(30))]
    assert there == back[::-1]
    assert there != [Sampler(50, 7, seed=4).indices(step).tolist() for step in range(30)]


def test_sampler_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Sampler(50, 7, seed=3).indices(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_per_epoch():
    assert [steps_per_epoch(10, 5), steps_per_epoch(11, 5), steps_per_epoch(11, 5, drop_last=True)] == [
        2,
        3,
        2,
    ]
    with pytest.raises(ValueError, match="4 samples do not make one batch of 5"):
        steps_per_epoch(4, 5, drop_last=True)


# The learning rate.


def test_schedules():
    config = TrainConfig(steps=100, batch_size=1, lr=0.5, gamma=0.9)
    assert [learning_rate(config, s) for s in (0, 1, 10)] == [0.5, 0.5 * 0.9, 0.5 * 0.9**10]
    cosine = TrainConfig(steps=100, batch_size=1, lr=0.5, gamma=1.0, schedule="cosine")
    assert learning_rate(cosine, 0) == 0.5
    assert learning_rate(cosine, 50) == pytest.approx(0.25)
    assert 0 < learning_rate(cosine, 99) < 0.001
    step = TrainConfig(steps=9, batch_size=1, lr=0.5, gamma=0.1, schedule="step", milestones=(3, 6))
    assert [learning_rate(step, s) for s in (0, 2, 3, 5, 6, 8)] == pytest.approx(
        [0.5, 0.5, 0.05, 0.05, 0.005, 0.005]
    )
    warm = TrainConfig(steps=100, batch_size=1, lr=0.5, gamma=1.0, warmup=4)
    assert [learning_rate(warm, s) for s in range(5)] == [0.125, 0.25, 0.375, 0.5, 0.5]


# What it computes.


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_equals_a_plain_loop_bit_for_bit(optimizer):
    momentum = 0.9 if optimizer == "sgd" else 0.0
    config = TrainConfig(
        steps=57, batch_size=7, lr=0.01, optimizer=optimizer, momentum=momentum, gamma=0.99, seed=5
    )
    model, x = network(), data()
    result = train(model, squares, x, config)

    plain, sampler = network(), Sampler(40, 7, seed=5)
    if optimizer == "adam":
        stepper = torch.optim.Adam(plain.parameters(), lr=0.01, fused=True)
    else:
        stepper = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, fused=True)
    losses = []
    for step in range(57):
        stepper.param_groups[0]["lr"] = 0.01 * 0.99**step
        stepper.zero_grad()
        loss = plain.loss(x[sampler.indices(step)])
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert torch.equal(weights(model), weights(plain))
    assert result.curve == list(enumerate(losses, 1))
    assert result.steps == 57
    assert result.resumed_from is None


def test_gathers_several_tensors_alike():
    x, y = torch.arange(20.0).reshape(20, 1), torch.arange(20)
    seen = []

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert torch.equal(x[:, 0].long(), y)
        seen.extend(y.tolist())
        return model(x).square().mean()

    train(nn.Linear(1, 1), loss, (x, y), TrainConfig(steps=4, batch_size=5, lr=1e-3))
    assert sorted(seen) == list(range(20))


def test_log_every():
    whole = train(network(), squares, data(), TrainConfig(steps=10, batch_size=8, lr=0.01))
    thin = train(network(), squares, data(), TrainConfig(steps=10, batch_size=8, lr=0.01, log_every=4))
    assert thin.curve == [whole.curve[3], whole.curve[7]]


def test_on_step_sees_every_step():
    seen = []
    result = train(
        network(), squares, data(), TrainConfig(steps=5, batch_size=8, lr=0.01),
        on_step=lambda step, loss: seen.append((step, loss.item(), loss.requires_grad)),
    )  # fmt: skip
    assert [(step, loss) for step, loss, _ in seen] == result.curve
    assert not any(grad for *_, grad in seen)


def test_a_frozen_parameter_stays():
    model = network()
    model.weights[0].requires_grad_(False)
    frozen = model.weights[0].clone()
    train(model, squares, data(), TrainConfig(steps=5, batch_size=8, lr=0.01))
    assert torch.equal(model.weights[0], frozen)


class Noisy(nn.Module):
    """Draws from every generator there is, so that the run depends on all of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear, self.dropout = nn.Linear(6, 6), nn.Dropout(0.3)

    def loss(self, x: Tensor) -> Tensor:
        noise = float(np.random.rand()) + random.random() + torch.randn(())
        return (self.linear(self.dropout(x)) - x * noise).square().mean()


def test_a_run_depends_on_its_seed_and_not_on_the_generators_outside():
    config = TrainConfig(steps=20, batch_size=8, lr=0.01, seed=2)
    results = []
    for outside in (0, 1):
        model = Noisy()
        torch.manual_seed(outside)
        np.random.seed(outside)
        random.seed(outside)
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        train(model, squares, data(), config)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()
        assert random.getstate() == states[2]
        results.append(weights(model))
    assert torch.equal(*results)
    model = Noisy()
    train(model, squares, data(), TrainConfig(steps=20, batch_size=8, lr=0.01, seed=3))
    assert not torch.equal(weights(model), results[0])


# Evaluations.


def test_evaluating_does_not_change_the_run():
    config = TrainConfig(steps=30, batch_size=8, lr=0.01)
    quiet, watched = Noisy(), Noisy()
    train(quiet, squares, data(), config)

    def evaluate(model: nn.Module) -> dict[str, object]:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.randn(3), np.random.rand(), random.random()
        with torch.enable_grad():  # an attack needs gradients
            model.linear(torch.ones(6, requires_grad=True)).sum().backward()
        return {
            "norm": weights(model).norm(),
            "weights": weights(model),
            "n": np.float64(1.5),
            "list": [1, (2, "a")],
        }

    result = train(watched, squares, data(), config, eval_at=(0, 7, 30), evaluate=evaluate)
    assert torch.equal(weights(quiet), weights(watched))
    assert sorted(result.evaluations) == [0, 7, 30]
    last = result.evaluations[30]
    assert torch.equal(last["weights"], weights(watched))
    assert last["norm"] == weights(watched).norm().item()
    assert (type(last["n"]), last["n"], last["list"]) == (float, 1.5, [1, [2, "a"]])
    assert watched.training


def test_evaluates_after_the_last_step_by_default():
    result = train(
        network(),
        squares,
        data(),
        TrainConfig(steps=3, batch_size=8, lr=0.01),
        evaluate=lambda model: {"a": 1},
    )
    assert result.evaluations == {3: {"a": 1}}


@pytest.mark.parametrize(
    ("returned", "message"), [(3.0, "expected it to return a mapping"), ({"a": {1, 2}}, "'a' is a set")]
)
def test_refuses_what_an_evaluation_must_not_return(returned, message):
    with pytest.raises(TypeError, match=message):
        train(
            network(),
            squares,
            data(),
            TrainConfig(steps=1, batch_size=8, lr=0.1),
            evaluate=lambda model: returned,
        )


# The files of a run.


def test_run_directory(tmp_path):
    config = TrainConfig(steps=12, batch_size=8, lr=0.01, log_every=5)
    run = Run(tmp_path / "a" / "b")
    assert not run.exists
    assert not run.finished
    model = network()
    result = train(
        model, squares, data(), config, run_dir=run.path, eval_at=(5, 12), identity={"name": ("x", 1)},
        evaluate=lambda model: {"norm": weights(model).norm(), "weights": weights(model)},
    )  # fmt: skip
    assert run.exists
    assert run.finished
    assert run.step == 12
    assert run.identity["lr"] == 0.01
    assert run.identity["identity.name"] == ["x", 1]
    assert run.identity["model.weights.0"] == "float32 [5, 6]"
    assert run.identity["data[0]"].startswith("float32 [40, 6] sha256 ")
    assert {"step": 12, "evaluation": {"norm": result.evaluations[12]["norm"]}} == run.log()[-1]
    assert [entry["step"] for entry in run.log()] == [5, 5, 10, 12]
    assert [(entry["step"], entry["loss"]) for entry in run.log() if "loss" in entry] == result.curve
    again = run.result()
    assert again.curve == result.curve
    assert again.evaluations[5]["norm"] == result.evaluations[5]["norm"]
    assert torch.equal(again.evaluations[5]["weights"], result.evaluations[5]["weights"])
    assert 0 < result.seconds_per_step <= result.seconds
    assert all(torch.equal(run.weights()[name], value) for name, value in model.state_dict().items())
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_log_holds_no_time(tmp_path):
    for name in ("a", "b"):
        train(
            network(), squares, data(), TrainConfig(steps=12, batch_size=8, lr=0.01), run_dir=tmp_path / name
        )
    assert (tmp_path / "a" / "log.jsonl").read_bytes() == (tmp_path / "b" / "log.jsonl").read_bytes()


def test_a_cut_last_line_of_the_log_is_left_out(tmp_path):
    train(network(), squares, data(), TrainConfig(steps=3, batch_size=8, lr=0.01), run_dir=tmp_path)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 4, "lo')
    assert [entry["step"] for entry in Run(tmp_path).log()] == [1, 2, 3]


# What goes wrong.


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_divergence_is_told_and_never_saved(tmp_path, log_every):
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        loss.calls += 1
        return model.loss(x) * (math.nan if loss.calls >= 8 else 1)

    loss.calls = 0
    config = TrainConfig(steps=20, batch_size=8, lr=0.01, log_every=log_every, checkpoint_every=5)
    with pytest.raises(Diverged, match="the loss became nan at step") as caught:
        train(
            network(), loss, data(), config, run_dir=tmp_path, eval_at=(2,), evaluate=lambda model: {"a": 1}
        )
    # Seen at once where every loss is recorded, else at the next one that is, or before the next checkpoint.
    assert caught.value.step == {1: 8, 3: 9, 100: 10}[log_every]
    assert math.isnan(caught.value.curve[-1][1])
    assert all(math.isfinite(value) for _, value in caught.value.curve[:-1])
    assert caught.value.evaluations == {2: {"a": 1}}
    assert Run(tmp_path).step == 5
    assert all(bool(value.isfinite().all()) for value in Run(tmp_path).weights().values())
    assert len(Run(tmp_path).log()) >= 1


def test_an_error_of_the_loss_passes_and_the_model_is_as_before():
    model = network().eval()
    with pytest.raises(ValueError, match=r"loss_fn: expected a 0-d tensor, got shape \(8, 6\)"):
        train(
            model,
            lambda model, x: model(x).reconstruction,
            data(),
            TrainConfig(steps=2, batch_size=8, lr=1.0),
        )
    with pytest.raises(ValueError, match="loss_fn: expected a 0-d tensor, got float"):
        train(model, lambda model, x: 1.0, data(), TrainConfig(steps=2, batch_size=8, lr=1.0))
    assert not model.training


GOOD = {"steps": 10, "batch_size": 5, "lr": 0.1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: expected at least 1"),
        ({"steps": 1.5}, TypeError, "steps: expected an int"),
        ({"batch_size": True}, TypeError, "batch_size: expected an int"),
        ({"lr": 0.0}, ValueError, "lr: expected more than 0"),
        ({"lr": -1.0}, ValueError, "lr: expected a finite number of at least 0"),
        ({"lr": math.nan}, ValueError, "lr: expected a finite number"),
        ({"lr": "0.1"}, TypeError, "lr: expected a number"),
        ({"optimizer": "lion"}, ValueError, "optimizer: expected 'adam' or 'sgd'"),
        ({"momentum": 0.9}, ValueError, "momentum: Adam takes none"),
        ({"optimizer": "sgd", "momentum": 1.0}, ValueError, "momentum: expected less than 1"),
        ({"schedule": "linear"}, ValueError, "schedule: expected"),
        ({"schedule": "step"}, ValueError, "milestones: expected some"),
        ({"milestones": [3]}, ValueError, "milestones: expected some"),
        ({"schedule": "step", "milestones": [4, 3]}, ValueError, "milestones: expected steps above 0"),
        ({"schedule": "step", "milestones": 3}, TypeError, "milestones: expected ints"),
        ({"gamma": 1.1}, ValueError, "gamma: expected"),
        ({"gamma": 0}, ValueError, "gamma: expected"),
        ({"warmup": -1}, ValueError, "warmup: expected at least 0"),
        ({"drop_last": 1}, TypeError, "drop_last: expected a bool"),
        ({"seed": -1}, ValueError, "seed: expected at least 0"),
        ({"seed": 2**63}, ValueError, "seed: expected less than"),
        ({"checkpoint_seconds": math.inf}, ValueError, "checkpoint_seconds: expected a finite number"),
    ],
)
def test_refuses_bad_settings(change, error, message):
    with pytest.raises(error, match=message):
        TrainConfig(**{**GOOD, **change})


def test_refuses_bad_calls(tmp_path):
    config, x = TrainConfig(**GOOD), data()

    def call(data: object = x, model: nn.Module | None = None, **kwargs: object) -> None:
        train(model or network(), squares, data, config, run_dir=tmp_path / "run", **kwargs)

    with pytest.raises(TypeError, match="data: expected a tensor"):
        call([x, "labels"])
    with pytest.raises(TypeError, match="data: expected a tensor"):
        call([])
    with pytest.raises(
        ValueError, match="data: expected tensors of one length on one device, got 40 on cpu, 39"
    ):
        call([x, x[:-1]])
    with pytest.raises(ValueError, match="data: 0 samples"):
        call(x[:0])
    with pytest.raises(ValueError, match="model: it has no parameter to train"):
        call(model=nn.Identity())
    with pytest.raises(ValueError, match="eval_at: steps were given but no evaluate"):
        call(eval_at=(1,))
    with pytest.raises(ValueError, match=r"eval_at: expected steps of the run, 0 ... 10, got 11"):
        call(eval_at=(11,), evaluate=lambda model: {})
    with pytest.raises(TypeError, match="identity: expected plain values"):
        call(identity={"path": tmp_path})
    with pytest.raises(ValueError, match="resume: there is nothing to resume without run_dir"):
        train(network(), squares, x, config, resume=True)
    assert not (tmp_path / "run").exists()


# Around the loop.


def test_no_bar_where_nobody_looks(capsys):
    train(network(), squares, data(), TrainConfig(**GOOD))
    assert capsys.readouterr() == ("", "")


def test_a_bar_where_it_is_wanted(capsys):
    pytest.importorskip("tqdm")
    train(network(), squares, data(), TrainConfig(**GOOD), progress=True, description="CLmser-n")
    shown = capsys.readouterr().err
    assert "CLmser-n" in shown
    assert "10/10" in shown
    assert "loss" in shown


def test_a_missing_bar_is_an_error_only_where_it_is_wanted(monkeypatch, capsys):
    def missing(module: str, extra: str) -> None:
        raise ImportError(f"{module} is not installed; pip install 'lmser[{extra}]'")

    monkeypatch.setattr("lmser.training.progress.require", missing)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(network(), squares, data(), TrainConfig(**GOOD))
    with pytest.raises(ImportError, match=r"lmser\[experiments\]"):
        train(network(), squares, data(), TrainConfig(**GOOD), progress=True)
    assert lmser._extras.require is not missing


def test_runs_in_a_thread(tmp_path):
    # Signals cannot be handled there, and need not be.
    results = []
    thread = threading.Thread(
        target=lambda: results.append(
            train(network(), squares, data(), TrainConfig(**GOOD), run_dir=tmp_path)
        )
    )
    thread.start()
    thread.join()
    assert results[0].steps == 10


def test_weights_round_trip(tmp_path):
    pytest.importorskip("safetensors")
    model, other = network(), Lmser((6, 5, 3))
    save_weights(model, tmp_path / "w.safetensors", {"variant": "un"})
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(weights(model), weights(other))
    with pytest.raises(ValueError, match=r"w.safetensors: .*weights.* is \(\d, \d\) there and"):
        load_weights(Lmser((6, 4, 3)), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"decoder_weights.\d is missing there"):
        load_weights(Lmser((6, 5, 3), dcw=False), tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    for broken in (content[:-1], content[:20], b"", json.dumps({}).encode()):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(ValueError, match="broken: not a complete safetensors file"):
            load_weights(other, tmp_path / "broken")
    assert torch.equal(weights(model), weights(other))


def test_peak_memory_sees_a_temporary_and_leaves_out_what_it_should():
    size = 64 * 2**20  # bytes
    peak = PeakMemory(torch.device("cpu"))
    if peak.bytes() is None:
        pytest.skip("this system does not let the mark be reset")

    def touch(times: int) -> None:
        torch.ones(times * size, dtype=torch.uint8)

    with peak.left_out():
        touch(1)
    assert peak.bytes() < size // 2
    touch(1)
    assert size * 0.9 < peak.bytes() < size * 2
    with peak.left_out():
        touch(4)
    assert peak.bytes() < size * 2
