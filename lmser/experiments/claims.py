"""What a paper says in words, decided by numbers: the comparisons that several experiments make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from lmser.experiments.results import Claim
from lmser.experiments.tables import Table

__all__ = ["lowest", "means", "pairwise_lower"]

Groups = Mapping[str, Mapping[str, float]]  # group -> row -> mean over the seeds


def means(table: Table, column: str, group: str = "") -> dict[str, float]:
    """Row label -> mean over the seeds of a column; infinite where a run diverged.

    Raises ValueError where the table has no such column.
    """
    index = table.columns.index(column)
    found = {row.label: row.cells[index].mean for row in table.rows if row.group == group}
    return {
        label: mean if math.isfinite(mean) else math.inf for label, mean in found.items() if mean is not None
    }


def lowest(text: str, source: str, where: str, groups: Groups, label: str) -> Claim:
    """Whether `label` has the lowest mean of every group. `where` begins the evidence."""
    evidence = []
    confirmed = True
    for group, found in groups.items():
        best = min(found, key=found.__getitem__)
        confirmed &= best == label
        evidence.append(f"{_named(group)}{best} lowest with {found[best]:.4g}, {label} {found[label]:.4g}")
    return Claim(text, source, confirmed, where + "; ".join(evidence))


def pairwise_lower(
    text: str, source: str, where: str, groups: Groups, pairs: Iterable[tuple[str, str]]
) -> Claim:
    """Whether in every group the first of each pair has a lower mean than the second."""
    pairs = tuple(pairs)
    evidence = []
    confirmed = True
    for group, found in groups.items():
        shown = []
        for first, second in pairs:
            confirmed &= found[first] < found[second]
            sign = "<" if found[first] < found[second] else "≥"
            shown.append(f"{first} {found[first]:.4g} {sign} {second} {found[second]:.4g}")
        evidence.append(_named(group) + ", ".join(shown))
    return Claim(text, source, confirmed, where + "; ".join(evidence))


def _named(group: str) -> str:
    return f"{group}: " if group else ""
