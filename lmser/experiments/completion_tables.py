"""The tables of the completion experiments, and what decides that one row is better than another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from lmser.experiments.campaign import Trained
from lmser.experiments.completion_metrics import ERROR, MEASURES
from lmser.experiments.image_completion import SETTLING
from lmser.experiments.results import Claim
from lmser.experiments.tables import Cell, Row, Table
from lmser.experiments.training_job import JobResult

__all__ = [
    "ORDER_OF_BETTER",
    "better",
    "cycles",
    "fixed_point",
    "has_rows",
    "measured_table",
    "metric_table",
    "settling_table",
    "superior",
    "with_columns",
]

# Whether larger is better.
ORDER_OF_BETTER = {"PSNR": True, "SSIM": True, "L1": False}
# What is asked for, in percent of the test images.
_AT_REST, _HALF = 99.0, 50.0
_DIGITS = {"PSNR": 2, "SSIM": 4, "L1": 2}
_ERROR_DIGITS = {"PSNR": 3, "SSIM": 5, "L1": 3}

Printed = Mapping[str, Mapping[str, float]]  # label -> column -> the paper's number
Differs = Sequence[str]


def measured_table(
    trained: Trained,
    title: str,
    *,
    prefix: str = "",
    errors: bool = True,
    measures: Sequence[str] = MEASURES,
    source: str = "",
    printed: Printed | None = None,
    differs: Differs = (),
    notes: Sequence[str] = (),
    header: str = "model",
) -> Table:
    """PSNR, SSIM and L1 of every row, each with its standard error over the test images where `errors`."""
    columns: dict[str, tuple[str, int]] = {}
    for name in measures:
        columns[name] = f"{prefix}{name}", _DIGITS[name]
        if errors:
            columns[f"{name}{ERROR}"] = f"{prefix}{name}{ERROR}", _ERROR_DIGITS[name]
    return metric_table(
        trained, title, columns, source=source, printed=printed, differs=differs, notes=notes, header=header
    )


def metric_table(
    trained: Trained,
    title: str,
    columns: Mapping[str, tuple[str, int]],
    *,
    source: str = "",
    printed: Printed | None = None,
    differs: Differs = (),
    notes: Sequence[str] = (),
    header: str = "model",
) -> Table:
    """A table of metrics of the last evaluation: heading -> (metric, decimals). A row that has not got a metric is
    left empty there."""
    rows = []
    for row, jobs in trained.items():
        paper = (printed or {}).get(row.label, {})
        cells = tuple(
            Cell(_values(jobs, metric), paper.get(heading), digits=digits)
            for heading, (metric, digits) in columns.items()
        )
        rows.append(
            Row(row.label, cells, group=row.group, differs=", ".join(filter(None, (row.differs, *differs))))
        )
    return Table(title, tuple(columns), tuple(rows), source=source, header=header, notes=tuple(notes))


def with_columns(table: Table, columns: Sequence[str], cells: Mapping[str, Sequence[Cell]]) -> Table:
    """`table` with further columns: row label -> its cells there; rows that have none are left empty."""
    empty = tuple(Cell(()) for _ in columns)
    rows = tuple(
        dataclasses.replace(row, cells=(*row.cells, *cells.get(row.label, empty))) for row in table.rows
    )
    return dataclasses.replace(table, columns=(*table.columns, *columns), rows=rows)


def settling_table(trained: Trained, differs: Differs = (), notes: Sequence[str] = ()) -> Table:
    """How test images come to rest, of the rows that settle; shares in percent."""
    settled = {
        row: jobs for row, jobs in trained.items() if SETTLING[0] in jobs[0].metrics[max(jobs[0].metrics)]
    }
    return metric_table(
        settled,
        "How the test images settle, percent of the images",
        {name: (name, 1) for name in SETTLING},
        differs=differs,
        notes=notes,
    )


def _values(jobs: Sequence[JobResult], metric: str) -> tuple[float, ...]:
    return tuple(job.final(metric) for job in jobs if metric in job.metrics[max(job.metrics)])


def better(table: Table, column: str, first: str, second: str, group: str = "") -> tuple[bool, str]:
    """Whether row `first` is better than row `second` by the means over the seeds, and that in words.

    A run that diverged is worse than any other, and no better than another one that did.
    """
    index = table.columns.index(column)
    a, b = table.mean(index, first, group), table.mean(index, second, group)
    sign = 1 if ORDER_OF_BETTER[column] else -1
    won = math.isfinite(a) and (not math.isfinite(b) or sign * a > sign * b)
    shown = [f"{value:.{_DIGITS[column]}f}" if math.isfinite(value) else "diverged" for value in (a, b)]
    return won, f"{column} {shown[0]} {'better' if won else 'not better'} than {second}'s {shown[1]}"


def superior(
    text: str,
    source: str,
    table: Table,
    first: str,
    others: Sequence[str],
    columns: Sequence[str],
    group: str = "",
) -> Claim:
    """Whether row `first` is better than every one of `others` in each of `columns`."""
    found = [better(table, column, first, other, group) for other in others for column in columns]
    return Claim(
        text, source, all(won for won, _ in found), f"{first}: " + "; ".join(words for _, words in found)
    )


def has_rows(trained: Trained, *labels: str) -> bool:
    """Whether there is a row of each of those labels."""
    return set(labels) <= {row.label for row in trained}


def fixed_point(text: str, source: str, settling: Table, label: str) -> Claim:
    """Whether at least 99 % of a row's test images come to rest."""
    share = settling.mean(settling.columns.index(SETTLING[0]), label)
    evidence = f"{share:.1f} % of the test images come to rest ({_AT_REST:g} % asked for)"
    return Claim(text, source, share >= _AT_REST, evidence)


def cycles(text: str, source: str, settling: Table, label: str, *, two: bool = False) -> Claim:
    """Whether more than half of a row's test images go round in 2 to 10 iterations; with `two`, in 2."""
    index = settling.columns.index
    biphasic, longer = (settling.mean(index(name), label) for name in SETTLING[2:4])
    share = biphasic if two else biphasic + longer
    at_rest, rest = (settling.mean(index(name), label) for name in (SETTLING[0], SETTLING[4]))
    return Claim(
        text,
        source,
        share > _HALF,
        f"{biphasic:.1f} % of the test images go round in 2 iterations, {longer:.1f} % in 3 to 10, {at_rest:.1f} % come to "
        f"rest, {rest:.1f} % do neither (more than {_HALF:g} % asked for)",
    )
