"""The numbers the papers print, for tables that stand beside them.

Papers are named as everywhere in this package:

"000"  *Revisit Lmser and its further development based on convolutional layers*
"001"  *Deep CNN based Lmser and strengths of two built-in dualities*
"003"  *Semi-Supervised Learning via New Deep Network Inversion*
"004"  *Convolutional Bipartite Attractor Networks*
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any

__all__ = ["paper_names", "paper_table", "paper_title"]


@functools.cache
def _papers() -> dict[str, Any]:
    text = importlib.resources.files("lmser").joinpath("paper_tables.json").read_text(encoding="utf-8")
    papers: dict[str, Any] = json.loads(text)
    return papers


def _paper(name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = _papers()[name]
    except KeyError:
        raise ValueError(f"no paper {name!r}; there are {', '.join(_papers())}") from None
    return found


def paper_names() -> tuple[str, ...]:
    """The papers there are, ``("000", "001", ...)``."""
    return tuple(_papers())


def paper_title(paper: str) -> str:
    """The title of a paper. ValueError listing the papers there are."""
    title: str = _paper(paper)["title"]
    return title


def paper_table(paper: str, table: str) -> dict[str, Any]:
    """The values of one table, for example ``paper_table("001", "table 4")["n = 100"]["CLmser"]["MSE"]``.

    Raises ValueError listing the papers, or the paper's tables, there are.
    """
    tables = _paper(paper)["tables"]
    if table not in tables:
        raise ValueError(f"paper {paper} has no {table!r}; there are {', '.join(tables)}")
    values: dict[str, Any] = tables[table]["values"]
    return values
