"""What a run has found so far: losses, further scalars, evaluations, times; and its log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmser._atomic import atomic_write
from lmser.training.distributed import is_main, summed, world_size
from lmser.training.tensorboard import TensorBoard

LOG = "log.jsonl"


class Diverged(ArithmeticError):
    """The loss became infinite or NaN.

    `step`: the first such step; `curve`: ``[(step, loss), ...]`` up to and with it; `evaluations`: those
    before it; `objective`: the name of the objective whose loss it was, None in a run without. With a run
    directory the newest checkpoint is the last state whose losses were finite when it was saved.
    """

    def __init__(
        self,
        step: int,
        loss: float,
        curve: list[tuple[int, float]],
        evaluations: dict[int, dict[str, Any]],
        objective: str | None,
    ) -> None:
        of = "" if objective is None else f" of {objective}"
        super().__init__(f"the loss{of} became {loss} at step {step}; a smaller learning rate may help")
        self.step, self.curve, self.evaluations, self.objective = step, curve, evaluations, objective


@dataclass(frozen=True)
class _Waiting:
    """A step's numbers while they are still on the device; `weight`: this process's part of the batch."""

    step: int
    losses: Sequence[Tensor]
    weight: float
    extra: Mapping[str, float | Tensor]


class Record:
    """Gathers what the steps and the evaluations of a run give, and writes the log.

    names: of the objectives, the first being the one whose loss is the curve; one name: a run without.
    """

    def __init__(self, directory: Path | None, log_every: int, names: Sequence[str]) -> None:
        self._log = directory / LOG if directory is not None and is_main() else None
        self._every, self._names = log_every, names
        self.board = TensorBoard(None, 0)
        self._losses: list[float] = []
        self._extras: dict[str, list[tuple[int, float]]] = {}
        self.evaluations: dict[int, dict[str, Any]] = {}
        self.blocks: list[tuple[float, int]] = []  # (seconds, steps) between two synchronisations
        self._waiting: list[_Waiting] = []
        self._newest: _Waiting | None = None

    @property
    def waiting(self) -> int:
        """Steps to be recorded whose numbers are still on the device."""
        return len(self._waiting)

    @property
    def newest_loss(self) -> float | None:
        """The newest loss that has come from the device."""
        return self._losses[-1] if self._losses else None

    def state(self) -> dict[str, Any]:
        """Its part of a checkpoint."""
        return {
            "losses": _kept(self._losses),
            "extras": {name: _kept(found) for name, found in self._extras.items()},
            "evaluations": self.evaluations,
            "blocks": _kept(self.blocks).reshape(-1, 2),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._losses = state["losses"].tolist()
        self._extras = {
            name: [(int(step), value) for step, value in found.tolist()]
            for name, found in state["extras"].items()
        }
        self.evaluations = dict(state["evaluations"])
        self.blocks = [(float(seconds), int(steps)) for seconds, steps in state["blocks"].tolist()]

    def write_log(self) -> None:
        """Write the whole log anew, so that nothing of what a kill cut off stays in it."""
        if self._log is None:
            return
        extras: dict[int, dict[str, float]] = {}
        for name, found in self._extras.items():
            for step, value in found:
                extras.setdefault(step, {})[name] = value
        entries = [
            (step, 0, {"step": step, "loss": loss, **extras.get(step, {})}) for step, loss in self._curve()
        ]
        entries += [(step, 1, _evaluation_entry(step, values)) for step, values in self.evaluations.items()]
        with atomic_write(self._log, "w") as file:
            file.write(_lines(entry for _, _, entry in sorted(entries, key=lambda entry: entry[:2])))

    def add(
        self, step: int, losses: Sequence[Tensor], weight: float, extra: Mapping[str, float | Tensor]
    ) -> None:
        """Note what a step gave, without waiting for the device."""
        self._newest = _Waiting(step, losses, weight, extra)
        if step % self._every == 0:
            self._waiting.append(self._newest)

    def flush(self) -> None:
        """Wait for the device, and put what has gathered where it belongs.

        The newest step's losses are looked at even where they are not to be recorded: a state with a broken
        one is never saved. Raises `Diverged`.
        """
        assert self._newest is not None
        *rows, newest = self._losses_of([*self._waiting, self._newest])
        entries = []
        broken: tuple[int, list[float]] | None = None
        for waiting, losses in zip(self._waiting, rows, strict=True):
            entries.append(self._keep(waiting, losses))
            if not all(map(math.isfinite, losses)):
                broken = waiting.step, losses
                break
        self._waiting.clear()
        self._append(entries)
        for entry in entries:
            self.board.scalars(entry["step"], entry)
        curve = self._curve()
        if broken is None and not all(map(math.isfinite, newest)):
            broken = self._newest.step, newest
            curve.append((self._newest.step, newest[0]))
        if broken is not None:
            step, losses = broken
            which = next(n for n, loss in enumerate(losses) if not math.isfinite(loss))
            name = self._names[which] if len(self._names) > 1 else None
            raise Diverged(step, losses[which], curve, self.evaluations, name)

    def evaluated(self, step: int, values: dict[str, Any]) -> None:
        """Keep what an evaluation gave."""
        self.evaluations[step] = values
        self._append([_evaluation_entry(step, values)])
        self.board.scalars(step, values, "evaluation/")

    def _losses_of(self, waiting: Sequence[_Waiting]) -> list[list[float]]:
        losses = torch.stack([loss for each in waiting for loss in each.losses])
        if world_size() > 1:
            weights = _kept([each.weight for each in waiting])
            parts = losses.double().cpu() * weights.repeat_interleave(len(self._names))
            losses = summed(parts)
        found: list[float] = losses.tolist()
        width = len(self._names)
        return [found[start : start + width] for start in range(0, len(found), width)]

    def _keep(self, waiting: _Waiting, losses: Sequence[float]) -> dict[str, Any]:
        self._losses.append(losses[0])
        named = {f"loss.{name}": loss for name, loss in zip(self._names[1:], losses[1:], strict=True)}
        named.update({name: float(value) for name, value in waiting.extra.items()})
        for name, value in named.items():
            self._extras.setdefault(name, []).append((waiting.step, value))
        return {"step": waiting.step, "loss": losses[0], **named}

    def _curve(self) -> list[tuple[int, float]]:
        return [(number * self._every, loss) for number, loss in enumerate(self._losses, 1)]

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        if self._log is not None:
            with open(self._log, "a", encoding="utf-8", newline="\n") as log:
                log.write(_lines(entries))


def _kept(numbers: Sequence[Any]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _evaluation_entry(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's line of the log: tensors are left out, they are in the checkpoint."""
    return {"step": step, "evaluation": {k: v for k, v in values.items() if not isinstance(v, Tensor)}}


def _lines(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)
