"""What decides a training run, besides its initial weights and its data."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

Optimizer = Literal["adam", "sgd", "sgd-l2", "sgd-linf"]
Schedule = Literal["exponential", "cosine", "step"]
Precision = Literal["float32", "bfloat16"]

# Fields so marked may differ between a run and its continuation: they do not touch the numbers.
_FREE = {"free_on_resume": True}
# Fields so marked came later than the first runs. At their default they are not written down with a run, so
# that those from before can be continued and read.
_LATER = {"later": True}

_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; `train` refuses to resume a run under others.

    steps:              optimiser steps of the whole run (`steps_per_epoch` turns epochs into steps)
    batch_size:         samples per step, of all processes together
    lr:                 learning rate of the first step (after `warmup`)
    optimizer:          ``"adam"`` (eps 1e-8), ``"sgd"``, or ``"sgd-l2"`` or ``"sgd-linf"``: SGD on gradients
                        renormalised tensor by tensor (`lmser.training.normalised_sgd`)
    betas:              of Adam: decay of its mean of gradients and of its mean of squared gradients
    momentum:           of SGD; must be 0 with Adam
    weight_decay:       ``weight_decay * weight`` is added to each gradient (an L2 penalty of half of it)
    schedule, gamma:    ``"exponential"``: ``lr * gamma**step`` (000 uses gamma 0.9999);
                        ``"cosine"``: ``lr * gamma**step * (1 + cos(pi * step / steps)) / 2``;
                        ``"step"``: ``lr * gamma**(number of milestones that are at most step)``
    milestones:         steps before which the learning rate of ``"step"`` falls, the first step being 0
    warmup:             the first `warmup` steps rise linearly from ``lr / warmup`` to the schedule
    drop_last:          leave out an epoch's last, shorter batch
    seed:               of the sample order and of the generators a model draws noise from
    precision:          ``"float32"``: as the model is; ``"bfloat16"``: the loss is computed under
                        ``torch.autocast``, weights, gradients and evaluations stay as the model is
    compile:            compile the loss function with ``torch.compile``, once for each shape of a batch
    log_every:          record the loss of every n-th step
    checkpoint_every:   steps between two checkpoints, 0 for none by count
    checkpoint_seconds: seconds between two checkpoints, 0 for none by time
    workers:            processes that read a data set which is not in memory, 0 for none
    cuda_graph:         on a CUDA device, record a step and replay it for every batch of the same shape
                        (`lmser.training.graphed`): None where that can be done, saying once why where it cannot;
                        False never; True or a RuntimeError. The numbers are the same to the bit

    The last four may differ when a run is resumed. A checkpoint is written, in a run with a directory,
    besides at the start, after every evaluation, on SIGINT and SIGTERM, and at the end.

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
    workers: int = field(default=0, metadata=_FREE)
    cuda_graph: bool | None = field(default=None, metadata=_FREE)
    betas: tuple[float, float] = field(default=_BETAS, metadata=_LATER)
    weight_decay: float = field(default=0.0, metadata=_LATER)
    precision: Precision = field(default="float32", metadata=_LATER)
    compile: bool = field(default=False, metadata=_LATER)
    milestones: tuple[int, ...] = field(default=(), metadata=_LATER)

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 1),
            ("batch_size", 1),
            ("warmup", 0),
            ("seed", 0),
            ("log_every", 1),
            ("checkpoint_every", 0),
            ("workers", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an int, got {value!r}")
            if value < low:
                raise ValueError(f"{name}: expected at least {low}, got {value}")
        if self.seed >= 2**63:
            raise ValueError(f"seed: expected less than 2**63, got {self.seed}")
        for name in ("lr", "momentum", "gamma", "weight_decay", "checkpoint_seconds"):
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
        for name in ("drop_last", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {getattr(self, name)!r}")
        if not (self.cuda_graph is None or isinstance(self.cuda_graph, bool)):
            raise TypeError(f"cuda_graph: expected a bool or None, got {self.cuda_graph!r}")
        for name, known in (
            ("optimizer", ("adam", "sgd", "sgd-l2", "sgd-linf")),
            ("schedule", ("exponential", "cosine", "step")),
            ("precision", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in known:
                expected = " or ".join(map(repr, known))
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        object.__setattr__(self, "betas", checked_betas(self.betas))
        object.__setattr__(self, "milestones", _checked_milestones(self.milestones))
        if bool(self.milestones) != (self.schedule == "step"):
            raise ValueError(
                f"milestones: expected some with the schedule 'step' and none with another, got "
                f"{self.milestones} with {self.schedule!r}"
            )
        if self.optimizer == "adam" and self.momentum != 0:
            raise ValueError(f"momentum: Adam takes none (it takes betas), got {self.momentum}")
        if self.optimizer != "adam" and self.betas != _BETAS:
            raise ValueError(f"betas: SGD takes none (it takes momentum), got {self.betas}")

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the numbers, as plain values: what a resumed run must agree on.

        ``TrainConfig(**config.deciding())`` decides the same.
        """
        found = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("free_on_resume") or (f.metadata.get("later") and value == f.default):
                continue
            found[f.name] = list(value) if isinstance(value, tuple) else value
        return found


def _checked_milestones(milestones: Any) -> tuple[int, ...]:
    """`milestones` as a tuple; TypeError or ValueError where they are not ints that rise."""
    if not isinstance(milestones, (tuple, list)) or not all(
        isinstance(step, int) and not isinstance(step, bool) for step in milestones
    ):
        raise TypeError(f"milestones: expected ints, got {milestones!r}")
    if any(a >= b for a, b in itertools.pairwise((0, *milestones))):
        raise ValueError(f"milestones: expected steps above 0 that rise, got {tuple(milestones)}")
    return tuple(milestones)


def checked_betas(betas: Any) -> tuple[float, float]:
    """`betas` as two floats; TypeError or ValueError where they are not two numbers in [0, 1)."""
    if (
        not isinstance(betas, (tuple, list))
        or len(betas) != 2
        or not all(isinstance(b, (int, float)) and not isinstance(b, bool) for b in betas)
    ):
        raise TypeError(f"betas: expected two numbers, got {betas!r}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas: expected 0 <= beta < 1 for both, got {tuple(betas)}")
    return float(betas[0]), float(betas[1])
