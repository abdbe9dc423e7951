"""What an experiment leaves behind: ``results.json`` beside its figures, readable without any extra
installed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmser._atomic import atomic_write
from lmser.experiments.tables import Table

__all__ = ["RESULTS_FILE", "Claim", "Figure", "Results", "read_results", "write_json"]

RESULTS_FILE = "results.json"
_FORMAT = "lmser results 1"


@dataclass(frozen=True)
class Figure:
    """A picture: `file` is an SVG named relative to ``results.json``; `alt` says in words what it shows."""

    file: str
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Claim:
    """What a paper says in words, held against the numbers: `evidence` is the sentence with the numbers that
    decided `confirmed`; `source` the paper and section."""

    text: str
    source: str
    confirmed: bool
    evidence: str


@dataclass(frozen=True)
class Results:
    """One finished experiment.

    experiment: its name on the command line.  title, summary: what was done, for a reader.
    scale:      "paper" or "quick" (or "demo"); what quick leaves out is in the rows' `differs` and the notes.
    seeds:      of the runs behind each cell.
    seconds:    wall time of the whole experiment, all sessions of a resumed one together.
    machine:    where it ran (`lmser.experiments.provenance.machine`).
    data:       what it was trained on: name, checksum.
    times:      seconds that each row of the tables trained, all seeds together, by the row's path.
    """

    experiment: str
    title: str
    summary: str
    scale: str
    seeds: tuple[int, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    seconds: float
    machine: Mapping[str, str]
    data: Mapping[str, str]
    notes: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    times: Mapping[str, float] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Write ``results.json`` into `directory`, whole or not at all, and return its path."""
        path = directory / RESULTS_FILE
        write_json(
            path,
            {
                "format": _FORMAT,
                "experiment": self.experiment,
                "title": self.title,
                "summary": self.summary,
                "scale": self.scale,
                "seeds": list(self.seeds),
                "tables": [table.to_json() for table in self.tables],
                "figures": [vars(figure) for figure in self.figures],
                "seconds": self.seconds,
                "machine": dict(self.machine),
                "data": dict(self.data),
                "notes": list(self.notes),
                "claims": [vars(claim) for claim in self.claims],
                "times": dict(self.times),
            },
        )
        return path


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write `value` as JSON, whole or not at all; of several processes the first one does.

    ValueError for NaN and infinity, which JSON lacks.
    """
    from lmser.training.distributed import is_main  # reading results needs no torch

    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    if not is_main():
        return
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def read_results(path: Path) -> Results:
    """Read a ``results.json``. ValueError naming the file and what is wrong where it is not one of this
    package's."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path} was not written by lmser: its format is {found!r}, expected {_FORMAT!r}")
    try:
        return Results(
            experiment=data["experiment"],
            title=data["title"],
            summary=data["summary"],
            scale=data["scale"],
            seeds=tuple(data["seeds"]),
            tables=tuple(map(Table.from_json, data["tables"])),
            figures=tuple(Figure(**figure) for figure in data["figures"]),
            seconds=_seconds(data["seconds"]),
            machine=data["machine"],
            data=data["data"],
            notes=tuple(data["notes"]),
            claims=tuple(Claim(**claim) for claim in data.get("claims", [])),
            times={row: _seconds(value) for row, value in data.get("times", {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _seconds(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a time is {value}")
    return float(value)
