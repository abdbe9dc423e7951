"""001 App. B, Table 8: whether sharing the weights (DCW) costs or gains on a large set of scenes.

CAE and CLmser-n differ in nothing else, and neither has paired neurons, so that all detail has to come through
the code of 256 values at 1/64 of the image's side.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, row_times, table_row, train_rows
from lmser.experiments.claims import means
from lmser.experiments.figures import loss_curves, picture_grid, save_figure
from lmser.experiments.image_reconstruction import mse_of_loss, reconstruct
from lmser.experiments.paper import paper_table
from lmser.experiments.photographs import (
    METRICS,
    Photographs,
    Tally,
    chunks,
    load_photographs,
    on_unit_range,
)
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Table

__all__ = ["run"]

NAME = "scenes-reconstruction"

_SHOWN = 6
_DIGITS = {"l1": 4, "MSE": 5, "PSNR": 2, "SSIM": 4}


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    photographs = load_photographs(request.data, rows[0].data)
    trained = train_rows(
        request,
        rows,
        functools.partial(_job, photographs=photographs, device=request.device),
        experiment=NAME,
        data={"train": photographs.train_digest, "test": photographs.test_digest},
    )
    table = _table(trained, photographs)
    results = Results(
        experiment=NAME,
        title="Reconstruction of scenes without paired neurons",
        summary=(
            f"{len(photographs.train):,} training and {len(photographs.test):,} test images in [0, 1], "
            f"{photographs.side}x{photographs.side} pixels. l1, MSE and SSIM are means over the test images; "
            "PSNR is that of the mean MSE, data range 1."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=(table,),
        figures=_figures(request, trained, photographs),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={**photographs.facts("scenes"), "configuration files sha256": checksum(rows)},
        claims=_claims(table),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _job(row: RowConfig, photographs: Photographs, device: str) -> Job:
    train: Any = photographs.train
    return Job(
        data=train.to(device) if isinstance(train, Tensor) else train,
        loss=_loss,
        evaluate=functools.partial(_measure, photographs=photographs),
        metrics=METRICS,
        pictures=functools.partial(reconstruct, images=photographs.shown(_SHOWN)),
        further={"transform": on_unit_range},
    )


def _loss(model: nn.Module, images: Tensor) -> Tensor:
    loss: Tensor = model.loss(images)  # type: ignore[operator]
    return loss


@torch.no_grad()
def _measure(model: nn.Module, photographs: Photographs) -> dict[str, float]:
    tally = Tally()
    for _, images in chunks(photographs.test):
        tally.add(reconstruct(model, images), images)
    return tally.means()


def _table(trained: Trained, photographs: Photographs) -> Table:
    paper = paper_table("001", "table 8")
    return Table(
        title="Reconstruction of scenes, images in [0, 1]",
        columns=METRICS,
        rows=tuple(
            table_row(
                row,
                found,
                METRICS,
                printed=paper.get(row.label, {}),
                digits=_DIGITS,
                differs=("stand-in data",) if photographs.stand_in else (),
            )
            for row, found in trained.items()
        ),
        source="001 Table 8",
    )


def _claims(table: Table) -> tuple[Claim, ...]:
    found = {column: means(table, column) for column in METRICS}
    if not all({"CAE", "CLmser-n"} <= set(values) for values in found.values()):
        return ()
    better = {
        column: values["CLmser-n"] < values["CAE"]
        if column in ("l1", "MSE")
        else values["CLmser-n"] > values["CAE"]
        for column, values in found.items()
    }
    evidence = ", ".join(
        f"{column} CLmser-n {values['CLmser-n']:.{_DIGITS[column]}f} "
        f"({'better' if better[column] else 'not better'}) against CAE {values['CAE']:.{_DIGITS[column]}f}"
        for column, values in found.items()
    )
    return (
        Claim(
            "CLmser-n can still outperform CAE slightly on Places2: sharing weights does not harm "
            "reconstruction",
            "001 Sect. 5.1 and App. B",
            all(better.values()),
            evidence,
        ),
    )


def _figures(request: Request, trained: Trained, photographs: Photographs) -> tuple[Figure, ...]:
    first = {row.label: jobs[0] for row, jobs in trained.items()}
    values = 3 * photographs.side**2
    name = "figures/loss.svg"
    curves = {label: mse_of_loss(job.curve, values) for label, job in first.items()}
    save_figure(
        request.out / name, loss_curves(name, curves, y_label="training MSE per value, images in [0, 1]")
    )
    figures = [
        Figure(
            name,
            "Loss during training",
            f"Adam, lr 0.001, seed {request.seeds[0]}.",
            f"Training error over steps of {', '.join(curves)}",
        )
    ]
    columns = {label: job.pictures[max(job.pictures)] for label, job in first.items() if job.pictures}
    if columns:
        columns["original"] = photographs.shown(_SHOWN)
        name = "figures/reconstructions.svg"
        save_figure(request.out / name, picture_grid(name, columns, data_range=(0.0, 1.0)))
        figures.append(
            Figure(
                name,
                "Test images and their reconstructions",
                f"Seed {request.seeds[0]}.",
                f"Columns: {', '.join(columns)}",
            )
        )
    return tuple(figures)
