"""004 Appendix A: five ways in which an observation can hold the visible units, side by side.

Clamping, starting from the observation (init), blending it with what the unit would take (by half here), adding it
to the unit's input (bias, once the observation here), and a second copy of the visible units that is clamped while the
first is read (replicate): `lmser.models.evidence`. Networks are trained and tested in the same way; nothing else
differs. 004 gives sentences and no numbers. Steps, and the strengths of blend and bias, are chosen here.

Scores are those of `lmser.experiments.attractor_comparison`. What decides the claims, set before any result was seen,
on the mean over the seeds, in both tasks:
- Clamping is best: no other way but replicate has a higher score. (004 finds clamping better than each of these three
  and calls replicate promising.)
- Initialisation is not effective: it has the lowest score of all five.
- The state wanders from where it was initialised: observed units end further from what was observed than with any
  other way.
- External biases work, but are not as effective as clamping: their score is between init's and clamp's.
- Blending has partial effectiveness: its score is between init's and clamp's.
- Replicate is promising: its score is at least that of init, blend and bias.
"""

from __future__ import annotations

from collections.abc import Mapping

from lmser.experiments import Request
from lmser.experiments.attractor_comparison import Tasks, claim, scores
from lmser.experiments.bar_task import OFF
from lmser.experiments.campaign import row_times, train_rows
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Table

__all__ = ["run"]

NAME = "cban-evidence"

_SOURCE = "004 Appendix A"
CLAMP, INIT, BLEND, BIAS, REPLICATE = "clamp", "init", "blend", "bias", "replicate"


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
        title="Ways to use evidence",
        summary=(
            "The same networks with evidence clamped, as a start, blended in by half, as a bias, and in a copy of the "
            "visible units of its own. Shares and accuracies in percent; errors on [-0.999, 0.999]."
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
    every = (CLAMP, INIT, BLEND, BIAS, REPLICATE)

    def lowest(values: Mapping[str, float]) -> bool:
        return all(values[INIT] < values[label] for label in every if label != INIT)

    if not any(set(every) <= set(values) for values in found.values()):
        return ()
    made = (
        claim(
            "clamping is more effective than initialisation, blending and biases",
            _SOURCE,
            found,
            (CLAMP, INIT, BLEND, BIAS),
            lambda values: values[CLAMP] > max(values[INIT], values[BLEND], values[BIAS]),
            "Clamp above the other three is asked for",
        ),
        claim(
            "initialisation is not effective",
            _SOURCE,
            found,
            every,
            lowest,
            "Init below all others is asked for",
        ),
        claim(
            "external biases work but are not as effective as clamping",
            _SOURCE,
            found,
            (INIT, BIAS, CLAMP),
            lambda values: values[INIT] < values[BIAS] < values[CLAMP],
            "Bias between init and clamp is asked for",
        ),
        claim(
            "partial clamping has partial effectiveness relative to clamping",
            _SOURCE,
            found,
            (INIT, BLEND, CLAMP),
            lambda values: values[INIT] < values[BLEND] < values[CLAMP],
            "Blend between init and clamp is asked for",
        ),
        claim(
            "the replicated visible units are very promising",
            _SOURCE,
            found,
            (REPLICATE, INIT, BLEND, BIAS, CLAMP),
            lambda values: values[REPLICATE] >= max(values[INIT], values[BLEND], values[BIAS]),
            "Replicate at least as good as init, blend and bias is asked for",
        ),
    )
    return (*filter(None, made), _wandering(tables))


def _wandering(tables: tuple[Table, ...]) -> Claim:
    """Whether observed units end furthest from what was observed where they were only started there."""
    evidence, confirmed = [], True
    for table in tables:
        index = table.columns.index(OFF)
        off = {row.label: table.mean(index, row.label, row.group) for row in table.rows}
        confirmed &= all(off[INIT] > value for label, value in off.items() if label != INIT)
        evidence.append(
            f"{table.title}: " + ", ".join(f"{label} {value:.3f}" for label, value in off.items())
        )
    return Claim(
        "activation dynamics wander away from an initialised state",
        _SOURCE,
        confirmed,
        "Observed pixels off by, the most with init asked for. " + "; ".join(evidence),
    )
