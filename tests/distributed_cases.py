"""What two processes do for test_distributed.py, started by torchrun: every case in turn.

Each process leaves ``CASE-RANK.pt`` with what it saw in the folder that it is given.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import math
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from training_cases import Crash, crash_after

from lmser.training import (
    ConfigMismatch,
    Diverged,
    Interrupted,
    Objective,
    Run,
    TrainConfig,
    TrainResult,
    distributed,
    train,
)

CONFIG = TrainConfig(
    steps=24, batch_size=8, lr=0.01, gamma=0.99, seed=5, checkpoint_every=5, checkpoint_seconds=0
)


class Network(nn.Module):
    """With a layer that no loss touches."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))
        self.critic, self.unused = nn.Linear(6, 1), nn.Linear(2, 2)
        self.to(dtype)


def data(dtype: torch.dtype, samples: int = 40) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def loss_fn(model: Network, x: Tensor) -> Tensor:
    return (model.body(x) - x).square().mean() + 0.1 * model.critic(x).square().mean()


def generator_loss(model: Network, x: Tensor, shared: dict[str, Tensor]) -> Tensor:
    fake = model.body(x)
    shared["fake"] = fake.detach()
    return (fake - x).square().mean() - 0.1 * model.critic(fake).mean()


def critic_loss(model: Network, x: Tensor, shared: dict[str, Tensor]) -> Tensor:
    return (1 - model.critic(x)).relu().mean() + (1 + model.critic(shared["fake"])).relu().mean()


OBJECTIVES = (
    Objective("generator", lambda model: model.body.parameters(), generator_loss),
    Objective(
        "critic", lambda model: [*model.critic.parameters(), *model.unused.parameters()], critic_loss, lr=0.02
    ),
)


def gradients(model: Network) -> dict[str, Tensor]:
    assert model.unused.weight.grad is None
    return {f"{name}.grad": p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}


def evaluate(model: Network) -> dict[str, object]:
    if not distributed.is_main():
        raise AssertionError("evaluated by a second process")
    x = data(model.critic.weight.dtype)
    return {"mse": (model.body(x) - x).square().mean(), "first": model.body(x[:2])}


def compared(dtype: torch.dtype, samples: int, batch_size: int, objectives: bool, path: Path | None) -> dict:
    """One run of those that must come out the same with any number of processes."""
    model = Network(dtype)
    result = train(
        model,
        None if objectives else loss_fn,
        data(dtype, samples),
        dataclasses.replace(CONFIG, batch_size=batch_size),
        objectives=OBJECTIVES if objectives else None,
        run_dir=path,
        eval_at=(0, 10, 24),
        evaluate=evaluate,
        extra=gradients,
    )
    return {"weights": model.state_dict(), **told(result)}


def told(result: TrainResult) -> dict:
    return {"curve": result.curve, "extras": result.extras, "evaluations": result.evaluations}


SAME = {
    "plain": (torch.float64, 40, 8, False),
    "single": (torch.float32, 40, 8, False),
    "unequal": (torch.float64, 40, 7, False),  # slices of 4 and 3, at the end of an epoch of 3 and 2
    "empty": (torch.float64, 10, 3, False),  # slices of 2 and 1, at the end of an epoch of 1 and 0
    "objectives": (torch.float64, 40, 7, True),
}


# What is particular to several processes.


class Noisy(nn.Module):
    """Draws from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear, self.dropout = nn.Linear(6, 6), nn.Dropout(0.3)


DRAWN: list[float] = []


def noisy_loss(model: Noisy, x: Tensor) -> Tensor:
    noise = torch.randn(())
    DRAWN.append(noise.item())
    factor = float(np.random.rand()) + random.random() + noise
    return (model.linear(model.dropout(x)) - x * factor).square().mean()


def noisy(path: Path, **kwargs: object) -> TrainResult:
    return train(Noisy(), noisy_loss, data(torch.float32), CONFIG, run_dir=path, **kwargs)


def resumed(out: Path) -> dict:
    """A run in one piece, and one that crashes twice."""
    DRAWN.clear()
    whole = noisy(out / "whole")
    drawn = list(DRAWN)
    for step in (8, 17):
        try:
            noisy(out / "parts", resume=True, on_step=crash_after(step))
        except Crash:
            continue
        raise AssertionError("did not crash")
    parts = noisy(out / "parts", resume=True)
    return {"whole": told(whole), "parts": told(parts), "from": parts.resumed_from, "drawn": drawn}


def stopped(out: Path) -> dict:
    """A signal to the second process alone, twice, as torchrun passes on what a group has had already."""

    def interrupt(step: int, loss: Tensor) -> None:
        if step == 9 and not distributed.is_main():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    try:
        noisy(out / "stopped", on_step=interrupt)
    except Interrupted as stop:
        found = {"step": stop.step, "signum": stop.signum}
    distributed.barrier()
    found["saved"] = Run(out / "stopped").step
    distributed.barrier()  # before the first process goes on and saves again
    return {**found, **told(noisy(out / "stopped", resume=True))}


def diverged(out: Path) -> dict:
    """A loss that breaks in the second process alone."""
    calls = []

    def loss(model: Network, x: Tensor) -> Tensor:
        calls.append(None)
        broken = len(calls) == 9 and not distributed.is_main()
        return loss_fn(model, x) * (math.nan if broken else 1)

    try:
        train(Network(torch.float32), loss, data(torch.float32), CONFIG, run_dir=out / "diverged")
    except Diverged as error:
        return {"step": error.step, "curve": error.curve[:-1]}
    raise AssertionError("did not diverge")


def refused(out: Path) -> dict:
    """What goes wrong in the first process is told in both."""

    def message(error: type[Exception], **kwargs: object) -> str:
        try:
            noisy(out / "refused", **kwargs)
        except error as found:
            return str(found)
        raise AssertionError("not refused")

    def failing(model: nn.Module) -> dict[str, object]:
        raise OSError("no room for pictures")

    noisy(out / "refused")
    found = [
        message(FileExistsError),
        message(ConfigMismatch, resume=True, identity={"variant": "sup"}),
        message(TypeError, identity={"path": out}),
    ]
    try:
        train(Noisy(), noisy_loss, data(torch.float32), CONFIG, evaluate=failing, eval_at=(3,))
    except OSError as error:
        found.append(str(error))
    return {"messages": found}


class Numbers(torch.utils.data.Dataset):
    """Samples that are their own numbers, with noise of the global generator beside them."""

    def __len__(self) -> int:
        return 19

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(index), torch.rand(1)

    def fingerprint(self) -> str:
        return "0 to 18"


def covered(out: Path) -> dict:
    """Which samples each process sees: of tensors, and read by a worker."""
    found = {}
    for name, samples, workers in (("tensors", torch.arange(19), 0), ("dataset", Numbers(), 1)):
        seen: list[list[int]] = []
        noise: list[float] = []

        def loss(
            model: nn.Module,
            numbers: Tensor,
            drawn: Tensor | None = None,
            seen: list[list[int]] = seen,
            noise: list[float] = noise,
        ) -> Tensor:
            seen.append(numbers.tolist())
            if drawn is not None:
                noise.extend(drawn.flatten().tolist())
            return model(numbers[:, None].float()).square().mean()

        config = TrainConfig(steps=10, batch_size=4, lr=1e-3, seed=3, workers=workers)
        train(nn.Linear(1, 1), loss, samples, config)
        found[name], found[f"{name} noise"] = seen, noise
    return found


def job(out: Path) -> dict:
    """A job of an experiment: one result, written once."""
    from lmser.experiments.run_directory import RunRefused, open_run_directory
    from lmser.experiments.training_job import train_job

    open_run_directory(out / "experiment", {"a": 1}, resume=False)

    def go(**changes: object) -> object:
        options = {
            "build": lambda: Network(torch.float32),
            "loss": loss_fn,
            "data": data(torch.float32),
            "config": CONFIG,
            "eval_at": (10, 24),
            "evaluate": lambda model: {"mse": float(evaluate(model)["mse"])},
            "metrics": ("mse",),
            "pictures": lambda model: evaluate(model)["first"],
            "identity": {"variant": "un"},
            "device": torch.device("cpu"),
            "extra": gradients,
            **changes,
        }
        return train_job(out / "experiment" / "job", **options)

    first, again = go(), go()
    try:
        open_run_directory(out / "experiment", {"a": 2}, resume=True)
    except RunRefused as error:
        message = str(error)
    assert first.pictures[24].equal(again.pictures[24])
    return {"metrics": first.metrics, "again": again.metrics, "extras": first.extras, "refused": message}


OWN: tuple[Callable[[Path], dict], ...] = (resumed, stopped, diverged, refused, covered, job)


def main(out: Path) -> None:
    importlib.import_module("torch._dynamo")
    gc.freeze()  # as the fixture few_objects_to_collect
    with distributed.joined("cpu") as device:
        assert device == torch.device("cpu")
        assert distributed.world_size() == int(os.environ["WORLD_SIZE"])
        rank = distributed.rank()
        for name, settings in SAME.items():
            torch.save(compared(*settings, out / name), out / f"{name}-{rank}.pt")
        for case in OWN:
            torch.save(case(out), out / f"{case.__name__}-{rank}.pt")
    assert distributed.world_size() == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
