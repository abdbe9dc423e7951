"""The tables of the inpainting experiment beside 001 Table 5, and what 001 says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lmser.experiments.campaign import Trained
from lmser.experiments.claims import means, pairwise_lower
from lmser.experiments.paper import paper_table
from lmser.experiments.results import Claim
from lmser.experiments.tables import Cell, Row, Table

__all__ = ["DISTANCE", "OWN", "claims", "completed_table", "own_table"]

# Names of the metrics that a run keeps besides those of `photographs.METRICS`: the distance, and the beginning
# of those of the network's own output.
DISTANCE = "Fréchet distance"
OWN = "own "

_SOURCE = "001 Sect. 5.3"
# metric -> (column, factor, decimals): 001 prints l1 in hundredths and MSE in thousandths.
_COLUMNS = {
    "l1": ("l1 x 100", 100, 3),
    "MSE": ("MSE x 1000", 1000, 3),
    "PSNR": ("PSNR", 1, 2),
    "SSIM": ("SSIM", 1, 4),
}
_LARGER_IS_BETTER = ("PSNR", "SSIM")

Differs = Mapping[str, Sequence[str]]  # row's path -> what is not the paper's besides what the row says


def completed_table(trained: Trained, distance: str, differs: Differs, notes: Sequence[str]) -> Table:
    """001 Table 5: known pixels pasted in. `distance` is the name of the Fréchet distance."""
    columns = {**_COLUMNS, DISTANCE: (distance, 1, 3)}
    return Table(
        title="Inpainting, known pixels pasted in, images in [0, 1]",
        columns=tuple(column for column, _, _ in columns.values()),
        rows=_rows(trained, columns, "", differs, paper_table("001", "table 5")),
        source="001 Table 5",
        notes=tuple(notes),
    )


def own_table(trained: Trained, differs: Differs) -> Table:
    """The same of what the networks give for all pixels, known ones included."""
    return Table(
        title="Inpainting, the network's own output at every pixel, images in [0, 1]",
        columns=tuple(column for column, _, _ in _COLUMNS.values()),
        rows=_rows(trained, _COLUMNS, OWN, differs, {}),
    )


def _rows(
    trained: Trained,
    columns: Mapping[str, tuple[str, float, int]],
    prefix: str,
    differs: Differs,
    paper: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> tuple[Row, ...]:
    rows = []
    for row, found in trained.items():
        printed = paper.get(row.group, {}).get(row.label, {})
        cells = [
            Cell(
                tuple(factor * job.final(f"{prefix}{metric}") for job in found),
                printed.get(column),
                digits=digits,
            )
            for metric, (column, factor, digits) in columns.items()
        ]
        words = ", ".join(filter(None, (row.differs, *differs[row.path])))
        rows.append(Row(row.label, tuple(cells), group=row.group, differs=words))
    return tuple(rows)


def claims(table: Table) -> tuple[Claim, ...]:
    """001's sentences on Table 5, held against both data sets of `completed_table`."""
    wanted = {"CLmser", "CLmser-w", "CLmser-n", "CAE", "PConv", "PEN-Net", "PICNet"}
    groups = {
        group: found
        for group in dict.fromkeys(row.group for row in table.rows)
        if wanted <= set(found := means(table, "MSE x 1000", group))
    }
    if not groups:
        return ()
    where = "MSE x 1000: "
    peers = [("CLmser-w", peer) for peer in ("PConv", "PEN-Net", "PICNet")]
    paired = [("CLmser", "CLmser-n"), ("CLmser-w", "CAE")]
    handicaps = _handicaps(table, tuple(groups), [peer for _, peer in peers])
    best = _best_on_most(table, tuple(groups), "CLmser-w")
    beaten = pairwise_lower("CLmser-w outperforms PConv, PEN-Net and PICNet", _SOURCE, where, groups, peers)
    return (
        replace(best, evidence=best.evidence + handicaps),
        pairwise_lower(
            "DCW beside DPN plays a slightly negative role in inpainting",
            _SOURCE,
            where,
            groups,
            [("CLmser-w", "CLmser")],
        ),
        pairwise_lower("DPN enhances inpainting", _SOURCE, where, groups, paired),
        replace(beaten, evidence=beaten.evidence + handicaps),
    )


def _handicaps(table: Table, groups: Sequence[str], peers: Sequence[str]) -> str:
    """What of the peers is not the papers', said where they are said to lose."""
    said = []
    for peer in peers:
        differs = dict.fromkeys(
            r.differs for r in table.rows if r.label == peer and r.group in groups and r.differs
        )
        said += [f"{peer}: {words}" for words in differs]
    return f". Not the papers': {'; '.join(said)}" if said else ""


def _best_on_most(table: Table, groups: Sequence[str], label: str) -> Claim:
    """On each data set `label` is the best of all rows by more than half of the columns."""
    evidence = []
    confirmed = True
    for group in groups:
        won, shown = 0, []
        for column in table.columns:
            found = means(table, column, group)
            sign = -1 if column in _LARGER_IS_BETTER else 1
            # A run that diverged is infinite in `means`, and the worst whichever way a column is read.
            best = min(found, key=lambda row: sign * found[row] if found[row] != float("inf") else found[row])
            won += best == label
            shown.append(f"{column} {best}")
        confirmed &= 2 * won > len(table.columns)
        evidence.append(f"{group}: best by {', '.join(shown)}")
    return Claim(
        f"{label} outperforms the other models on most metrics", _SOURCE, confirmed, "; ".join(evidence)
    )
