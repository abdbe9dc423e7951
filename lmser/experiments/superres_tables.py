"""The tables of the super-resolution experiment beside 004 Table 1, and what 004 says about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lmser.experiments.campaign import Trained
from lmser.experiments.paper import paper_table
from lmser.experiments.results import Claim
from lmser.experiments.tables import Cell, Row, Table

__all__ = ["BASELINE", "MEASURES", "claim", "gain_table", "measure_table"]

BASELINE = "Bicubic"
MEASURES = tuple(f"{of} {name}" for of in ("RGB", "luminance") for name in ("PSNR", "SSIM"))
"""What is measured of every image. The names of a run's metrics are these behind the set's name and a space."""

_COLUMNS = {"PSNR": 2, "SSIM": 4}
_SETS = ("Set5", "Set14", "BSD100", "Urban100")
_PRINTED_ALONE = ("DRCN", "LapSRN")

Baseline = Mapping[str, float]


def measure_table(trained: Trained, baseline: Baseline, of: str, notes: Sequence[str]) -> Table:
    """`of` is "RGB", beside the paper's numbers, or "luminance"."""
    beside = of == "RGB"
    paper = paper_table("004", "table 1") if beside else {}
    rows = []
    for name in _measured(baseline):
        printed = paper.get(name, {})
        metrics = [f"{name} {of} {column}" for column in _COLUMNS]
        rows.append(_row(name, BASELINE, [(baseline[metric],) for metric in metrics], printed))
        for row, jobs in trained.items():
            values = [tuple(job.final(metric) for job in jobs) for metric in metrics]
            rows.append(_row(name, row.label, values, printed, row.differs))
        if beside:
            rows += [_row(name, label, [(), ()], printed) for label in _PRINTED_ALONE]
    what = "RGB, all pixels" if beside else "Luminance, 2 pixels of border left out"
    return Table(
        what, tuple(_COLUMNS), tuple(rows), source="004 Table 1" if beside else "", notes=tuple(notes)
    )


def gain_table(trained: Trained, baseline: Baseline) -> Table:
    """How far above bicubic interpolation, in RGB, beside how far the paper's rows are above the paper's."""
    paper = paper_table("004", "table 1")
    rows = []
    for name in _measured(baseline):
        gains = {column: paper[name]["CBAN"][column] - paper[name][BASELINE][column] for column in _COLUMNS}
        for row, jobs in trained.items():
            values = [
                tuple(job.final(f"{name} RGB {column}") - baseline[f"{name} RGB {column}"] for job in jobs)
                for column in _COLUMNS
            ]
            rows.append(_row(name, row.label, values, {row.label: gains}, row.differs))
    return Table("Gain over bicubic interpolation, RGB", tuple(_COLUMNS), tuple(rows), source="004 Table 1")


def claim(table: Table, trained: Trained) -> tuple[Claim, ...]:
    """Whether every row that was trained is above the baseline on every set, by `measure_table` of RGB."""
    evidence, confirmed = [], True
    for name in dict.fromkeys(row.group for row in table.rows):
        for row in trained:
            for index, (column, digits) in enumerate(_COLUMNS.items()):
                ours, other = (table.mean(index, label, name) for label in (row.label, BASELINE))
                won = math.isfinite(ours) and ours > other
                confirmed &= won
                evidence.append(
                    f"{name} {column} {ours:.{digits}f} {'above' if won else 'not above'} {other:.{digits}f}"
                )
    return (
        Claim(
            "CBAN consistently outperforms bicubic interpolation",
            "004 Sect. 4.5",
            confirmed,
            "; ".join(evidence),
        ),
    )


def _measured(baseline: Baseline) -> list[str]:
    return [name for name in _SETS if f"{name} {MEASURES[0]}" in baseline]


def _row(
    group: str,
    label: str,
    values: Sequence[tuple[float, ...]],
    printed: Mapping[str, Mapping[str, float]],
    differs: str = "",
) -> Row:
    cells = tuple(
        Cell(found, printed.get(label, {}).get(column), digits=digits)
        for found, (column, digits) in zip(values, _COLUMNS.items(), strict=True)
    )
    return Row(label, cells, group=group, differs=differs)
