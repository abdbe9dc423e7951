"""What every experiment does between its data and its tables: train all rows with all seeds, resumably."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmser.experiments import Request
from lmser.experiments.networks import build_network
from lmser.experiments.progress import ExperimentProgress
from lmser.experiments.rows import RowConfig
from lmser.experiments.run_directory import open_run_directory
from lmser.experiments.tables import Cell, Row
from lmser.experiments.training_job import JobResult, train_job
from lmser.training import load_weights

__all__ = ["Job", "Trained", "load_trained", "row_times", "table_row", "train_rows"]

Trained = dict[RowConfig, list[JobResult]]  # one result per seed, in the order of the request's


@dataclass(frozen=True)
class Job:
    """What training a row takes besides what its file says.

    data:     as `lmser.training.train` takes it.
    loss:     ``loss(model, *batch)``, the mean over the batch; None where `further` has objectives.
    evaluate: gives exactly `metrics` at every step of `eval_at` (by default the last one).
    pictures: gives what to keep for the figures at the same steps.
    build:    makes the network on the CPU, by default the file's ``[model]``.
    further:  keyword arguments for `train_job` (objectives, extra scalars, a batch transform).
    by_seed:  those that each seed has its own of (which samples have labels), `data` among them.
    """

    data: Any
    loss: Callable[..., Tensor] | None
    evaluate: Callable[[nn.Module], Mapping[str, float]]
    metrics: Sequence[str]
    pictures: Callable[[nn.Module], Tensor]
    build: Callable[[], nn.Module] | None = None
    eval_at: Sequence[int] | None = None
    further: Mapping[str, Any] | None = None
    by_seed: Callable[[int], Mapping[str, Any]] | None = None

    @property
    def samples(self) -> int:
        return len(self.data[0]) if isinstance(self.data, (tuple, list)) else len(self.data)


def train_rows(
    request: Request,
    rows: Sequence[RowConfig],
    prepare: Callable[[RowConfig], Job],
    *,
    experiment: str,
    data: Mapping[str, Any],
) -> Trained:
    """Train every row with every seed in ``request.out / row.path / seed-N``, or read what is finished there.

    `data` says what the rows are trained on, as plain values (checksums): a folder is continued only with
    the same data, rows, seeds and kind of device.

    Raises RunRefused, ConfigMismatch and Interrupted, each with a message for the user.
    """
    plan = {
        "experiment": experiment,
        "scale": request.scale,
        "rows": [{"path": row.path, **row.identity()} for row in rows],
        "seeds": list(request.seeds),
        "device": torch.device(request.device).type,
        "data": dict(data),
    }
    open_run_directory(request.out, plan, resume=request.resume)
    jobs = [(row, prepare(row)) for row in rows]
    steps = {row: row.steps(job.samples) for row, job in jobs}
    trained: Trained = {row: [] for row in rows}
    with ExperimentProgress(
        len(jobs) * len(request.seeds), sum(steps.values()) * len(request.seeds), shown=request.progress
    ) as bar:
        for seed in request.seeds:
            for row, job in jobs:
                folder = request.out / row.path / f"seed-{seed}"
                done = train_job(
                    folder,
                    build=job.build or functools.partial(build_network, row.model),
                    loss=job.loss,
                    config=row.train_config(seed, job.samples),
                    eval_at=(steps[row],) if job.eval_at is None else job.eval_at,
                    evaluate=job.evaluate,
                    metrics=job.metrics,
                    pictures=job.pictures,
                    identity=row.identity(),
                    device=torch.device(request.device),
                    on_step=bar.job(f"{row.path}, seed {seed}", steps[row]),
                    tensorboard=folder / "tensorboard" if request.tensorboard else None,
                    **{"data": job.data, **(job.further or {}), **(job.by_seed(seed) if job.by_seed else {})},
                )
                trained[row].append(done)
    return trained


def row_times(trained: Trained) -> dict[str, float]:
    """Seconds that each row trained, all its seeds together, for `Results.times`."""
    return {row.path: sum(job.seconds for job in found) for row, found in trained.items()}


def load_trained(
    request: Request, row: RowConfig, seed: int, build: Callable[[], nn.Module] | None = None
) -> nn.Module:
    """The trained network of a finished run, in evaluation mode on the request's device.

    build: as that of `Job`. Raises FileNotFoundError where the run is not finished or its loss left the finite numbers.
    """
    network = build_network(row.model) if build is None else build()
    load_weights(network, request.out / row.path / f"seed-{seed}" / "weights.safetensors")
    return network.to(request.device).eval()


def table_row(
    row: RowConfig,
    found: Sequence[JobResult],
    columns: Sequence[str],
    *,
    printed: Mapping[str, float] | None = None,
    digits: Mapping[str, int] | None = None,
    differs: Sequence[str] = (),
) -> Row:
    """A row of a table: the last evaluation's metric for each of `columns`, beside the `printed` value.

    differs: what is not the paper's setting besides what the row says (stand-in data, say).
    """
    cells = tuple(
        Cell(
            tuple(job.final(column) for job in found),
            (printed or {}).get(column),
            digits=(digits or {}).get(column, 4),
        )
        for column in columns
    )
    return Row(row.label, cells, group=row.group, differs=", ".join(filter(None, (row.differs, *differs))))
