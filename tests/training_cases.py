"""What the tests of the training loop share: breaking a run off, and comparing two to the bit."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path

import pytest
from torch import Tensor

from lmser.training import Run, load_checkpoint


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_collect():
    """Each run measures memory and collects garbage for that: not among all that torch has made."""
    importlib.import_module("torch._dynamo")  # which the first optimiser would do
    gc.freeze()
    yield
    gc.unfreeze()


class Crash(Exception):
    pass


def crash_after(step: int):
    def on_step(done: int, loss: Tensor) -> None:
        if done == step:
            raise Crash

    return on_step


def assert_same_run(path: Path, other: Path) -> None:
    """Weights, optimisers, generators, curve and evaluations to the bit, and the log to the byte."""
    first, second = load_checkpoint(path / "checkpoint.pt"), load_checkpoint(other / "checkpoint.pt")
    for state in (first, second):
        for clock in ("blocks", "seconds_waiting", "peak_memory_bytes"):
            del state[clock]
    assert flat(first) == flat(second)
    assert (path / "log.jsonl").read_bytes() == (other / "log.jsonl").read_bytes()
    assert Run(path).finished


def flat(value: object) -> object:
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: flat(entry) for key, entry in value.items()}
    return [flat(entry) for entry in value] if isinstance(value, (list, tuple)) else value
