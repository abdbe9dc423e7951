"""Further numbers of a run: in its log, in its result, and for TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_cases import Crash, assert_same_run, crash_after
from training_cases import few_objects_to_collect as few_objects_to_collect

from lmser.training import Run, TrainConfig, train
from lmser.training.tensorboard import TensorBoard

CONFIG = TrainConfig(steps=12, batch_size=8, lr=0.01, seed=5, log_every=3, checkpoint_every=5)


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2), nn.Linear(5, 6))


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().mean()


def data() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def norms(model: nn.Module) -> dict[str, float | Tensor]:
    """Gradient norms per layer; draws noise, which must not touch the run."""
    torch.rand(3), random.random()
    assert not torch.is_grad_enabled()
    return {"first": model[0].weight.grad.norm(), "last": model[2].weight.grad.norm().item()}


def run(path: Path | None = None, **kwargs: object):  # type: ignore[no-untyped-def]
    return train(network(), loss_fn, data(), CONFIG, run_dir=path, **kwargs)


def test_gradients_are_there_and_the_run_is_not_changed(tmp_path):
    seen: list[tuple[int, float]] = []
    model = network()

    def watch(step: int, loss: Tensor) -> None:
        if step % 3 == 0:
            seen.append((step, model[0].weight.grad.norm().item()))

    quiet = train(model, loss_fn, data(), CONFIG, on_step=watch)
    result = run(tmp_path, extra=norms)
    assert result.curve == quiet.curve
    assert result.extras["first"] == seen
    assert [step for step, _ in result.extras["last"]] == [3, 6, 9, 12]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["first"] for line in lines] == [value for _, value in seen]
    assert Run(tmp_path).result().extras == result.extras
    assert quiet.extras == {}


def test_resumes_to_the_same_bits(tmp_path):
    run(tmp_path / "whole", extra=norms, evaluate=lambda model: {"a": 1}, eval_at=(6,))
    with pytest.raises(Crash):
        run(
            tmp_path / "parts", extra=norms, evaluate=lambda model: {"a": 1}, eval_at=(6,),
            on_step=crash_after(8),
        )  # fmt: skip
    run(tmp_path / "parts", extra=norms, evaluate=lambda model: {"a": 1}, eval_at=(6,), resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_name_may_come_later_and_a_number_may_be_broken():
    steps = iter(range(4))

    def extra(model: nn.Module) -> dict[str, float]:
        step = next(steps)
        return {"late": float(step)} if step >= 2 else {"early": math.nan}

    found = run(extra=extra).extras
    assert found["late"] == [(9, 2.0), (12, 3.0)]
    assert [step for step, value in found["early"] if math.isnan(value)] == [3, 6]


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (1.0, TypeError, "extra: expected it to return a mapping, got float"),
        ({"loss": 1.0}, ValueError, "extra: 'loss' is not a name for a number, or taken"),
        ({3: 1.0}, ValueError, "extra: 3 is not a name"),
        ({"a": "b"}, TypeError, "extra: expected a to be a number or a 0-d tensor, got str"),
        ({"a": torch.ones(2)}, TypeError, r"extra: expected a to be a number .* got shape \(2,\)"),
    ],
)
def test_refuses_what_is_no_number(returned, error, message):
    with pytest.raises(error, match=message):
        run(extra=lambda model: returned)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that TensorBoard would show."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_shows_what_the_log_holds(tmp_path):
    pytest.importorskip("tensorboard")

    def go(**kwargs: object):  # type: ignore[no-untyped-def]
        return run(
            tmp_path / "run", tensorboard=tmp_path / "board", extra=norms, eval_at=(6, 12),
            evaluate=lambda model: {"mse": 0.5, "name": "x", "images": torch.ones(2)}, **kwargs,
        )  # fmt: skip

    with pytest.raises(Crash):
        go(on_step=crash_after(11))  # the checkpoint is that of step 10
    result = go(resume=True)
    shown = read(tmp_path / "board")
    assert shown.keys() == {"loss", "first", "last", "evaluation/mse"}
    assert shown["evaluation/mse"] == [(6, 0.5), (12, 0.5)]
    for name, expected in {"loss": result.curve, **result.extras}.items():
        assert [step for step, _ in shown[name]] == [3, 6, 9, 12]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in expected])


def test_steps_that_are_taken_again_are_shown_once(tmp_path):
    pytest.importorskip("tensorboard")
    for start, steps in ((0, range(1, 7)), (3, range(4, 6))):
        board = TensorBoard(tmp_path, start)
        for step in steps:
            board.scalars(step, {"step": step, "loss": 10 * start + step, "name": "x"})
        board.close()
    assert read(tmp_path) == {"loss": [(1, 1), (2, 2), (3, 3), (4, 34), (5, 35)]}


def test_a_missing_tensorboard_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def missing(module: str, extra: str) -> None:
        raise ImportError(f"{module} is not installed; pip install 'lmser[{extra}]'")

    monkeypatch.setattr("lmser.training.loop.require", missing)
    with pytest.raises(
        ImportError, match=r"tensorboard is not installed; pip install 'lmser\[experiments\]'"
    ):
        run(tmp_path / "run", tensorboard=tmp_path / "board")
    assert not list(tmp_path.iterdir())


def test_a_run_may_be_followed_without_a_directory(tmp_path):
    pytest.importorskip("tensorboard")
    config = dataclasses.replace(CONFIG, log_every=1)
    result = train(network(), loss_fn, data(), config, tensorboard=tmp_path / "board")
    assert [step for step, _ in read(tmp_path / "board")["loss"]] == [step for step, _ in result.curve]
