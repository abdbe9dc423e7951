"""From trained rows to the results of a completion experiment: tables, figures, facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmser.experiments import Request
from lmser.experiments.campaign import Trained, row_times
from lmser.experiments.completion_metrics import ERROR
from lmser.experiments.completion_tables import measured_table, settling_table
from lmser.experiments.figures import save_figure
from lmser.experiments.figures_bars import measure_bars
from lmser.experiments.image_completion import OWN, CompletionData
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import checksum
from lmser.experiments.tables import Table

__all__ = ["completion_tables", "save_measures", "write_results"]

_BARS = ("PSNR", "SSIM")


def completion_tables(trained: Trained, data: CompletionData, source: str) -> tuple[Table, Table, Table]:
    """Completed images; the networks' own output; how test images settle."""
    return (
        measured_table(
            trained,
            "Completed images, observed pixels as given",
            source=source,
            differs=data.differs,
            notes=(data.note(), "s.e.: standard error of the mean over the test images, of each seed."),
        ),
        measured_table(trained, "The network's own output at every pixel", prefix=OWN, differs=data.differs),
        settling_table(
            trained,
            data.differs,
            (
                "At rest: no state changes by theta or more in an iteration. Of the others, the period is the number "
                "of iterations after which all states are within theta of what they were. Iterations: the mean.",
            ),
        ),
    )


def save_measures(request: Request, completed: Table, source: str) -> Figure:
    """PSNR and SSIM of completed images as bars, as at the right of 004 Figs. 5 and 6; `completed` is the first of
    `completion_tables`."""

    def value(column: str, label: str) -> float:
        return completed.mean(completed.columns.index(column), label)

    panels = {
        measure: {
            row.label: (value(measure, row.label), value(f"{measure}{ERROR}", row.label))
            for row in completed.rows
        }
        for measure in _BARS
    }
    file = "figures/measures.svg"
    save_figure(request.out / file, measure_bars(file, panels))
    return Figure(
        file,
        "Completed test images",
        f"As {source}, right: means over the seeds; a line is one standard error over the test images.",
        f"Panels: {', '.join(_BARS)}; bars: {', '.join(row.label for row in completed.rows)}",
    )


def write_results(
    request: Request,
    trained: Trained,
    data: Mapping[str, str],
    *,
    experiment: str,
    title: str,
    summary: str,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    claims: Sequence[Claim],
    notes: Sequence[str] = (),
) -> Results:
    """Write ``results.json`` and return what is in it. `data` is what `Results.data` says of the images."""
    results = Results(
        experiment=experiment,
        title=title,
        summary=summary,
        scale=request.scale,
        seeds=request.seeds,
        tables=tuple(tables),
        figures=tuple(figures),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={**data, "configuration files sha256": checksum(trained)},
        notes=tuple(notes),
        claims=tuple(claims),
        times=row_times(trained),
    )
    results.write(request.out)
    return results
