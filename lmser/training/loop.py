"""The loop: one step after the other, and everything that must happen between two of them."""

from __future__ import annotations

import json
import math
import platform
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from lmser._atomic import atomic_write
from lmser.training.checkpoint import check_identity, load_checkpoint, run_identity, save_checkpoint
from lmser.training.config import TrainConfig
from lmser.training.memory import PeakMemory
from lmser.training.progress import ProgressBar
from lmser.training.randomness import (
    generator_states,
    generators_kept,
    seed_generators,
    set_generator_states,
)
from lmser.training.result import CHECKPOINT, LOG, TrainResult, evaluation_entry, log_lines, make_result
from lmser.training.sampler import Sampler
from lmser.training.schedules import learning_rate
from lmser.training.signals import Interrupted, stop_on_signals

LossFn = Callable[..., Tensor]
Evaluate = Callable[[nn.Module], Mapping[str, Any]]

# Losses stay on the device until so many wait, or so many seconds have gone by: reading one waits for the
# device, and a step of a small network is shorter than the bar's or the file's own work.
_FLUSH_LOSSES, _FLUSH_SECONDS = 50, 0.25


class Diverged(ArithmeticError):
    """The loss became infinite or NaN.

    `step`: the first such step; `curve`: ``[(step, loss), ...]`` up to and with it; `evaluations`: those
    before it. With a run directory the newest checkpoint is the last state whose loss was finite when it was
    saved.
    """

    def __init__(
        self, step: int, curve: list[tuple[int, float]], evaluations: dict[int, dict[str, Any]]
    ) -> None:
        super().__init__(f"the loss became {curve[-1][1]} at step {step}; a smaller learning rate may help")
        self.step, self.curve, self.evaluations = step, curve, evaluations


def train(
    model: nn.Module,
    loss_fn: LossFn,
    data: Tensor | Sequence[Tensor],
    config: TrainConfig,
    *,
    run_dir: Path | str | None = None,
    resume: bool = False,
    eval_at: Sequence[int] | None = None,
    evaluate: Evaluate | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    description: str = "",
) -> TrainResult:
    """Train `model` in place for `config.steps` steps and return what happened.

    model:       on the device it is to train on; `data` is gathered by index on its own device and moved
    loss_fn:     ``loss_fn(model, *batch) -> 0-d tensor``; called in training mode. Where it draws random
                 numbers, from the global generators: those are seeded, saved and put back, its own are not
    data:        a tensor ``(n, ...)`` or several of the same length n (e.g. images and labels)
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
    identity:    further plain values that decide the numbers (data set, variant, initialisation ...); a
                 resumed run must give the same ones
    progress:    True: show a progress bar (extra ``experiments``); None: only on a terminal, where tqdm is
                 installed
    description: shown before the bar

    In a run with a directory, SIGINT or SIGTERM finishes the step, saves and raises `Interrupted`; a second
    one acts at once. Raises `ConfigMismatch` naming the key when a resumed run's settings, identity, model
    or data differ; FileExistsError when `run_dir` holds a run and `resume` is False; `Diverged`; TypeError or
    ValueError naming the argument that is wrong, before anything is written.
    """
    session = _Session(model, loss_fn, data, config, eval_at, evaluate, on_step, run_dir, resume, identity)
    with generators_kept(session.device), ProgressBar(progress, description, config.steps) as bar:
        session.begin()
        bar.to(session.step, None)
        if run_dir is None:
            return session.run(lambda: None, bar)
        with stop_on_signals() as request:
            return session.run(lambda: request.signum, bar)


class _Session:
    """One call of `train`: from step 0 or a checkpoint to the end, or to the signal that stops it."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: Tensor | Sequence[Tensor],
        config: TrainConfig,
        eval_at: Sequence[int] | None,
        evaluate: Evaluate | None,
        on_step: Callable[[int, Tensor], None] | None,
        run_dir: Path | str | None,
        resume: bool,
        identity: Mapping[str, Any] | None,
    ) -> None:
        self.model, self.loss_fn, self.config = model, loss_fn, config
        self.evaluate, self.on_step = evaluate, on_step
        self.data = _checked_data(data)
        self.eval_at = _checked_eval_at(eval_at, evaluate, config.steps)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("model: it has no parameter to train")
        self.device = self.parameters[0].device
        self.optimizer = _optimizer(self.parameters, config)
        self.sampler = Sampler(
            len(self.data[0]),
            config.batch_size,
            config.seed,
            drop_last=config.drop_last,
            device=self.data[0].device,
        )
        self.directory = None if run_dir is None else Path(run_dir)
        if resume and self.directory is None:
            raise ValueError("resume: there is nothing to resume without run_dir")
        self.resume = resume
        self.identity: dict[str, Any] = {}
        if self.directory is not None:
            settings = {**config.deciding(), "eval_at": sorted(self.eval_at)}
            self.identity = run_identity(settings, identity or {}, model, self.data)

        self.step = 0
        self.losses: list[float] = []
        self.evaluations: dict[int, dict[str, Any]] = {}
        self.blocks: list[tuple[float, int]] = []  # (seconds, steps) between two synchronisations
        self.peak_before: int | None = 0  # of earlier sessions
        self.resumed_from: int | None = None
        self.pending: list[Tensor] = []  # losses still on the device

    # Beginning.

    def begin(self) -> None:
        """Take up the state to start from, and leave a directory that can be resumed from this moment on."""
        seed_generators(self.config.seed, self.device)
        if self.directory is not None:
            checkpoint = self.directory / CHECKPOINT
            if checkpoint.is_file():
                if not self.resume:
                    raise FileExistsError(f"run_dir: {self.directory} holds a run; resume or remove it")
                self._restore(checkpoint)
            self.directory.mkdir(parents=True, exist_ok=True)
            for name in (CHECKPOINT, LOG):
                for left_by_a_kill in self.directory.glob(f".{name}.*.tmp"):
                    left_by_a_kill.unlink(missing_ok=True)
            with atomic_write(self.directory / LOG, "w") as file:
                file.write(log_lines(self.losses, self.evaluations, self.config.log_every))
        self.peak = PeakMemory(self.device)
        if self.resumed_from is None:
            self.save()

    def _restore(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint)
        check_identity(checkpoint, state["identity"], self.identity)
        if state["environment"] != _environment(self.device):
            warnings.warn(
                f"{checkpoint} was written under {state['environment']}, not {_environment(self.device)}: "
                "the run continues, but its bits may differ from those of an uninterrupted one",
                stacklevel=4,
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_generator_states(state["generators"], self.device)
        self.step = self.resumed_from = int(state["step"])
        self.losses = state["losses"].tolist()
        self.evaluations = dict(state["evaluations"])
        self.blocks = [(float(seconds), int(steps)) for seconds, steps in state["blocks"].tolist()]
        self.peak_before = state["peak_memory_bytes"]

    # Running.

    def run(self, stop: Callable[[], int | None], bar: ProgressBar) -> TrainResult:
        was_training = self.model.training
        try:
            self._evaluate_if_due()
            self.model.train()
            if self.step < self.config.steps:
                self._steps(stop, bar)
            return make_result(self._state(), self.config.log_every, self.resumed_from)
        finally:
            self.model.train(was_training)

    def _steps(self, stop: Callable[[], int | None], bar: ProgressBar) -> None:
        config, saved_at = self.config, perf_counter()
        block_start, block_step = perf_counter(), self.step
        while self.step < config.steps:
            loss = self._take_step()
            now = perf_counter()
            pause = self.step in self.eval_at or self.step == config.steps or stop() is not None
            save = self.directory is not None and (
                pause
                or (config.checkpoint_every > 0 and self.step % config.checkpoint_every == 0)
                or (config.checkpoint_seconds > 0 and now - saved_at >= config.checkpoint_seconds)
            )
            if not (
                pause or save or len(self.pending) >= _FLUSH_LOSSES or now - block_start >= _FLUSH_SECONDS
            ):
                continue
            self._flush(loss)
            self.blocks.append((perf_counter() - block_start, self.step - block_step))
            bar.to(self.step, self.losses[-1] if self.losses else None)
            self._evaluate_if_due()
            if save:
                self.save()
                saved_at = perf_counter()
            signum = stop()
            if signum is not None and self.directory is not None:
                if not save:  # the signal came after that was decided
                    self.save()
                raise Interrupted(self.step, config.steps, self.directory / CHECKPOINT, signum)
            block_start, block_step = perf_counter(), self.step

    def _take_step(self) -> Tensor:
        indices = self.sampler.indices(self.step)
        batch = [_gather(tensor, indices, self.device) for tensor in self.data]
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.loss_fn(self.model, *batch)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn: expected a 0-d tensor, got {what}")
        loss.backward()
        self.optimizer.step()
        self.step += 1
        loss = loss.detach()
        if self.step % self.config.log_every == 0:
            self.pending.append(loss)
        if self.on_step is not None:
            self.on_step(self.step, loss)
        return loss

    def _flush(self, loss: Tensor) -> None:
        """Wait for the device, and put the losses that have gathered where they belong."""
        # The last step's loss goes along even where it is not to be logged: a state with a broken one is
        # never saved.
        *values, last = torch.stack([*self.pending, loss]).tolist()
        self.pending.clear()
        every, start = self.config.log_every, len(self.losses)
        broken = next((n for n, value in enumerate(values) if not math.isfinite(value)), None)
        self.losses += values if broken is None else values[: broken + 1]
        if self.directory is not None:
            with open(self.directory / LOG, "a", encoding="utf-8", newline="\n") as log:
                numbered = enumerate(self.losses[start:], start + 1)
                log.write(_lines({"step": n * every, "loss": value} for n, value in numbered))
        if broken is not None or not math.isfinite(last):
            curve = [((n + 1) * every, value) for n, value in enumerate(self.losses)]
            if broken is None:
                curve.append((self.step, last))
            raise Diverged(curve[-1][0], curve, self.evaluations)

    def _evaluate_if_due(self) -> None:
        if self.step not in self.eval_at or self.step in self.evaluations or self.evaluate is None:
            return
        training = self.model.training
        self.model.eval()
        with self.peak.left_out(), generators_kept(self.device), torch.no_grad():
            values = self.evaluate(self.model)
        self.model.train(training)
        if not isinstance(values, Mapping):
            raise TypeError(f"evaluate: expected it to return a mapping, got {type(values).__name__}")
        self.evaluations[self.step] = {str(key): _plain(key, value) for key, value in values.items()}
        if self.directory is not None:
            with open(self.directory / LOG, "a", encoding="utf-8", newline="\n") as log:
                log.write(_lines([evaluation_entry(self.step, self.evaluations[self.step])]))

    # Saving.

    def save(self) -> None:
        if self.directory is not None:
            save_checkpoint(
                self.directory / CHECKPOINT,
                {
                    **self._state(),
                    "identity": self.identity,
                    "environment": _environment(self.device),
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "generators": generator_states(self.device),
                },
            )

    def _state(self) -> dict[str, Any]:
        peak = self.peak.bytes()
        return {
            "step": self.step,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "evaluations": self.evaluations,
            "blocks": torch.tensor(self.blocks, dtype=torch.float64).reshape(-1, 2),
            "peak_memory_bytes": None
            if peak is None or self.peak_before is None
            else max(peak, self.peak_before),
        }


def _checked_data(data: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.dim() > 0 for tensor in tensors):
        raise TypeError("data: expected a tensor (n, ...) or a non-empty sequence of such")
    if len({len(tensor) for tensor in tensors}) > 1 or len({tensor.device for tensor in tensors}) > 1:
        described = ", ".join(f"{len(tensor)} on {tensor.device}" for tensor in tensors)
        raise ValueError(f"data: expected tensors of one length on one device, got {described}")
    return tensors


def _checked_eval_at(eval_at: Sequence[int] | None, evaluate: Evaluate | None, steps: int) -> frozenset[int]:
    if eval_at is None:
        return frozenset() if evaluate is None else frozenset({steps})
    if evaluate is None and len(eval_at) > 0:
        raise ValueError("eval_at: steps were given but no evaluate to call at them")
    for step in eval_at:
        if not isinstance(step, int) or not 0 <= step <= steps:
            raise ValueError(f"eval_at: expected steps of the run, 0 ... {steps}, got {step!r}")
    return frozenset(eval_at)


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    # One kernel for all parameters instead of several per parameter, where torch has it.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, fused=fused)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, fused=fused)


def _gather(tensor: Tensor, indices: Tensor, device: torch.device) -> Tensor:
    return tensor.index_select(0, indices).to(device, non_blocking=True)


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "machine": platform.machine(),
    }


def _plain(key: object, value: Any) -> Any:
    """`value` as a checkpoint and a log can hold it."""
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else value.detach().cpu().clone()
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) or (hasattr(value, "dtype") and getattr(value, "ndim", None) == 0):
        return _plain(key, value.item()) if hasattr(value, "item") else float(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(key, v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(key, v) for v in value]
    raise TypeError(
        f"evaluate: {key!r} is a {type(value).__name__}; expected a number, string, list, mapping or tensor"
    )


def _lines(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)
