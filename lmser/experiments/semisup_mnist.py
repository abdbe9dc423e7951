"""003 Table 2: digits learned from 50 labels and all images, by networks that are inverted through their transposes.

Loss (10) with the (alpha, beta) that Table 2 prints for each network. 50 training images, 5 of each class, keep their
labels; which, the seed decides. Every batch holds all 50 and as many of all images. R is the mean square per pixel,
which 003's text says is used; each term of the loss is the mean over the samples that it applies to. 003 gives the
learning rates (Adam, 0.01 for SmallCNN, 0.01/3 for the others) and neither batches nor lengths: these, the fall of the
rate, and that beta starts at 0.9 and comes to what is printed along the first half of the steps ("favoring
reconstruction at the beginning", below Eq. 13), were chosen on the last 10,000 training images, as the search in the
tables of "grid" is, whose networks never see those. `--rows grid/draw-` is what decided the last, and that SmallCNN
learns for 10,000 steps; which draws end with two classes in one is a matter of rounding too, and differs from run to
run of other kernels. With one draw of the labels, 20,000 steps and no such start the three SmallCNN had come to 92.8,
86.8 and 86.8 % of the test images. What limits the accuracy is measured on the networks themselves
(`lmser.experiments.few_label_errors`), and by rows of the search whose loss has a term that 003 does not
(`lmser.experiments.balanced_loss`). The sizes of the networks are those of `lmser.baselines.topologies`, which says
where from.

Beside each network stand the same one trained on the same 50 labels by the cross-entropy alone, and on 1000 labels
(100 of each class), 003's supervised column.

What decides the claims, set before any of these rows was run, on the mean over the seeds:
- With 50 labels a network that also learns from unlabelled images is better than the same one without them, by five
  points at least.
- It is better than the same network with 1000 labels, as 003 has it ("20 times less labeled data").
- It reaches 003's accuracy: to half a point.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmser.data import Split, few_labels, load_mnist
from lmser.experiments import Request
from lmser.experiments.balanced_loss import BALANCE, balanced_loss
from lmser.experiments.campaign import Job, Trained, load_trained, row_times, train_rows
from lmser.experiments.class_errors import ClassErrors, class_errors
from lmser.experiments.few_label_errors import DrawErrors, errors_table
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.inversion_objective import build_semi_supervised
from lmser.experiments.labelled_images import UNIT_RANGE, LabelledImages
from lmser.experiments.paper import paper_table
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, chosen_rows, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.inversion import SemiSupervised, inverted, reconstruction_error
from lmser.training import TwoStreamSampler

__all__ = ["run"]

NAME = "semisup-mnist"
ACCURACY, ERROR = "accuracy %", "R per pixel"
SEMI, FEW, MANY, GRID = "semi", "supervised-50", "supervised-1000", "grid"
COLUMNS = ("50 labels", ERROR, "50 labels, supervised alone", "1000 labels, supervised alone")
HELD_OUT = 10_000
_MARGIN, _NEAR = 5.0, 0.5
_CHUNK = 500


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    if rows is None:
        rows = chosen_rows(load_rows(NAME, request.scale, request.training), request.rows)
    sets = Split(*(load_mnist(request.data, False, part) for part in (True, False)))
    images = LabelledImages.of(*sets, request.device)
    sums = {part: found.sha256() for part, found in zip(("training", "test"), sets, strict=True)}
    trained = train_rows(request, rows, functools.partial(_job, images), experiment=NAME, data=sums)
    differs = () if all(part.verified for part in sets) else ("not the original files",)
    tables = [_table(trained, differs)] if any(row.table != GRID for row in rows) else []
    tables += _searches(trained, differs)
    if found := _errors(request, trained, images):
        tables.append(errors_table(found))
    results = Results(
        experiment=NAME,
        title="Digits from 50 labels, by network inversion",
        summary=(
            f"Accuracy on {len(images.test):,} test images in percent; R is the mean square of what the network sent "
            "back through its transpose gives, less the image, on [0, 1]."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tuple(tables),
        figures=_figures(request, trained, images),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": sets.train.name,
            **{f"{part} data sha256": value for part, value in sums.items()},
            "configuration files sha256": checksum(rows),
        },
        claims=tuple(claim for table in tables if table.columns == COLUMNS for claim in _claims(table)),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _job(images: LabelledImages, row: RowConfig) -> Job:
    objective, data = row.objective, row.data
    held_out = int(data.get("held_out", 0))
    train, labels = images.train, images.train_labels
    test, wanted = images.test, images.test_labels
    if held_out:
        test, wanted = train[-held_out:], labels[-held_out:]
        train, labels = train[:-held_out], labels[:-held_out]

    def by_seed(seed: int) -> Mapping[str, Any]:
        left = few_labels(labels, data["per_class"], data.get("labels", seed))
        size = row.training["batch_size"]
        if objective["alpha"] == 1:  # nothing of the loss sees what has no label
            known = left >= 0
            return {"data": (train[known], left[known])}
        return {"data": (train, left), "sampler": TwoStreamSampler(left, size, data["labelled"], seed)}

    return Job(
        data=(train, labels),
        loss=functools.partial(balanced_loss, balance=float(objective.get(BALANCE, 0.0))),
        evaluate=functools.partial(measure, images=test, labels=wanted),
        metrics=(ACCURACY, ERROR),
        pictures=functools.partial(reconstructions, images=images.shown),
        build=functools.partial(build_semi_supervised, row, (BALANCE,)),
        by_seed=by_seed,
    )


@torch.no_grad()
def measure(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy in percent and mean R per pixel of a `SemiSupervised` network."""
    assert isinstance(model, SemiSupervised)
    device = next(model.parameters()).device
    right = error = 0.0
    for part, wanted in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
        found = inverted(model.model, part.to(device))
        right += float((found.output.argmax(1) == wanted.to(device)).sum())
        error += float(reconstruction_error(found.reconstructions[0], part.to(device)).sum())
    return {ACCURACY: 100 * right / len(images), ERROR: error / len(images)}


@torch.no_grad()
def reconstructions(model: nn.Module, images: Tensor) -> Tensor:
    """What the network, inverted, makes of `images`, on the CPU."""
    assert isinstance(model, SemiSupervised)
    return model.reconstruct(images.to(next(model.parameters()).device)).cpu()


def _errors(request: Request, trained: Trained, images: LabelledImages) -> list[DrawErrors]:
    """Those of the networks of Table 2 that learned from all images, but for the diverged ones."""

    def network(row: RowConfig, seed: int) -> nn.Module:
        return load_trained(
            request, row, seed, build=functools.partial(build_semi_supervised, row, (BALANCE,))
        )

    def on_test(trained: nn.Module) -> ClassErrors:
        return class_errors(trained, images.test, images.test_labels)

    done = {
        (row, seed)
        for row, found in trained.items()
        for seed, job in zip(request.seeds, found, strict=True)
        if job.diverged_at is None
    }
    alone = {row.label: row for row in trained if row.table == FEW}
    errors = []
    for row in trained:
        for seed in request.seeds:
            if row.table != SEMI or (row, seed) not in done:
                continue
            few, semi = alone.get(row.label), network(row, seed)
            left = few_labels(images.train_labels, row.data["per_class"], seed)
            known = left >= 0
            errors.append(
                DrawErrors(
                    row.label,
                    seed,
                    test=on_test(semi),
                    labelled=class_errors(semi, images.train[known], left[known]),
                    alone=on_test(network(few, seed)) if few is not None and (few, seed) in done else None,
                )
            )
    return errors


def _table(trained: Trained, differs: tuple[str, ...]) -> Table:
    printed = paper_table("003", "table 2")
    by_label: dict[str, dict[str, RowConfig]] = {}
    for row in trained:
        if row.table != GRID:
            by_label.setdefault(row.label, {})[row.table] = row
    lines = []
    for label, rows in by_label.items():
        paper = printed.get(label, {})

        def cell(table: str, metric: str, value: float | None, digits: int, rows: Any = rows) -> Cell:
            if table not in rows:
                return Cell((), value, digits)
            return Cell(tuple(job.final(metric) for job in trained[rows[table]]), value, digits)

        said = dict.fromkeys(filter(None, (*(row.differs for row in rows.values()), *differs)))
        weights = rows[SEMI].objective if SEMI in rows else None
        shown = "" if weights is None else f" ({weights['alpha']:g}, {weights['beta']:g})"
        lines.append(
            Row(
                label + shown,
                (
                    cell(SEMI, ACCURACY, paper.get("50"), 2),
                    cell(SEMI, ERROR, None, 4),
                    cell(FEW, ACCURACY, None, 2),
                    cell(MANY, ACCURACY, paper.get("Sup1000"), 2),
                ),
                differs="; ".join(said),
            )
        )
    return Table(
        "Table 2: accuracy on test images, %", COLUMNS, tuple(lines), "003 Table 2", "network (α, β)"
    )


def _searches(trained: Trained, differs: tuple[str, ...]) -> list[Table]:
    """One table for each group of the rows that were searched."""
    groups: dict[str, list[Row]] = {}
    for row, found in trained.items():
        if row.table == GRID:
            cells = tuple(
                Cell(tuple(job.final(metric) for job in found), digits=digits)
                for metric, digits in ((ACCURACY, 2), (ERROR, 4))
            )
            said = ", ".join(filter(None, (row.differs, *differs)))
            groups.setdefault(row.group, []).append(Row(row.label, cells, differs=said))
    return [
        Table(
            f"The search, SmallCNNmean, the last {HELD_OUT:,} training images held out: {group or '(α, β)'}",
            (ACCURACY, ERROR),
            tuple(lines),
            "003 Sect. 3.1",
            "what was changed" if group else "(α, β)",
        )
        for group, lines in groups.items()
    ]


def _claims(table: Table) -> list[Claim]:
    claims = []
    for row in table.rows:
        semi, _, few, many = row.cells
        if semi.mean is None:
            continue
        if few.mean is not None:
            claims.append(
                Claim(
                    f"unlabelled images help: {row.label}",
                    "003 Sect. 3.1",
                    semi.mean >= few.mean + _MARGIN,
                    f"{semi.mean:.2f} % with them, {few.mean:.2f} % without (at least {_MARGIN:g} points asked for)",
                )
            )
        if many.mean is not None:
            claims.append(
                Claim(
                    f"50 labels and unlabelled images are worth more than 1000 labels: {row.label}",
                    "003 Sect. 3.1",
                    semi.mean > many.mean,
                    f"{semi.mean:.2f} % with 50 labels, {many.mean:.2f} % with 1000",
                )
            )
        if semi.paper is not None:
            claims.append(
                Claim(
                    f"the accuracy of Table 2 is reached: {row.label}",
                    "003 Table 2",
                    semi.mean >= semi.paper - _NEAR,
                    f"{semi.mean:.2f} %, printed {semi.paper:.2f} % (to {_NEAR:g} points asked for)",
                )
            )
    return claims


def _figures(request: Request, trained: Trained, images: LabelledImages) -> tuple[Figure, ...]:
    lines = {"image": images.shown}
    for row, found in trained.items():
        if row.table == SEMI and found[0].pictures:
            lines[row.label] = found[0].pictures[max(found[0].pictures)]
    if len(lines) == 1:
        return ()
    file = "figures/reconstructions.svg"
    save_figure(request.out / file, picture_grid(file, lines, data_range=UNIT_RANGE, labels="rows"))
    return (
        Figure(
            file,
            "Test images sent back through the networks' transposes",
            f"As 003 Figs. 1 and 3: the first test image of each class, seed {request.seeds[0]}.",
            f"Rows: {', '.join(lines)}",
        ),
    )
