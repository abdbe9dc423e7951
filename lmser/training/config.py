"""What decides a training run, besides its initial weights and its data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

Optimizer = Literal["adam", "sgd"]
Schedule = Literal["exponential", "cosine"]

# Fields so marked may differ between a run and its continuation: they do not touch the numbers.
_FREE = {"free_on_resume": True}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; `train` refuses to resume a run under others.

    steps:              optimiser steps of the whole run (`steps_per_epoch` turns epochs into steps)
    batch_size:         samples per step
    lr:                 learning rate of the first step (after `warmup`)
    optimizer:          ``"adam"`` (betas 0.9 and 0.999, eps 1e-8) or ``"sgd"``
    momentum:           of SGD; must be 0 with Adam
    schedule, gamma:    ``"exponential"``: ``lr * gamma**step`` (000 uses gamma 0.9999);
                        ``"cosine"``: ``lr * gamma**step * (1 + cos(pi * step / steps)) / 2``
    warmup:             the first `warmup` steps rise linearly from ``lr / warmup`` to the schedule
    drop_last:          leave out an epoch's last, shorter batch
    seed:               of the sample order and of the generators a model draws noise from
    log_every:          record the loss of every n-th step
    checkpoint_every:   steps between two checkpoints, 0 for none by count
    checkpoint_seconds: seconds between two checkpoints, 0 for none by time

    The last two only matter with a run directory, and may differ when a run is resumed. A checkpoint is
    written besides at the start, after every evaluation, on SIGINT and SIGTERM, and at the end.

    Raises TypeError or ValueError naming the field that is wrong.
    """

    steps: int
    batch_size: int
    lr: float
    optimizer: Optimizer = "adam"
    momentum: float = 0.0
    schedule: Schedule = "exponential"
    gamma: float = 0.9999
    warmup: int = 0
    drop_last: bool = False
    seed: int = 0
    log_every: int = 1
    checkpoint_every: int = field(default=0, metadata=_FREE)
    checkpoint_seconds: float = field(default=60.0, metadata=_FREE)

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 1),
            ("batch_size", 1),
            ("warmup", 0),
            ("seed", 0),
            ("log_every", 1),
            ("checkpoint_every", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an int, got {value!r}")
            if value < low:
                raise ValueError(f"{name}: expected at least {low}, got {value}")
        if self.seed >= 2**63:
            raise ValueError(f"seed: expected less than 2**63, got {self.seed}")
        for name in ("lr", "momentum", "gamma", "checkpoint_seconds"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"{name}: expected a number, got {value!r}")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if self.lr == 0:
            raise ValueError("lr: expected more than 0, got 0")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma: expected 0 < gamma <= 1, got {self.gamma}")
        if self.momentum >= 1:
            raise ValueError(f"momentum: expected less than 1, got {self.momentum}")
        if not isinstance(self.drop_last, bool):
            raise TypeError(f"drop_last: expected a bool, got {self.drop_last!r}")
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer: expected 'adam' or 'sgd', got {self.optimizer!r}")
        if self.schedule not in ("exponential", "cosine"):
            raise ValueError(f"schedule: expected 'exponential' or 'cosine', got {self.schedule!r}")
        if self.optimizer == "adam" and self.momentum != 0:
            raise ValueError(f"momentum: Adam takes none (its betas are fixed), got {self.momentum}")

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the numbers, as plain values: what a resumed run must agree on."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("free_on_resume", False)
        }
