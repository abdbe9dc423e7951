"""One self-contained HTML page from the ``results.json`` files below a folder.

The page needs nothing but itself: styles are in it, figures are SVG elements of it, there is no script and
no address outside. It reads on a phone (tables scroll in their own frame), follows the reader's light or
dark setting, and prints with everything unfolded.
"""

from __future__ import annotations

import itertools
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmser._atomic import atomic_write
from lmser._extras import require
from lmser.experiments import EXPERIMENTS
from lmser.experiments.paper import paper_names, paper_title
from lmser.experiments.results import RESULTS_FILE, Claim, Results, read_results
from lmser.experiments.tables import Table
from lmser.report_figures import QUALITY, embed

__all__ = ["Found", "collect", "duration", "missing_figures", "render", "write_report"]

Found = Sequence[tuple[Path, Results]]  # every result with the folder that its figures are in

# An experiment with more figures than this shows them folded.
_OPEN_FIGURES = 4
# A page with more tests of claims than this shows them folded.
_OPEN_TESTS = 12
_SCALES = ("paper", "quick", "demo")


def collect(directory: Path) -> list[tuple[Path, Results]]:
    """Every ``results.json`` in `directory` and below with its folder: in the order of ``lmser list``, paper
    scale before quick, then by path.

    Raises FileNotFoundError if the folder is not there or holds none, ValueError naming a file that is
    damaged.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no folder {directory} to report on")
    found = [(path.parent, read_results(path)) for path in directory.rglob(RESULTS_FILE)]
    if not found:
        raise FileNotFoundError(
            f"there is no {RESULTS_FILE} in {directory} or below: an experiment writes it when it is "
            "finished (`lmser run NAME`, `lmser demo`; an interrupted one goes on with --resume)"
        )
    names = [experiment.name for experiment in EXPERIMENTS]

    def place(item: tuple[Path, Results]) -> tuple[int, str, int, Path]:
        folder, results = item
        return _rank(names, results.experiment), results.experiment, _rank(_SCALES, results.scale), folder

    return sorted(found, key=place)


def missing_figures(experiments: Found) -> list[Path]:
    """The figures that results name and that are not in their folder; a page says so in their place."""
    files = (folder / figure.file for folder, results in experiments for figure in results.figures)
    return [file for file in files if not file.exists()]


def render(experiments: Found, *, title: str, introduction: str) -> str:
    """The page as text.

    A figure whose file is not there is named in its place. Raises ValueError for one that is not a
    self-contained SVG or that lies outside its experiment's folder, ImportError naming the extra where jinja2
    or pillow is not installed.
    """
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmser", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    described = [
        _experiment(index, folder, results, heading)
        for index, ((folder, results), heading) in enumerate(
            zip(experiments, _headings(experiments), strict=True), start=1
        )
    ]
    claims = _claims(described)
    text: str = environment.get_template("report.html.j2").render(
        title=title,
        introduction=introduction,
        experiments=described,
        claims=claims,
        claims_folded=sum(claim["tests"] for claim in claims) > _OPEN_TESTS,
        confirmed=sum(claim["confirmed"] for claim in claims),
        papers=_papers(described),
        packed=any(figure["packed"] for experiment in described for figure in experiment["figures"]),
        quality=QUALITY,
    )
    return text


def write_report(path: Path, experiments: Found, *, title: str, introduction: str) -> Path:
    """Write the page, whole or not at all, and return `path`. Raises as `render`."""
    text = render(experiments, title=title, introduction=introduction)
    with atomic_write(path, "w") as file:
        file.write(text)
    return path


def duration(seconds: float) -> str:
    """``"41 s"``, ``"12 min 5 s"``, ``"3 h 20 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _rank(known: Sequence[str], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _headings(experiments: Found) -> Iterator[str]:
    """A title per result that no other has: the scale where there are several results, the folder where that
    is not enough."""
    titles = [
        f"{results.title}, {results.scale} scale" if len(experiments) > 1 else results.title
        for _, results in experiments
    ]
    folders = [os.path.abspath(folder) for folder, _ in experiments]
    shared = os.path.commonpath(folders) if folders else ""
    for title, folder in zip(titles, folders, strict=True):
        alone = titles.count(title) == 1
        yield title if alone else f"{title} ({Path(os.path.relpath(folder, shared)).as_posix()})"


def _experiment(index: int, folder: Path, results: Results, heading: str) -> dict[str, Any]:
    """What the template shows of one result."""
    anchor = f"experiment-{index}"
    figures, missing = [], []
    for figure in results.figures:
        try:
            svg, packed = embed(folder, figure, f"e{index}")
        except FileNotFoundError:
            missing.append(figure)
            continue
        figures.append({"figure": figure, "svg": require("markupsafe").Markup(svg), "packed": packed})
    return {
        "results": results,
        "heading": heading,
        "anchor": anchor,
        "source": _source(results),
        "place": _place(results.machine),
        "duration": duration(results.seconds),
        "times": [(row, duration(seconds)) for row, seconds in results.times.items()],
        "command": _command(results),
        "confirmed": sum(claim.confirmed for claim in results.claims),
        "tables": [_table(table, f"{anchor}-table-{i}") for i, table in enumerate(results.tables, start=1)],
        "figures": figures,
        "folded": len(figures) > _OPEN_FIGURES,
        "missing": missing,
    }


def _source(results: Results) -> str:
    """What of the papers it stands beside: as ``lmser list`` says, or what its tables say."""
    for experiment in EXPERIMENTS:
        if experiment.name == results.experiment:
            return experiment.source
    return "; ".join(dict.fromkeys(table.source for table in results.tables if table.source))


def _place(machine: Mapping[str, str]) -> str:
    """``"AMD EPYC, 2 threads"`` or the name of the GPU."""
    device = machine.get("device", "")
    if device != "cpu":
        return device
    threads = machine.get("threads")
    counted = f"{threads} thread{'' if threads == '1' else 's'}" if threads else ""
    return ", ".join(filter(None, (machine.get("processor", device), counted)))


def _command(results: Results) -> str:
    if results.experiment not in {experiment.name for experiment in EXPERIMENTS}:
        return f"lmser {results.experiment}"
    seeds = ",".join(map(str, results.seeds))
    return f"lmser run {results.experiment} --scale {results.scale} --seeds {seeds}"


def _papers(described: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name and title of the papers that the page speaks of."""
    sources = [experiment["source"] for experiment in described]
    sources += [table["source"] for experiment in described for table in experiment["tables"]]
    sources += [claim.source for experiment in described for claim in experiment["results"].claims]
    return [
        (name, paper_title(name))
        for name in paper_names()
        if any(re.search(rf"\b{name}\b", source) for source in sources)
    ]


def _claims(described: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every claim once, with all that was found about it and where. It is confirmed where all of that is."""
    found: dict[tuple[str, str], dict[str, list[Claim]]] = {}
    for experiment in described:
        for claim in experiment["results"].claims:
            places = found.setdefault((claim.source, claim.text), {})
            places.setdefault(experiment["anchor"], []).append(claim)
    by_anchor = {experiment["anchor"]: experiment for experiment in described}
    claims = []
    for (source, text), places in found.items():
        verdicts = [claim.confirmed for found_there in places.values() for claim in found_there]
        claims.append(
            {
                "source": source,
                "text": text,
                "places": [(by_anchor[anchor], found_there) for anchor, found_there in places.items()],
                "tests": len(verdicts),
                "held": sum(verdicts),
                "confirmed": all(verdicts),
            }
        )
    return claims


def _table(table: Table, anchor: str) -> dict[str, Any]:
    columns = [{"name": name, "has_paper": table.has_paper(i)} for i, name in enumerate(table.columns)]
    common, marks = _settings(table)
    groups = [
        {
            "name": name,
            "rows": [
                {
                    "label": row.label,
                    "mark": marks[row.differs][0] if row.differs in marks else "",
                    "cells": [
                        {
                            "has_paper": table.has_paper(i),
                            "paper": cell.paper_text(),
                            "ours": cell.ours_text(),
                            "difference": cell.difference_text(),
                        }
                        for i, cell in enumerate(row.cells)
                    ],
                }
                for row in rows
            ],
        }
        for name, rows in itertools.groupby(table.rows, key=lambda row: row.group)
    ]
    return {
        "anchor": anchor,
        "title": table.title,
        "source": table.source,
        "header": table.header,
        "notes": table.notes,
        "columns": columns,
        "groups": groups,
        "any_paper": any(column["has_paper"] for column in columns),
        "has_spread": any(cell.deviation is not None for row in table.rows for cell in row.cells),
        "common": common,
        "marks": list(marks.values()),
        "width": 1 + sum(3 if column["has_paper"] else 1 for column in columns),
    }


def _settings(table: Table) -> tuple[str, dict[str, tuple[str, str]]]:
    """What all rows set otherwise than the paper, and for each row's own text a letter and what is left of
    it: rows mostly differ in the same settings, and in few of their own."""
    texts = list(dict.fromkeys(row.differs for row in table.rows))
    parts = {text: _parts(text) for text in texts}
    common = (
        [part for part in parts[texts[0]] if all(part in other for other in parts.values())] if texts else []
    )
    own = {text: [part for part in found if part not in common] for text, found in parts.items()}
    left = {text: ", ".join(found) for text, found in own.items() if found}
    return ", ".join(common), {
        text: (letter, words) for (text, words), letter in zip(left.items(), _letters(), strict=False)
    }


def _parts(differs: str) -> list[str]:
    """``"lr 0.002, batch 25 (paper: 50, 100)"`` as its two settings."""
    return [part for part in re.split(r", (?![^(]*\))", differs) if part]


def _letters() -> Iterator[str]:
    """a to z, then aa, ab, ..."""
    lengths: Iterable[int] = itertools.count(1)
    for length in lengths:
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))
