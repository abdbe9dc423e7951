"""One training of one network: its own folder, resumable, skipped once it is finished.

In the folder, besides what `lmser.training.train` keeps there until the job is done:

``weights.safetensors``   the trained network
``pictures.safetensors``  what the evaluations returned as pictures, for the figures
``result.json``           settings, metrics, curve; written last, so that its presence means finished
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmser._atomic import atomic_write
from lmser._extras import require
from lmser.experiments.results import write_json
from lmser.experiments.run_directory import RunRefused
from lmser.training import (
    Diverged,
    Objective,
    Run,
    TrainConfig,
    TrainResult,
    TwoStreamSampler,
    save_weights,
    train,
)
from lmser.training.distributed import on_main, world_size

__all__ = ["JobResult", "train_job"]

_RESULT, _PICTURES, _WEIGHTS, _CHECKPOINT = (
    "result.json",
    "pictures.safetensors",
    "weights.safetensors",
    "checkpoint.pt",
)


@dataclass(frozen=True)
class JobResult:
    """What a finished job leaves behind.

    metrics:          evaluation step -> metric -> value; NaN for every step from a divergence on
    curve:            ``[(step, loss), ...]``
    pictures:         evaluation step -> pictures on the CPU, for the steps that were reached
    seconds:          training time of all sessions together
    seconds_per_step: the median, None where no step was finished
    diverged_at:      the step at which the loss stopped being finite, or None
    extras:           ``{name: [(step, value), ...]}``, as `lmser.training.TrainResult` has them
    """

    metrics: dict[int, dict[str, float]]
    curve: list[tuple[int, float]]
    pictures: dict[int, Tensor]
    seconds: float
    seconds_per_step: float | None
    diverged_at: int | None
    extras: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def final(self, metric: str) -> float:
        """The metric at the last evaluation."""
        return self.metrics[max(self.metrics)][metric]


def train_job(
    directory: Path,
    *,
    build: Callable[[], nn.Module],
    loss: Callable[..., Tensor] | None,
    data: Any,
    config: TrainConfig,
    eval_at: Sequence[int],
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    metrics: Sequence[str],
    pictures: Callable[[nn.Module], Tensor],
    identity: Mapping[str, Any],
    device: torch.device,
    on_step: Callable[[int, Tensor], None] | None = None,
    objectives: Sequence[Objective] | None = None,
    extra: Callable[[nn.Module], Mapping[str, float | Tensor]] | None = None,
    transform: Callable[..., Tensor | Sequence[Tensor]] | None = None,
    sampler: TwoStreamSampler | None = None,
    tensorboard: Path | None = None,
) -> JobResult:
    """Train, or continue, or only read, the job in `directory`.

    With several processes (`lmser.training.distributed`) all of them call it; the first one reads and writes.

    Args:
        build: makes the network. Called under ``torch.manual_seed(config.seed)``, on the CPU, so that the
            initial weights are the same on every device.
        loss, data, config, eval_at, objectives, extra, transform, sampler, tensorboard: as for `lmser.training.train`.
        evaluate: gives exactly `metrics` (names) at every step of `eval_at`.
        pictures: gives the pictures to keep at the same steps.
        identity: further plain values that decide the numbers.
        on_step: called after every step, for a progress bar.

    Raises:
        RunRefused: the job in `directory` was finished under other settings. Otherwise what `train` raises,
            except `Diverged`: that is a result, and written as one.
    """
    settings = json.loads(json.dumps({**identity, **config.deciding(), "eval_at": list(eval_at)}))
    if sampler is not None:
        settings["sampler"] = sampler.described()
    if world_size() > 1:  # the numbers differ by rounding and by the processes' own noise
        settings["processes"] = world_size()
    finished = on_main(lambda: _read(directory, settings) if (directory / _RESULT).exists() else None)
    if finished is not None:
        return finished
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build().to(device)

    def measure(network: nn.Module) -> dict[str, Any]:
        return {**evaluate(network), "pictures": pictures(network).cpu()}

    ended: TrainResult | Diverged
    try:
        ended = train(
            model,
            loss,
            data,
            config,
            objectives=objectives,
            transform=transform,
            sampler=sampler,
            tensorboard=tensorboard,
            run_dir=directory,
            resume=True,
            eval_at=eval_at,
            evaluate=measure,
            extra=extra,
            identity=identity,
            on_step=on_step,
            progress=False,
        )
    except Diverged as error:
        ended = error

    def finish() -> JobResult:
        if isinstance(ended, TrainResult):
            save_weights(model, directory / _WEIGHTS)
        _write(directory, settings, ended, eval_at, metrics)
        return _read(directory, settings)

    return on_main(finish)


def _write(
    directory: Path,
    settings: Mapping[str, Any],
    ended: TrainResult | Diverged,
    eval_at: Sequence[int],
    metrics: Sequence[str],
) -> None:
    # After a divergence: as of the last checkpoint, which every evaluation is followed by.
    done = Run(directory).result() if isinstance(ended, Diverged) else ended
    reached = {step: dict(values) for step, values in done.evaluations.items()}
    shown = {f"step {step}": values.pop("pictures").contiguous() for step, values in reached.items()}
    with atomic_write(directory / _PICTURES) as file:
        file.write(require("safetensors.torch").save(shown))
    lost = dict.fromkeys(metrics, math.nan)
    write_json(
        directory / _RESULT,
        {
            "settings": settings,
            "metrics": {str(step): _finite(reached.get(step, lost)) for step in eval_at},
            "diverged_at": ended.step if isinstance(ended, Diverged) else None,
            "seconds": done.seconds,
            "seconds_per_step": done.seconds_per_step if math.isfinite(done.seconds_per_step) else None,
            "seconds_waiting": done.seconds_waiting,
            "curve": _points(ended.curve),
            "extras": {name: _points(found) for name, found in done.extras.items()},
        },
        indent=None,  # a curve has thousands of points
    )
    # The checkpoint holds the optimiser's state, three times the weights, and has no further use.
    (directory / _CHECKPOINT).unlink(missing_ok=True)


def _points(curve: Sequence[tuple[int, float]]) -> list[list[float | None]]:
    return [[step, value if math.isfinite(value) else None] for step, value in curve]


def _curve(points: Sequence[tuple[int, float | None]]) -> list[tuple[int, float]]:
    return [(int(step), math.nan if value is None else float(value)) for step, value in points]


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def _read(directory: Path, settings: Mapping[str, Any]) -> JobResult:
    path = directory / _RESULT
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        different = sorted(
            key for key in {*data["settings"], *settings} if data["settings"].get(key) != settings.get(key)
        )
        if different:
            key = different[0]
            raise RunRefused(
                f"{directory} holds a finished job with other settings "
                f"({key}: {data['settings'].get(key)!r} there, {settings.get(key)!r} asked for): "
                "choose another folder with --out"
            )
        shown = require("safetensors.torch").load((directory / _PICTURES).read_bytes())
        return JobResult(
            metrics={int(step): _numbers(values) for step, values in data["metrics"].items()},
            curve=_curve(data["curve"]),
            pictures={int(name.removeprefix("step ")): value for name, value in shown.items()},
            seconds=data["seconds"],
            seconds_per_step=data["seconds_per_step"],
            diverged_at=data["diverged_at"],
            extras={name: _curve(points) for name, points in data.get("extras", {}).items()},
        )
    except RunRefused:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, OSError) as error:
        raise RunRefused(
            f"{path} or the files beside it are damaged ({error}): remove {directory} to redo it"
        ) from error


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
