"""A table of results beside the paper's: one cell per metric and row, with every seed's value kept.

A table knows numbers, not markup. `Table.text` prints it for a terminal; `lmser.report` lays it out as HTML.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Cell", "Row", "Table"]

MISSING = "\u2013"


@dataclass(frozen=True)
class Cell:
    """One measured quantity.

    ours:   one value per seed; NaN for a run that diverged, empty for one that was not asked for.
    paper:  the printed value, None where the paper has none.
    digits: decimals to show.
    """

    ours: tuple[float, ...]
    paper: float | None = None
    digits: int = 4

    @property
    def mean(self) -> float | None:
        """Mean over the seeds: NaN as soon as one of them diverged, None without any."""
        return statistics.fmean(self.ours) if self.ours else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, None for fewer than two or with a diverged one."""
        if len(self.ours) < 2 or not all(map(math.isfinite, self.ours)):
            return None
        return statistics.stdev(self.ours)

    @property
    def difference(self) -> float | None:
        """Mean minus the paper's value, None where either is missing."""
        if self.mean is None or self.paper is None or not math.isfinite(self.mean):
            return None
        return self.mean - self.paper

    def ours_text(self) -> str:
        """``mean ± deviation``; "diverged (1 of 3)" where runs did."""
        if self.mean is None:
            return MISSING
        lost = sum(not math.isfinite(value) for value in self.ours)
        if lost:
            return "diverged" if lost == len(self.ours) else f"diverged ({lost} of {len(self.ours)})"
        text = f"{self.mean:.{self.digits}f}"
        return text if self.deviation is None else f"{text} ± {self.deviation:.{self.digits}f}"

    def paper_text(self) -> str:
        return MISSING if self.paper is None else f"{self.paper:.{self.digits}f}"

    def difference_text(self) -> str:
        """Signed, with a true minus sign; no sign where it rounds to nothing."""
        if self.difference is None:
            return MISSING
        text = f"{self.difference:+.{self.digits}f}"
        return text.replace("-", "\u2212") if float(text) else text[1:]

    def to_json(self) -> dict[str, Any]:
        # JSON has no NaN: a diverged run is null.
        ours = [value if math.isfinite(value) else None for value in self.ours]
        return {"ours": ours, "paper": self.paper, "digits": self.digits}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        ours = tuple(math.nan if value is None else float(value) for value in data["ours"])
        return cls(ours, data["paper"], int(data["digits"]))


@dataclass(frozen=True)
class Row:
    """One line: `label` within `group`, a cell per column, and what was set otherwise than in the paper."""

    label: str
    cells: tuple[Cell, ...]
    group: str = ""
    differs: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`.

    title:   what is shown, with the image range where a metric depends on it.
    source:  the paper's table it stands beside, empty where there is none.
    header:  the heading over the row labels.
    notes:   sentences below the table.

    Raises ValueError where a row's number of cells is not the number of columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    source: str = ""
    header: str = "model"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"Table {self.title!r}: row {row.label!r} has {len(row.cells)} cells for "
                    f"{len(self.columns)} columns"
                )

    def has_paper(self, column: int) -> bool:
        """Whether the paper printed anything in this column."""
        return any(row.cells[column].paper is not None for row in self.rows)

    @property
    def common_difference(self) -> str | None:
        """What was set otherwise than in the paper, where that is the same in every row; else None."""
        found = {row.differs for row in self.rows}
        return found.pop() if len(found) == 1 else None

    def mean(self, column: int, label: str, group: str = "") -> float:
        """Mean over the seeds of one cell; NaN where it was not run. ValueError where there is no such
        row."""
        for row in self.rows:
            if (row.label, row.group) == (label, group):
                mean = row.cells[column].mean
                return math.nan if mean is None else mean
        raise ValueError(f"Table {self.title!r} has no row {label!r} in group {group!r}")

    def order(self, column: int, group: str = "") -> str:
        """The rows of a group from the lowest mean to the highest, ``"CLmser 0.0035 < CAE 0.1200"``;
        diverged ones last."""
        rows = [row for row in self.rows if row.group == group and row.cells[column].mean is not None]
        ranked = sorted(rows, key=lambda row: _or_infinite(row.cells[column].mean))
        return " < ".join(f"{row.label} {_short(row.cells[column])}" for row in ranked)

    def text(self) -> str:
        """The table for a terminal: a heading, aligned columns, the notes."""
        heading = [self.header]
        for index, column in enumerate(self.columns):
            heading += [column, "paper", "difference"] if self.has_paper(index) else [column]
        lines: list[list[str] | str] = []
        group = ""
        for row in self.rows:
            if row.group != group:
                group = row.group
                lines.append(group)
            line = [("  " if group else "") + row.label]
            for index, cell in enumerate(row.cells):
                line.append(cell.ours_text())
                if self.has_paper(index):
                    line += [cell.paper_text(), cell.difference_text()]
            lines.append(line)
        body = _aligned([heading, *lines])
        title = f"{self.title} (beside {self.source})" if self.source else self.title
        return "\n".join([title, *body, *self._remarks(), *self.notes])

    def _remarks(self) -> list[str]:
        heading = "Settings that differ from the paper's:"
        if self.common_difference is not None:
            return [f"{heading} {self.common_difference}"] if self.common_difference else []
        differing: dict[str, list[str]] = {}
        for row in self.rows:
            if row.differs:
                differing.setdefault(row.differs, []).append(f"{row.group} {row.label}".strip())
        return [heading, *(f"  {', '.join(labels)}: {what}" for what, labels in differing.items())]

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "source": self.source,
            "header": self.header,
            "columns": list(self.columns),
            "rows": [
                {
                    "group": row.group,
                    "label": row.label,
                    "cells": [cell.to_json() for cell in row.cells],
                    "differs": row.differs,
                }
                for row in self.rows
            ],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        rows = tuple(
            Row(row["label"], tuple(map(Cell.from_json, row["cells"])), row["group"], row["differs"])
            for row in data["rows"]
        )
        return cls(
            data["title"], tuple(data["columns"]), rows, data["source"], data["header"], tuple(data["notes"])
        )


def _or_infinite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.inf


def _short(cell: Cell) -> str:
    """The mean without its deviation."""
    return Cell((cell.mean,), digits=cell.digits).ours_text() if cell.mean is not None else MISSING


def _aligned(lines: Sequence[list[str] | str]) -> list[str]:
    """First column to the left, the others to the right; a bare string is a line of its own."""
    cells = [line for line in lines if not isinstance(line, str)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(cells[0]))]
    text = []
    for line in lines:
        if isinstance(line, str):
            text.append(line)
            continue
        first, *others = line
        padded = [
            first.ljust(widths[0]),
            *(value.rjust(width) for value, width in zip(others, widths[1:], strict=True)),
        ]
        text.append("  ".join(padded).rstrip())
        if len(text) == 1:
            text.append("-" * len("  ".join(padded)))
    return text
