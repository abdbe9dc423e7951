"""What limits accuracy with few labels: the errors of each network of 003 Table 2, by class and draw of the labels.

The entropy E draws an unlabelled image to the class that the network already finds likeliest for it. Where the labels
have left most of one class on the side of another, the two become one: the network is sure of what is wrong and right
about its labelled images, so that no term of Eq. (10) is left to part them. Whether this is what happened is measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmser.experiments.class_errors import ClassErrors
from lmser.experiments.tables import Cell, Row, Table

__all__ = ["DrawErrors", "errors_table"]

COLUMNS = (
    "accuracy %",
    "worst class, % right",
    "the same by the labels alone",
    "% of all errors that are of the kind named",
    "probability of the wrong class",
    "labelled images, % right",
)
_DIGITS = (2, 1, 1, 1, 3, 1)
_MERGED, _SURE, _LEARNED = 50.0, 0.9, 99.0


@dataclass(frozen=True)
class DrawErrors:
    """One network with one draw of the labels.

    test:     its errors on test images
    labelled: those on the labelled images that it learned from
    alone:    those on test images of the same network trained on the labels alone, None where that was not done
    """

    network: str
    seed: int
    test: ClassErrors
    labelled: ClassErrors
    alone: ClassErrors | None

    @property
    def merged(self) -> bool:
        """Whether more than half of a class is taken for others."""
        return self.test.right[self.test.worst] < _MERGED


def errors_table(found: Sequence[DrawErrors]) -> Table:
    """A line for each of `found`, which names the most frequent error of its worst class; the notes say what they have
    in common."""
    lines = []
    for draw in found:
        test = draw.test
        alone = () if draw.alone is None else (draw.alone.right[test.worst],)
        values = (
            (test.accuracy,),
            (test.right[test.worst],),
            alone,
            (test.one_kind,),
            (test.certainty,),
            (draw.labelled.accuracy,),
        )
        cells = tuple(Cell(ours, digits=digits) for ours, digits in zip(values, _DIGITS, strict=True))
        lines.append(
            Row(
                f"labels drawn by seed {draw.seed}: {test.worst} taken for {test.taken_for}",
                cells,
                draw.network,
            )
        )
    return Table(
        "What limits it: errors on test images, by draw of the labels",
        COLUMNS,
        tuple(lines),
        header="network, most frequent error of its worst class",
        notes=_notes(found),
    )


def _notes(found: Sequence[DrawErrors]) -> tuple[str, ...]:
    merged = [draw for draw in found if draw.merged]
    others = [draw for draw in found if not draw.merged]
    if not merged:
        return (f"No class of these {len(found)} networks is right in less than half of its images.",)
    said = (
        f"Of {len(found)} networks {len(merged)} have a class of which less than half is right: "
        f"{_mean(merged, lambda draw: draw.test.accuracy):.2f} % of all images on average"
    )
    if others:
        said += f", {_mean(others, lambda draw: draw.test.accuracy):.2f} % in the other {len(others)}"
    kind = _mean(merged, lambda draw: draw.test.one_kind)
    sure = _mean(merged, lambda draw: draw.test.certainty)
    known = _mean(merged, lambda draw: draw.labelled.accuracy)
    notes = [
        f"{said}.",
        f"There {kind:.0f} % of the errors are that class taken for one other; a wrong class is given a probability of "
        f"{sure:.2f}, and {known:.1f} % of the labelled images are right.",
    ]
    if sure >= _SURE and known >= _LEARNED:
        notes.append(
            "So neither the entropy nor the cross-entropy of Eq. (10) is left to part two classes once they are one."
        )
    alone = [draw for draw in merged if draw.alone is not None]
    if alone:
        share = _mean(alone, lambda draw: draw.alone.right[draw.test.worst] if draw.alone else math.nan)
        notes.append(f"By the labels alone the same network has {share:.0f} % of that class right.")
    return tuple(notes)


def _mean(found: Sequence[DrawErrors], value: Callable[[DrawErrors], float]) -> float:
    return statistics.fmean(map(value, found))
