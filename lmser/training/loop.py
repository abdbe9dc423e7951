"""The loop. (Signatures; the bodies follow within minutes.)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lmser.training.config import TrainConfig

LossFn = Callable[..., Tensor]
Evaluate = Callable[[nn.Module], Mapping[str, Any]]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves behind (the trained weights are in the model that was passed).

    curve:             ``[(step, loss), ...]`` of every `log_every`-th step; step 1 is the first
    evaluations:       ``{step: what evaluate returned}``
    seconds_per_step:  median wall time of a step, evaluation and checkpoints left out
    seconds:           sum over the steps, all sessions of a resumed run together
    peak_memory_bytes: CUDA: most bytes allocated during the run; CPU on Linux: most resident memory during
                       the run above that at its start; None where the system does not tell
    steps:             steps taken by the run, all sessions together
    resumed_from:      the step this call continued from, None for a fresh run
    """

    curve: list[tuple[int, float]]
    evaluations: dict[int, dict[str, Any]]
    seconds_per_step: float
    seconds: float
    peak_memory_bytes: int | None
    steps: int
    resumed_from: int | None


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the step was finished and a checkpoint written first.

    `step`, `checkpoint` (path), `signum`. ``str()`` is a message for the user; exit status 128 + signum.
    A KeyboardInterrupt, so that ``except Exception`` does not swallow it.
    """

    step: int
    checkpoint: Path
    signum: int


class Diverged(ArithmeticError):
    """The loss became infinite or NaN. `step`: the first such step; `curve`: up to and with it."""

    step: int
    curve: list[tuple[int, float]]


def train(
    model: nn.Module,
    loss_fn: LossFn,
    data: Tensor | Sequence[Tensor],
    config: TrainConfig,
    *,
    run_dir: Path | str | None = None,
    resume: bool = False,
    eval_at: Sequence[int] = (),
    evaluate: Evaluate | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    description: str = "",
) -> TrainResult:
    """Train `model` in place for `config.steps` steps and return what happened.

    model:       on the device it is to train on; `data` is gathered by index on its own device and moved
    loss_fn:     ``loss_fn(model, *batch) -> 0-d tensor``; called in training mode
    data:        a tensor ``(n, ...)`` or several of the same length n (e.g. images and labels)
    run_dir:     where checkpoint and log go. Without `resume` it must not hold a run already
    resume:      continue from the checkpoint in `run_dir`; start at step 0 if there is none yet. A run that
                 is already finished returns its result at once (weights loaded into `model`)
    eval_at:     steps after which ``evaluate(model)`` is called, in evaluation mode, without gradients and
                 with the generators' states put back afterwards. It returns a mapping of numbers, strings
                 and lists (logged) and tensors (kept in the checkpoint only)
    on_step:     ``on_step(step, loss)`` after every step; `loss` is detached and still on the device
    identity:    further plain values that decide the numbers (data set, variant, initialisation ...);
                 a resumed run must give the same ones
    progress:    show a progress bar (extra ``experiments``); None: only on a terminal where tqdm is installed
    description: shown before the bar

    Raises ConfigMismatch naming the differing key when a resumed run's settings, model or data differ;
    FileExistsError when `run_dir` holds a run and `resume` is False; Diverged; Interrupted.
    """
    raise RuntimeError("being written")


class Run:
    """A run directory, read only: `Run(path).exists`, `.step`, `.finished`, `.config`, `.log()`, `.result()`.

    exists:   a checkpoint is there
    step:     steps done at the newest checkpoint
    finished: step == config.steps
    config:   the `deciding` settings and identity it was started with (dict)
    log():    ``[{"step": ..., "loss": ...} | {"step": ..., "evaluation": {...}}, ...]``
    result(): the `TrainResult` as of the newest checkpoint, without a model
    """
