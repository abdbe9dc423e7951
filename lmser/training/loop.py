"""The loop: one step after the other, and everything that must happen between two of them."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmser._extras import require
from lmser.training.batches import Batches, Data, Transform
from lmser.training.checkpoint import check_identity, load_checkpoint, run_identity, save_checkpoint
from lmser.training.config import TrainConfig
from lmser.training.distributed import (
    check_default_group,
    gathered,
    is_main,
    on_main,
    rank,
    world_size,
)
from lmser.training.evaluation import Evaluate, checked_eval_at, plain_values
from lmser.training.memory import PeakMemory
from lmser.training.objectives import LossFn, Objective, resolve
from lmser.training.pace import Pace
from lmser.training.progress import ProgressBar
from lmser.training.randomness import (
    generator_states,
    generators_kept,
    seed_generators,
    set_generator_states,
)
from lmser.training.records import LOG, Record
from lmser.training.result import CHECKPOINT, TrainResult, make_result
from lmser.training.signals import Interrupted, stop_on_signals
from lmser.training.step import Step
from lmser.training.tensorboard import TensorBoard
from lmser.training.two_streams import TwoStreamSampler

Extra = Callable[[nn.Module], Mapping[str, float | Tensor]]

_TAKEN = {"step", "loss", "evaluation"}  # keys of the log


def train(
    model: nn.Module,
    loss_fn: LossFn | None,
    data: Data,
    config: TrainConfig,
    *,
    objectives: Sequence[Objective] | None = None,
    transform: Transform | None = None,
    sampler: TwoStreamSampler | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    eval_at: Sequence[int] | None = None,
    evaluate: Evaluate | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    extra: Extra | None = None,
    tensorboard: Path | str | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    description: str = "",
) -> TrainResult:
    """Train `model` in place for `config.steps` steps and return what happened.

    model:       on the device it is to train on; `data` is gathered by index on its own device and moved
    loss_fn:     ``loss_fn(model, *batch) -> 0-d tensor``; called in training mode. Where it draws random
                 numbers, from the global generators: those are seeded, saved and put back, its own are not
    data:        a tensor ``(n, ...)``, several of the same length n (e.g. images and labels), or a
                 `Dataset`, which is read by `config.workers` processes
    objectives:  in place of `loss_fn` (None then): losses that are minimised in turn in every step
    transform:   ``transform(*batch) -> batch`` on the device, before the loss: bytes to numbers, say. It may
                 draw from the global generators
    sampler:     in place of the order of `config.seed`, each epoch all samples: batches of labelled and unlabelled
                 samples, of `config.batch_size`
    run_dir:     where checkpoint and log go, made if needed; None: nothing is written. Without `resume` it
                 must not hold a run already
    resume:      continue from the checkpoint in `run_dir`; start at step 0 if there is none yet. A run that
                 is finished returns its result at once (its weights loaded into `model`)
    eval_at:     steps after which ``evaluate(model)`` is called, 0 for before the first; by default the last
                 one. It is called in evaluation mode and without gradients (`torch.enable_grad` gives them
                 back), and the generators are put back afterwards, so that evaluating does not change the
                 run. It returns a mapping of numbers, strings, lists and mappings of them (logged) and
                 tensors (kept in the checkpoint)
    on_step:     ``on_step(step, loss)`` after every step; `loss` is detached and still on the device
    extra:       ``extra(model) -> {name: number or 0-d tensor}`` after every `config.log_every`-th step, while
                 the gradients that the step followed are still in place (their norms, say); logged
    tensorboard: folder for the same numbers as event files (extra ``experiments``)
    identity:    further plain values that decide the numbers (data set, variant, initialisation ...); a
                 resumed run must give the same ones
    progress:    True: show a progress bar (extra ``experiments``); None: only on a terminal, where tqdm is
                 installed
    description: shown before the bar

    With several processes (`lmser.training.distributed.joined`) each computes the loss of its slice of a
    batch, and the gradients are averaged by the slices' lengths. Where a loss is a mean over the samples of
    its batch, that is the gradient of the whole batch, up to rounding. (A loss that compares samples, and
    batch normalisation in training, see the slice alone.) Each process draws its own noise. The first one
    evaluates and writes, all return the same numbers, `on_step` sees the process's own loss. A run is resumed
    with as many processes as it was begun with.

    In a run with a directory, SIGINT or SIGTERM finishes the step, saves and raises `Interrupted`: in all
    processes after the same step. A second signal acts at once where there is one process. Raises
    `ConfigMismatch` naming the key when a resumed run's settings, identity, model or data differ;
    FileExistsError when `run_dir` holds a run and `resume` is False; `Diverged`; TypeError or ValueError
    naming the argument that is wrong, before anything is written.
    """
    session = _Session(
        model, loss_fn, data, config, objectives, transform, sampler, run_dir, resume, eval_at, evaluate, on_step,
        extra, tensorboard, identity,
    )  # fmt: skip
    shown = progress if is_main() else False
    with generators_kept(session.device), ProgressBar(shown, description, config.steps) as bar:
        session.begin()
        bar.to(session.step, None)
        if run_dir is None:
            return session.run(lambda: None, bar)
        # torchrun passes on a signal that its processes may have had already, and ends them itself after a
        # while.
        with stop_on_signals(patient=world_size() > 1) as request:
            return session.run(lambda: request.signum, bar)


class _Session:
    """One call of `train`: from step 0 or a checkpoint to the end, or to the signal that stops it."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn | None,
        data: Data,
        config: TrainConfig,
        objectives: Sequence[Objective] | None,
        transform: Transform | None,
        sampler: TwoStreamSampler | None,
        run_dir: Path | str | None,
        resume: bool,
        eval_at: Sequence[int] | None,
        evaluate: Evaluate | None,
        on_step: Callable[[int, Tensor], None] | None,
        extra: Extra | None,
        tensorboard: Path | str | None,
        identity: Mapping[str, Any] | None,
    ) -> None:
        check_default_group()
        self.model, self.config = model, config
        self.evaluate, self.on_step, self.extra = evaluate, on_step, extra
        self.eval_at = checked_eval_at(eval_at, evaluate, config.steps)
        self.parts = resolve(model, loss_fn, objectives, config)
        self.device = self.parts[0].parameters[0].device
        if sampler is not None and sampler.batch_size != config.batch_size:
            raise ValueError(
                f"sampler: expected batches of config.batch_size, {config.batch_size}, got {sampler.batch_size}"
            )
        self.sampler = sampler
        self.batches = Batches(data, config, self.device, transform, sampler)
        self.directory = None if run_dir is None else Path(run_dir)
        self.board = None if tensorboard is None else Path(tensorboard)
        if self.board is not None:
            require("tensorboard", extra="experiments")
        if resume and self.directory is None:
            raise ValueError("resume: there is nothing to resume without run_dir")
        self.resume = resume
        self.identity: dict[str, Any] = {}
        if self.directory is not None:
            self.identity = on_main(lambda: self._identity(identity or {}, objectives is not None))
        self.do = Step(model, self.parts, config)
        self.record = Record(self.directory, config.log_every, [part.name for part in self.parts])
        self.step = 0
        self.waited_before = 0.0  # in earlier sessions
        self.peak_before: int | None = 0  # of earlier sessions
        self.resumed_from: int | None = None

    def _identity(self, extra: Mapping[str, Any], several: bool) -> dict[str, Any]:
        settings = {
            **self.config.deciding(),
            "eval_at": sorted(self.eval_at),
            "processes": world_size(),
        }
        if several:
            settings["objectives"] = [part.described() for part in self.parts]
        if self.sampler is not None:
            settings["sampler"] = self.sampler.described()
        return run_identity(settings, extra, self.model, self.batches.fingerprinted)

    # Beginning.

    def begin(self) -> None:
        """Take up the state to start from, and leave a directory that can be resumed from this moment on."""
        # Weights and data are the same in every process, noise is not.
        seed_generators(self.config.seed, self.device, "noise" if is_main() else f"noise {rank()}")
        if self.directory is not None:
            state = on_main(self._checkpoint)
            if state is not None:
                self._restore(state)
            on_main(self._open_directory)
        if self.board is not None and is_main():
            self.record.board = TensorBoard(self.board, self.step)
        self.peak = PeakMemory(self.device)
        if self.resumed_from is None:
            self.save()

    def _checkpoint(self) -> dict[str, Any] | None:
        """The state to continue from; None: there is none yet."""
        assert self.directory is not None
        checkpoint = self.directory / CHECKPOINT
        if not checkpoint.is_file():
            return None
        if not self.resume:
            raise FileExistsError(f"run_dir: {self.directory} holds a run; resume or remove it")
        state = load_checkpoint(checkpoint)
        check_identity(checkpoint, state["identity"], self.identity)
        if state["environment"] != _environment(self.device):
            warnings.warn(
                f"{checkpoint} was written under {state['environment']}, not {_environment(self.device)}: "
                "the run continues, but its bits may differ from those of an uninterrupted one",
                stacklevel=5,
            )
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.do.load_optimizer_states(state["optimizers"])
        set_generator_states(state["generators"][rank()], self.device)
        self.step = self.resumed_from = int(state["step"])
        self.record.restore(state)
        self.waited_before = state["seconds_waiting"]
        self.peak_before = state["peak_memory_bytes"]

    def _open_directory(self) -> None:
        assert self.directory is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, LOG):
            for left_by_a_kill in self.directory.glob(f".{name}.*.tmp"):
                left_by_a_kill.unlink(missing_ok=True)
        self.record.write_log()

    # Running.

    def run(self, stop: Callable[[], int | None], bar: ProgressBar) -> TrainResult:
        was_training = self.model.training
        try:
            self._evaluate_if_due()
            self.model.train()
            if self.step < self.config.steps:
                pace = Pace(self.config, self.eval_at, self.directory is not None, stop)
                self._steps(pace, bar)
            return make_result(self._state(), self.config.log_every, self.resumed_from)
        finally:
            self.model.train(was_training)
            self.batches.close()
            self.record.board.close()

    def _steps(self, pace: Pace, bar: ProgressBar) -> None:
        pace.begin_block(self.step)
        while self.step < self.config.steps:
            self._take_step()
            look_up, save = pace.due(self.step, self.record.waiting)
            if not look_up:
                continue
            self.record.flush()
            self.record.blocks.append(pace.end_block(self.step))
            bar.to(self.step, self.record.newest_loss)
            self._evaluate_if_due()
            if save:
                self.save()
                pace.saved()
            signum = pace.signum()
            if signum is not None and self.directory is not None:
                if not save:  # the signal came after that was decided
                    self.save()
                raise Interrupted(self.step, self.config.steps, self.directory / CHECKPOINT, signum)
            pace.begin_block(self.step)

    def _take_step(self) -> None:
        batch, weight = self.batches.take(self.step)
        losses = self.do.take(self.step, batch, weight)
        self.step += 1
        found: Mapping[str, float | Tensor] = {}
        if self.extra is not None and self.step % self.config.log_every == 0:
            found = self._extra(self.extra)
        self.record.add(self.step, losses, weight, found)
        if self.on_step is not None:
            self.on_step(self.step, losses[0])

    def _extra(self, extra: Extra) -> dict[str, float | Tensor]:
        with generators_kept(self.device), torch.no_grad():
            values = extra(self.model)
        if not isinstance(values, Mapping):
            raise TypeError(f"extra: expected it to return a mapping, got {type(values).__name__}")
        further = {f"loss.{part.name}" for part in self.parts[1:]}
        for name, value in values.items():
            if not isinstance(name, str) or name in _TAKEN | further:
                raise ValueError(f"extra: {name!r} is not a name for a number, or taken by the log")
            if not isinstance(value, (int, float)) and not (isinstance(value, Tensor) and value.dim() == 0):
                what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"extra: expected {name} to be a number or a 0-d tensor, got {what}")
        # Copied, as a tensor may be a view of what the next step changes.
        return {k: v.clone() if isinstance(v, Tensor) else float(v) for k, v in values.items()}

    def _evaluate_if_due(self) -> None:
        evaluate = self.evaluate
        if self.step not in self.eval_at or self.step in self.record.evaluations or evaluate is None:
            return
        training = self.model.training
        self.model.eval()
        with self.peak.left_out(), generators_kept(self.device), torch.no_grad():
            values = on_main(lambda: plain_values(evaluate(self.model)))
        self.model.train(training)
        self.do.check()
        self.batches.follow()
        self.record.evaluated(self.step, values)

    # Saving.

    def save(self) -> None:
        if self.directory is None:
            return
        generators = gathered(generator_states(self.device))
        if generators is not None:
            save_checkpoint(
                self.directory / CHECKPOINT,
                {
                    **self._state(),
                    "identity": self.identity,
                    "environment": _environment(self.device),
                    "model": self.model.state_dict(),
                    "optimizers": self.do.optimizer_states(),
                    "generators": generators,
                },
            )
            self.record.board.flush()

    def _state(self) -> dict[str, Any]:
        peak = self.peak.bytes()
        return {
            **self.record.state(),
            "step": self.step,
            "seconds_waiting": self.waited_before + self.batches.seconds_waiting,
            "peak_memory_bytes": None
            if peak is None or self.peak_before is None
            else max(peak, self.peak_before),
        }


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "machine": platform.machine(),
    }
