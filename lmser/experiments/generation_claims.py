"""What 000 says of its generated pictures in words, held against the tables of the experiment generation.

The paper gives no bound for any of it. Those here were set before the experiment was run at either scale,
after looking at pictures of networks trained for a few seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmser.experiments.claims import means, pairwise_lower
from lmser.experiments.results import Claim
from lmser.experiments.tables import Table

__all__ = ["claims"]

# "The class stays": so many of the pictures are recognised. "The style changes": their diversity is at least
# this share of the test images'. And the style must not tell the class: 10 % is chance.
_RECOGNISED, _DIVERSITY, _FROM_STYLE = 90.0, 0.25, 30.0

# "Gradually": half of ten units act, and the largest step is at most three mean ones.
_UNITS, _LARGEST_STEP = 5.0, 3.0


def claims(styles: Table | None, traversals: Table | None) -> tuple[Claim, ...]:
    """The claims that the rows of the tables allow to decide."""
    found: list[Claim | None] = []
    readings = ("no drive from below", "drives held")
    if styles is not None:
        paired = [f"Lmser(sup), {reading}" for reading in readings]
        found += [
            _styles(styles, "with paired neurons", paired),
            _styles(styles, "without paired neurons", ["Lmser(sup-n)"]),
        ]
    if traversals is not None:
        paired = [f"Lmser({kind}), {reading}" for kind in ("sup", "un") for reading in readings]
        found += [
            _gradual(traversals, "with paired neurons", paired),
            _gradual(traversals, "without paired neurons", ["Lmser(sup-n)", "Lmser(un-n)"]),
            _convolutional(traversals),
        ]
    return tuple(claim for claim in found if claim is not None)


def _groups(table: Table, labels: Sequence[str]) -> list[str]:
    """Those in which all rows are there."""
    present = {(row.group, row.label) for row in table.rows}
    groups = dict.fromkeys(row.group for row in table.rows)
    return [group for group in groups if all((group, label) in present for label in labels)]


def _styles(table: Table, network: str, labels: Sequence[str]) -> Claim | None:
    """Confirmed where one of `labels` (readings of one network) keeps the bounds in every group."""
    evidence, keep = [], dict.fromkeys(labels, True)
    groups = _groups(table, [*labels, "test images"])
    for group in groups:
        recognised, diversity, from_style = (
            means(table, column, group) for column in ("recognised %", "diversity", "class from style %")
        )
        real = diversity["test images"]
        for label in labels:
            keep[label] &= (
                recognised[label] >= _RECOGNISED
                and diversity[label] >= _DIVERSITY * real
                and from_style[label] <= _FROM_STYLE
            )
            evidence.append(
                f"{group}, {label}: {recognised[label]:.1f} % recognised as the class asked for, diversity "
                f"{diversity[label]:.3f} (test images {real:.3f}), class from style {from_style[label]:.1f} %"
            )
    if not groups:
        return None
    bounds = (
        f"Bounds: at least {_RECOGNISED:.0f} % recognised, at least {_DIVERSITY:.0%} of the test images' "
        f"diversity, class from style at most {_FROM_STYLE:.0f} %. "
    )
    return Claim(
        f"Style units capture the non-categorical information: the class stays, the style changes ({network})",
        "000, Generation, Fig. 4",
        any(keep.values()),
        bounds + "; ".join(evidence),
    )


def _gradual(table: Table, network: str, labels: Sequence[str]) -> Claim | None:
    """Confirmed where for each kind of network (label up to its reading) one reading keeps the bounds."""
    groups = _groups(table, labels)
    evidence, confirmed = [], True
    for group in groups:
        units, largest = means(table, "units that act", group), means(table, "largest step", group)
        keep: dict[str, bool] = {}
        for label in labels:
            kind = label.partition(",")[0]
            even = label in largest and largest[label] <= _LARGEST_STEP
            keep[kind] = keep.get(kind, False) or (units[label] >= _UNITS and even)
            step = f", largest step {largest[label]:.2f} mean ones" if label in largest else ""
            evidence.append(f"{group}, {label}: {units[label]:.1f} of ten units act{step}")
        confirmed &= all(keep.values())
        if "AE" in units and "AE" in largest:
            evidence.append(f"{group}, AE, which is no Lmser: {units['AE']:.1f} act, {largest['AE']:.2f}")
    if not groups:
        return None
    bounds = (
        f"Bounds: {_UNITS:.0f} of ten units act, the largest step is at most {_LARGEST_STEP:.0f} mean ones. "
    )
    return Claim(
        f"Codes are well organised: the picture changes gradually along one unit ({network})",
        "000, Generation, Fig. 5",
        confirmed,
        bounds + "; ".join(evidence),
    )


def _convolutional(table: Table) -> Claim | None:
    pairs = [
        ("CLmser(un-n), 10 units", "Lmser(un-n)"),
        ("CLmser(sup-n), 10 units", "Lmser(sup-n)"),
    ]
    groups = _groups(table, [label for labels in pairs for label in labels])
    if not groups:
        return None
    return pairwise_lower(
        "The quality of the synthesized pictures is higher with convolutional layers (same number of units)",
        "000, Generation, Fig. 6",
        "Fréchet distance to the test images in the classifier's logits: ",
        {group: means(table, "Fréchet distance", group) for group in groups},
        pairs,
    )
