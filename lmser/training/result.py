"""What a run leaves behind, in memory and in its directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmser.training.checkpoint import load_checkpoint
from lmser.training.records import LOG

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainResult:
    """What a run has done so far (the trained weights are in the model that was passed to `train`).

    curve:             ``[(step, loss), ...]`` of every `log_every`-th step; step 1 is the first. With
                       objectives it is the first one's
    extras:            ``{name: [(step, value), ...]}`` of the same steps: what `extra` returned, and the
                       further objectives' losses as ``loss.NAME``
    evaluations:       ``{step: what evaluate returned}``, tensors on the CPU
    seconds_per_step:  median wall time of a step, evaluation and checkpoints left out
    seconds:           sum over the steps, all sessions of a resumed run together
    seconds_waiting:   of these, spent waiting for the next batch to be read
    peak_memory_bytes: CUDA: most bytes allocated by torch during the run; CPU on Linux: most resident memory
                       of the process; both above what was in use at the start. None where the system does not
                       tell
    steps:             steps taken, all sessions together
    resumed_from:      the step that the call continued from, None for a fresh run
    """

    curve: list[tuple[int, float]]
    evaluations: dict[int, dict[str, Any]]
    seconds_per_step: float
    seconds: float
    peak_memory_bytes: int | None
    steps: int
    resumed_from: int | None
    seconds_waiting: float
    extras: dict[str, list[tuple[int, float]]]


class Run:
    """A run directory, to look at: whether it is there, how far it is, what it holds. Nothing is written.

    Raises ValueError (on use, not on construction) where the checkpoint in it is not one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / CHECKPOINT

    @property
    def exists(self) -> bool:
        """A checkpoint is there: the run has begun."""
        return self.checkpoint.is_file()

    @property
    def step(self) -> int:
        """Steps done at the newest checkpoint."""
        return int(load_checkpoint(self.checkpoint)["step"])

    @property
    def finished(self) -> bool:
        """All steps are done; False where no run has begun."""
        if not self.exists:
            return False
        state = load_checkpoint(self.checkpoint)
        return bool(state["step"] == state["identity"]["steps"])

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the run was begun with: settings, ``identity.*``, ``model.*``, ``data[*]``."""
        return dict(load_checkpoint(self.checkpoint)["identity"])

    def result(self) -> TrainResult:
        """The run as of its newest checkpoint, without the model."""
        state = load_checkpoint(self.checkpoint)
        return make_result(state, state["identity"]["log_every"], None)

    def weights(self) -> dict[str, Tensor]:
        """The model's ``state_dict`` as of the newest checkpoint."""
        return dict(load_checkpoint(self.checkpoint)["model"])

    def log(self) -> list[dict[str, Any]]:
        """Lines of the log as mappings; a last line that a kill cut short is left out."""
        text = (self.path / LOG).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def make_result(state: Mapping[str, Any], log_every: int, resumed_from: int | None) -> TrainResult:
    """The result told by a checkpoint's content."""
    losses: Tensor = state["losses"]
    blocks: Tensor = state["blocks"]
    return TrainResult(
        curve=[((number + 1) * log_every, loss) for number, loss in enumerate(losses.tolist())],
        evaluations={int(step): dict(values) for step, values in state["evaluations"].items()},
        seconds_per_step=_median(blocks),
        seconds=float(blocks[:, 0].sum()),
        peak_memory_bytes=state["peak_memory_bytes"],
        steps=int(state["step"]),
        resumed_from=resumed_from,
        seconds_waiting=state["seconds_waiting"],
        extras={
            name: [(int(step), value) for step, value in found.tolist()]
            for name, found in state["extras"].items()
        },
    )


def _median(blocks: Tensor) -> float:
    """Median over steps of the mean time per step in each block ``(seconds, steps)``."""
    if len(blocks) == 0:
        return float("nan")
    each, order = torch.sort(blocks[:, 0] / blocks[:, 1])
    steps = blocks[order, 1].cumsum(0)
    return float(each[int((steps < 0.5 * steps[-1]).sum())])
