"""004 App. E.1, Table 2: how far a batch has to settle in training, to 0.01 or to 1.0.

Two networks of `lmser.experiments.cban_omniglot` that differ in the threshold alone. In one iteration no tanh unit
can move by more than 2, and at 1.0 settling ends after a few.

004 does not say to which threshold the networks settle in the test. Here to their own, and in a second table both to 0.01.
L1: `lmser.experiments.completion_metrics`. Iterations are those of each training batch, mean and median over the run.

The quick scale's schedule is that of `lmser.experiments.cban_order`. With 30 iterations in place of 10, training to 0.01
ended in black images (seed 0: 17.6 dB on the test drawings), which would have decided the comparison for the wrong reason.

What decides the claims, set before the rows were run, by the means over the seeds:

- 1.0 is as good or better where PSNR and SSIM are higher and L1 is lower than with 0.01, each settled to its own threshold.
- 1.0 is more efficient where its mean number of iterations is at most half of 0.01's (in 004 it is a fifteenth).
"""

from __future__ import annotations

import math

from lmser.experiments import Request
from lmser.experiments.campaign import Trained
from lmser.experiments.completion_metrics import MEASURES
from lmser.experiments.completion_results import write_results
from lmser.experiments.completion_tables import (
    has_rows,
    measured_table,
    settling_table,
    superior,
    with_columns,
)
from lmser.experiments.image_completion import iterations, prefix_of, save_completions, train_completion
from lmser.experiments.paper import paper_table
from lmser.experiments.results import Claim, Results
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Table

__all__ = ["run"]

NAME = "cban-threshold"

_SOURCE = "004 App. E.1"
_LOW, _HIGH = "0.01", "1.0"  # labels of the rows
_MEAN, _MEDIAN = "mean iterations", "median iterations"
_QUICKER = 0.5
_COMMON = 0.01  # the threshold of the second table


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    trained, data = train_completion(request, rows, NAME)
    table = _table(trained, data.note())
    common = measured_table(
        trained,
        "Completed images, both settled to 0.01 in the test",
        prefix=prefix_of(1, _COMMON),
        source="",
    )
    claims = []
    if has_rows(trained, _LOW, _HIGH):
        claims = [
            superior(
                "The higher threshold increases performance on PSNR, SSIM and L1",
                _SOURCE,
                table,
                _HIGH,
                (_LOW,),
                MEASURES,
            ),
            _efficiency(table),
        ]
    return write_results(
        request,
        trained,
        data.facts(),
        experiment=NAME,
        title="The convergence threshold in training",
        summary=(
            "CBAN on drawings in [-1, 1], trained with batches that settle until no state moves by the threshold. PSNR "
            "(data range 2, as 1 on [0, 1]) and SSIM are each image's own, L1 is the sum over its pixels on [0, 1]."
        ),
        tables=(table, common, settling_table(trained)),
        figures=[
            save_completions(
                request, trained, data, "thresholds", "Test drawings and their completions", "004 Fig. 5"
            )
        ],
        claims=claims,
    )


def _table(trained: Trained, note: str) -> Table:
    printed = paper_table("004", "table 2")
    measured = measured_table(
        trained,
        "Completed images by the threshold in training",
        errors=False,
        source="004 Table 2",
        printed=printed,
        notes=(note, "Settled to the row's own threshold in the test."),
        header="threshold",
    )
    counted = iterations(trained)
    further = {
        label: (
            Cell(mean, printed.get(label, {}).get(_MEAN), digits=2),
            Cell(median, printed.get(label, {}).get(_MEDIAN), digits=2),
        )
        for label, (mean, median) in counted.items()
    }
    return with_columns(measured, (_MEAN, _MEDIAN), further)


def _efficiency(table: Table) -> Claim:
    index = table.columns.index(_MEAN)
    low, high = (table.mean(index, label) for label in (_LOW, _HIGH))
    confirmed = math.isfinite(high) and math.isfinite(low) and high <= _QUICKER * low
    return Claim(
        "The higher threshold makes training more efficient",
        _SOURCE,
        confirmed,
        f"{high:.2f} iterations on average at {_HIGH}, {low:.2f} at {_LOW} (at most {_QUICKER:g} of these asked for)",
    )
