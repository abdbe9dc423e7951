"""One self-contained HTML page from the ``results.json`` files below a folder.

The page needs nothing but itself: styles are in it, figures are SVG elements of it, there is no script and
no address outside. It reads on a phone (tables scroll in their own frame) and follows the reader's light or
dark setting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmser._atomic import atomic_write
from lmser._extras import require
from lmser.experiments.results import RESULTS_FILE, Results, read_results
from lmser.experiments.tables import Table

__all__ = ["collect", "render", "write_report"]

# What would make a page reach outside itself or run something.
_OUTSIDE = re.compile(
    rb"<script|<foreignObject|<!ENTITY|\bon\w+\s*=|(?:href|src)\s*=\s*[\"'](?!#|data:image/)|url\(\s*[\"']?(?!#|data:)",
    re.IGNORECASE,
)


def collect(directory: Path) -> list[tuple[Path, Results]]:
    """Every ``results.json`` in `directory` and below with its folder, in the order of their paths.

    Raises FileNotFoundError if the folder is not there or holds none, ValueError naming a file that is
    damaged.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no folder {directory} to report on")
    found = [(path.parent, read_results(path)) for path in sorted(directory.rglob(RESULTS_FILE))]
    if not found:
        raise FileNotFoundError(
            f"there is no {RESULTS_FILE} in {directory} or below: an experiment writes it when it is "
            "finished (`lmser run NAME`, `lmser demo`; an interrupted one goes on with --resume)"
        )
    return found


def render(experiments: Sequence[tuple[Path, Results]], *, title: str, introduction: str) -> str:
    """The page as text. `experiments` pairs every result with the folder that its figures are in.

    Raises FileNotFoundError for a figure that is missing, ValueError for one that is not a self-contained
    SVG or that lies outside its experiment's folder, ImportError naming the extra where jinja2 is not
    installed.
    """
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmser", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    markup = require("markupsafe").Markup
    described = []
    for index, (folder, results) in enumerate(experiments):
        figures = [
            {
                "title": f.title,
                "caption": f.caption,
                "alt": f.alt,
                "svg": markup(_figure(folder, f.file, index)),
            }
            for f in results.figures
        ]
        tables = [_table(table) for table in results.tables]
        described.append(
            {
                "results": dict(vars(results), tables=tables),
                "anchor": f"experiment-{index + 1}",
                "figures": figures,
                "duration": duration(results.seconds),
            }
        )
    template = environment.get_template("report.html.j2")
    text: str = template.render(title=title, introduction=introduction, experiments=described)
    return text


def write_report(
    path: Path, experiments: Sequence[tuple[Path, Results]], *, title: str, introduction: str
) -> Path:
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


def _table(table: Table) -> dict[str, Any]:
    columns = [{"name": name, "has_paper": table.has_paper(i)} for i, name in enumerate(table.columns)]
    rows = []
    group = ""
    for row in table.rows:
        cells = [
            {
                "has_paper": table.has_paper(i),
                "paper": cell.paper_text(),
                "ours": cell.ours_text(),
                "difference": cell.difference_text(),
            }
            for i, cell in enumerate(row.cells)
        ]
        rows.append(
            {
                "label": row.label,
                "group": row.group,
                "starts_group": row.group != group,
                "cells": cells,
                "differs": row.differs,
            }
        )
        group = row.group
    return {
        "title": table.title,
        "source": table.source,
        "header": table.header,
        "notes": table.notes,
        "columns": columns,
        "rows": rows,
        "any_paper": any(column["has_paper"] for column in columns),
        "common_difference": table.common_difference,
        "has_differences": table.common_difference is None,
        "has_spread": any(cell.deviation is not None for row in table.rows for cell in row.cells),
        "width": 1
        + sum(3 if column["has_paper"] else 1 for column in columns)
        + (table.common_difference is None),
    }


def _figure(folder: Path, name: str, experiment: int) -> str:
    """The SVG element of one figure, its ids made unique within the page."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the figure {name!r} lies outside the folder {folder} of its results")
    if not path.is_file():
        raise FileNotFoundError(
            f"the figure {path} is missing: run the experiment again with --resume to redraw it"
        )
    content = path.read_bytes()
    start = content.find(b"<svg")
    if start < 0 or not content.rstrip().endswith(b"</svg>"):
        raise ValueError(f"{path} is not a whole SVG figure")
    content = content[start:]
    outside = _OUTSIDE.search(content)
    if outside:
        raise ValueError(
            f"{path} is not self-contained: it holds {outside.group().decode(errors='replace')!r}"
        )
    text = content.decode("utf-8")
    prefix = f"e{experiment}-{re.sub(r'[^A-Za-z0-9]', '-', Path(name).stem)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)
    return text
