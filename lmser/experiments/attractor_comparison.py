"""What the comparisons of attractor networks share (004 Sects. 3.2, 3.3, Appendices A, B): the two tasks that every row
is trained on and measured by, and what of it decides a claim.

Bars are those of `lmser.experiments.bar_task`, digits those of `lmser.experiments.digit_task` with a third of the
pixels and all label units missing. All rows of a task share network, optimiser, steps, batches and test.

A row's score, higher being better, is the share of images right on bars, and the error of missing pixels on digits with
its sign turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lmser.data import Split, load_mnist
from lmser.experiments import Request, bar_task, digit_task
from lmser.experiments.attractor_objective import attractor_loss_of
from lmser.experiments.bar_task import BarTask, bar_batch
from lmser.experiments.campaign import Job, Trained, table_row
from lmser.experiments.digit_task import DigitTask
from lmser.experiments.results import Claim
from lmser.experiments.rows import RowConfig
from lmser.experiments.tables import Table

__all__ = ["COLUMNS", "Tasks", "claim", "scores", "shortfall"]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "bars": (bar_task.IMAGES, bar_task.PIXELS, bar_task.MISSING, bar_task.OFF, bar_task.SWEEPS),
    "mnist": (
        digit_task.MASKED,
        digit_task.FULL,
        digit_task.ERROR,
        digit_task.OFF,
        digit_task.SWEEPS,
    ),
}
_DIGITS = {
    bar_task.IMAGES: 2, bar_task.PIXELS: 3, bar_task.MISSING: 3, bar_task.SWEEPS: 2,
    digit_task.MASKED: 2, digit_task.FULL: 2,
}  # fmt: skip
_TITLES = {
    "bars": "Bars",
    "mnist": "Digits with a third of the pixels and the label missing",
}
_SCORES = {"bars": (bar_task.IMAGES, 1.0, "{:.2f} %"), "mnist": (digit_task.ERROR, -1.0, "{:.4f}")}


class Tasks:
    """The tasks that `rows` name, each made once.

    Raises ValueError naming a row for another data set; what `load_mnist` raises.
    """

    def __init__(self, request: Request, rows: Sequence[RowConfig]) -> None:
        self.device = request.device
        names = dict.fromkeys(row.data["name"] for row in rows)
        for row in rows:
            if row.data["name"] not in COLUMNS:
                raise ValueError(
                    f"{row.path}: data.name: expected 'bars' or 'mnist', got {row.data['name']!r}"
                )
        self.bars = BarTask() if "bars" in names else None
        self.sets: Split | None = None
        self.digits: DigitTask | None = None
        if "mnist" in names:
            self.sets = Split(*(load_mnist(request.data, False, part) for part in (True, False)))
            counts = {row.evaluation.get("images") for row in rows if row.data["name"] == "mnist"}
            if len(counts) != 1:
                raise ValueError(f"rows: expected one number of test images for all digits, got {counts}")
            self.digits = DigitTask(*self.sets, request.device, counts.pop())

    def identity(self) -> dict[str, str]:
        """Checksums of what was read."""
        if self.sets is None:
            return {}
        return {part: images.sha256() for part, images in zip(("training", "test"), self.sets, strict=True)}

    def facts(self) -> dict[str, str]:
        """What `Results.data` says of it."""
        found = {"data": "bars: made" if self.sets is None else self.sets.train.name}
        return found | {f"{part} data sha256": value for part, value in self.identity().items()}

    def differs(self, row: RowConfig) -> tuple[str, ...]:
        """What is not the paper's and not in the row's file."""
        if row.data["name"] == "bars" or self.sets is None:
            return ()
        return () if all(part.verified for part in self.sets) else ("not the original files",)

    def job(self, row: RowConfig) -> Job:
        """`Job` of a row."""
        columns = COLUMNS[row.data["name"]]
        if row.data["name"] == "bars":
            assert self.bars is not None
            data, transform, measure = self.bars.data(row, self.device), bar_batch, self.bars.measure
            return _job(row, data, transform, measure, columns)
        assert self.digits is not None
        digits = self.digits
        return _job(row, digits.train, digits.transform(row.data["missing"]), digits.measure, columns)

    def tables(self, trained: Trained) -> tuple[Table, ...]:
        """One table for each task."""
        found = []
        for name, title in _TITLES.items():
            rows = {row: jobs for row, jobs in trained.items() if row.data["name"] == name}
            if not rows:
                continue
            columns = COLUMNS[name]
            found.append(
                Table(
                    title=title,
                    columns=columns,
                    rows=tuple(
                        table_row(row, jobs, columns, digits=_DIGITS, differs=self.differs(row))
                        for row, jobs in rows.items()
                    ),
                    header="row",
                )
            )
        return tuple(found)


def _job(
    row: RowConfig,
    data: Tensor,
    transform: Callable[..., tuple[Tensor, Tensor]],
    measure: Callable[[nn.Module], Mapping[str, float]],
    columns: Sequence[str],
) -> Job:
    def evaluate(network: nn.Module) -> dict[str, float]:
        found = measure(network)
        return {name: found[name] for name in columns}

    return Job(
        data=data,
        loss=attractor_loss_of(row),
        evaluate=evaluate,
        metrics=columns,
        # What is drawn is made after training, from the weights.
        pictures=lambda _: torch.empty(0),
        further={"transform": transform},
    )


def scores(tables: Iterable[Table]) -> dict[str, dict[str, float]]:
    """Title of the task -> label -> score, the mean over the seeds; minus infinity where a run diverged."""
    found = {}
    for table in tables:
        name = next(key for key, title in _TITLES.items() if title == table.title)
        column, sign, _ = _SCORES[name]
        index = table.columns.index(column)
        means = {row.label: sign * table.mean(index, row.label, row.group) for row in table.rows}
        found[table.title] = {
            label: value if math.isfinite(value) else -math.inf for label, value in means.items()
        }
    return found


def shortfall(score: float) -> float:
    """How far a score is from perfection, which is 100 for a share in percent and 0 for an error."""
    return 100.0 - score if score > 0 else -score


def claim(
    text: str,
    source: str,
    found: Mapping[str, Mapping[str, float]],
    labels: Sequence[str],
    holds: Callable[[Mapping[str, float]], bool],
    asked: str,
) -> Claim | None:
    """Whether `holds` of the scores of every task that has all of `labels`; None where none has."""
    whole = {title: values for title, values in found.items() if set(labels) <= set(values)}
    if not whole:
        return None
    evidence = [f"{title}: " + ", ".join(_said(title, label, values[label]) for label in labels)
                for title, values in whole.items()]  # fmt: skip
    return Claim(
        text, source, all(holds(values) for values in whole.values()), f"{asked}. {'; '.join(evidence)}"
    )


def _said(title: str, label: str, value: float) -> str:
    name = next(key for key, known in _TITLES.items() if known == title)
    _, sign, form = _SCORES[name]
    return f"{label} {form.format(sign * value)}" if math.isfinite(value) else f"{label} diverged"
