"""004 Sects. 3.2 and 3.3, Appendix B: losses, and the sweeps at which they are injected, side by side.

"losses": the squared error, the difference of energies and its soft hinge, each at every iteration (TD(1)). "time": the
soft hinge with TD(0.5) and TD(0), whose targets are the network's own later states, at the last iteration alone
(noTD), at the fixed point alone by implicit differentiation (stationary), and by half of that (mixture). Nothing else
differs between the rows of a task. 004 gives sentences, "although we do not report systematic experiments", and no
numbers.

A gradient that is renormalised (bars) has no scale, so the losses differ there in direction alone.

Scores are those of `lmser.experiments.attractor_comparison`.

What decides the claims, set before any of these rows was run, on the mean over the seeds, in both tasks. (A trial on
bars with noTD, and one with the squared error, had been seen.)
- λ = 1 outperforms any λ < 1: TD(1) has a higher score than TD(0.5) and TD(0).
- Transient training with λ = 1 is as effective as mixtures and stationary-phase-only training: its score is not
  below theirs by more than a tenth of its distance to perfection (all images right, no error).
- A loss at every iteration up to convergence improves on one after convergence: TD(1) has a higher score than noTD.
"""

from __future__ import annotations

from collections.abc import Mapping

from lmser.experiments import Request
from lmser.experiments.attractor_comparison import Tasks, claim, scores, shortfall
from lmser.experiments.campaign import row_times, train_rows
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Table

__all__ = ["run"]

NAME = "cban-loss"

TD1, TD05, TD0 = "delta_e_plus, TD(1)", "delta_e_plus, TD(0.5)", "delta_e_plus, TD(0)"
LAST, STATIONARY, MIXED = (
    "delta_e_plus, noTD",
    "delta_e_plus, stationary",
    "delta_e_plus, half stationary",
)
_TENTH = 0.1


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    tasks = Tasks(request, rows)
    trained = train_rows(request, rows, tasks.job, experiment=NAME, data=tasks.identity())
    tables = tasks.tables(trained)
    results = Results(
        experiment=NAME,
        title="Losses of attractor networks, and when they are injected",
        summary=(
            "The same networks trained by three losses, and by one of them at every iteration, at the last, at the fixed "
            "point, and towards their own later states. Shares and accuracies in percent; errors on [-0.999, 0.999]."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tables,
        figures=(),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={**tasks.facts(), "configuration files sha256": checksum(rows)},
        claims=_claims(tables),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _claims(tables: tuple[Table, ...]) -> tuple[Claim, ...]:
    found = scores(tables)
    made = (
        claim(
            "λ = 1 outperforms any λ < 1",
            "004 Sect. 3.3",
            found,
            (TD1, TD05, TD0),
            lambda values: values[TD1] > max(values[TD05], values[TD0]),
            "TD(1) above TD(0.5) and TD(0) is asked for",
        ),
        claim(
            "transient training with λ = 1 is as effective as mixtures including stationary-phase-only training",
            "004 Sect. 3.3",
            found,
            (TD1, MIXED, STATIONARY),
            _as_effective,
            "TD(1) not below the others by more than a tenth of its distance to perfection is asked for",
        ),
        claim(
            "a loss at every iteration up to convergence improves on one after convergence",
            "004 Appendix B",
            found,
            (TD1, LAST),
            lambda values: values[TD1] > values[LAST],
            "TD(1) above noTD is asked for",
        ),
    )
    return tuple(filter(None, made))


def _as_effective(values: Mapping[str, float]) -> bool:
    best = max(values[MIXED], values[STATIONARY])
    return values[TD1] >= best - _TENTH * shortfall(values[TD1])
