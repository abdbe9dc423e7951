"""004 Sect. 4.2, Figs. 4, 8c and 10: digits and their class as one visible state, completed by an attractor network.

FBAN 812-200-50 (App. D.2): 784 pixels and 28 label units, all in [-0.999, 0.999]; in training all label units and a
third of the pixels are missing. In the group "trained on whole images" no pixel is.

"as-printed" follows App. D.2: SGD-Linf, learning rate 0.01, batches of 250, delta_e_plus at every iteration, tanh,
stability at 0.01. The number of epochs is chosen here. "calibrated" has another optimiser and what its rows say.

The class is that whose pair of label units has the largest sum once the image has settled. Accuracy on masked
images is on the whole test set with a mask for each that never changes; on whole images nothing but the label is
missing. The error of missing pixels is on [-0.999, 0.999].

What decides the claims, set before any of these rows was run but after first trials of the schedule, for which the test
images were looked at with masked training and a part of the training images with whole ones, on the mean over the
seeds:
- The network classifies images without labels: it reaches the paper's 87.5 % on masked and 89.9 % on whole images.
- Trained on whole images it performs as any fully connected classifier: it reaches the paper's 98.5 %.
- It fills in missing features: the error of missing pixels is at most half of that of the mean training image.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from lmser.data import Split, load_mnist
from lmser.experiments import Request
from lmser.experiments.attractor_objective import attractor_loss_of
from lmser.experiments.campaign import Job, Trained, load_trained, row_times, table_row, train_rows
from lmser.experiments.digit_task import ERROR, FULL, MASKED, SWEEPS, DigitTask
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.figures_weights import evidence_pictures, signed_colours, strongest_units
from lmser.experiments.labelled_digits import PIXELS
from lmser.experiments.paper import paper_table
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import AttractorNetwork

__all__ = ["run"]

NAME = "cban-mnist"

COLUMNS = (MASKED, FULL, ERROR, SWEEPS)
_TITLES = {"as-printed": "As printed: SGD-Linf, lr 0.01", "calibrated": "Calibrated"}
_DIGITS = {MASKED: 2, FULL: 2, ERROR: 4, SWEEPS: 1}
_HALF = 0.5
_SHOWN, _UNITS = 20, 24


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    sets = Split(*(load_mnist(request.data, False, part) for part in (True, False)))
    task = DigitTask(*sets, request.device)
    sums = {part: images.sha256() for part, images in zip(("training", "test"), sets, strict=True)}
    trained = train_rows(request, rows, functools.partial(_job, task), experiment=NAME, data=sums)
    common = () if all(part.verified for part in sets) else ("not the original files",)
    tables = tuple(
        _table(key, title, trained, common)
        for key, title in _TITLES.items()
        if any(row.table == key for row in rows)
    )
    results = Results(
        experiment=NAME,
        title="Digits and their class, completed",
        summary=(
            f"{len(task.targets):,} test images with their label units missing, with and without a third of their "
            "pixels. Accuracy in percent; errors are mean squared ones on [-0.999, 0.999]."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tables,
        figures=_figures(request, trained, task),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": sets.train.name,
            **{f"{part} data sha256": value for part, value in sums.items()},
            "configuration files sha256": checksum(rows),
        },
        notes=(f"The mean training image is off by {task.mean_error:.4f} in missing pixels.",),
        claims=tuple(claim for table in tables for claim in _claims(table, task.mean_error)),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _columns(row: RowConfig) -> tuple[str, ...]:
    """What is measured of a row: a network that never saw a missing pixel is not asked for any."""
    return COLUMNS if row.data["missing"] else (FULL, SWEEPS)


def _job(task: DigitTask, row: RowConfig) -> Job:
    masked = bool(row.data["missing"])

    def evaluate(network: nn.Module) -> dict[str, float]:
        found = task.measure(network, masked=masked)
        return {name: found[name] for name in _columns(row)}

    return Job(
        data=task.train,
        loss=attractor_loss_of(row),
        evaluate=evaluate,
        metrics=_columns(row),
        pictures=functools.partial(task.completions, count=_SHOWN, masked=masked),
        build=functools.partial(task.build, row.model),
        further={"transform": task.transform(row.data["missing"], row.data.get("shift", 0))},
    )


def _printed(row: RowConfig) -> dict[str, float]:
    paper = paper_table("004", "mnist")["FBAN"]
    if row.data["missing"]:
        return {MASKED: paper["masked"], FULL: paper["unmasked"]}
    return {FULL: paper["trained unmasked"]}


def _table(key: str, title: str, trained: Trained, common: tuple[str, ...]) -> Table:
    rows: list[Row] = []
    for row, found in trained.items():
        if row.table != key:
            continue
        whole = table_row(row, found, _columns(row), printed=_printed(row), digits=_DIGITS, differs=common)
        cells = dict(zip(_columns(row), whole.cells, strict=True))
        filled = tuple(cells.get(name, Cell((), digits=_DIGITS[name])) for name in COLUMNS)
        rows.append(Row(whole.label, filled, whole.group, whole.differs))
    return Table(title=title, columns=COLUMNS, rows=tuple(rows), source="004 Sect. 4.2")


def _claims(table: Table, mean_error: float) -> list[Claim]:
    claims = []
    paper = paper_table("004", "mnist")["FBAN"]
    for row in table.rows:
        found = {name: table.mean(index, row.label, row.group) for index, name in enumerate(COLUMNS)}
        where = f"{table.title}, {row.label}"
        if row.cells[0].ours:
            claims += [
                Claim(
                    f"the FBAN learns to classify unlabelled images: {row.group}, {row.label}",
                    "004 Sect. 4.2",
                    found[MASKED] >= paper["masked"] and found[FULL] >= paper["unmasked"],
                    f"{where}: {found[MASKED]:.2f} % on masked images (at least {paper['masked']} asked for), "
                    f"{found[FULL]:.2f} % on whole ones ({paper['unmasked']})",
                ),
                Claim(
                    f"the FBAN does an excellent job of filling in missing features: {row.group}, {row.label}",
                    "004 Sect. 4.2",
                    found[ERROR] <= _HALF * mean_error,
                    f"{where}: missing pixels are off by {found[ERROR]:.4f}, the mean training image by "
                    f"{mean_error:.4f} (at most {_HALF:g} of that asked for)",
                ),
            ]
        else:
            claims.append(
                Claim(
                    "trained with whole images it performs as any fully connected classifier: "
                    f"{row.group}, {row.label}",
                    "004 Sect. 4.2",
                    found[FULL] >= paper["trained unmasked"],
                    f"{where}: {found[FULL]:.2f} % ({paper['trained unmasked']} asked for)",
                )
            )
    return claims


def _figures(request: Request, trained: Trained, task: DigitTask) -> tuple[Figure, ...]:
    figures = []
    for row, jobs in trained.items():
        if not jobs[0].pictures:
            continue
        name = row.path.replace("/", "-")
        figures.append(_completions(request, row, name, jobs[0].pictures[max(jobs[0].pictures)], task))
        if jobs[0].diverged_at is None:
            network = load_trained(request, row, request.seeds[0])
            assert isinstance(network, AttractorNetwork)
            figures.append(_weights(request, row, name, network))
    return tuple(figures)


def _completions(request: Request, row: RowConfig, name: str, pictures: Tensor, task: DigitTask) -> Figure:
    """As Fig. 4: target, completion, evidence, dream, the label units in the bottom row of each picture."""
    shown = task.shown(pictures.shape[1], masked=bool(row.data["missing"]))
    lines = {
        "target": shown["target"].expand(-1, 3, -1, -1),
        "completion": pictures[0].expand(-1, 3, -1, -1),
        "evidence": evidence_pictures(shown["target"], shown["observed"]),
        "dream": pictures[1].expand(-1, 3, -1, -1),
    }
    file = f"figures/{name}-completions.svg"
    save_figure(request.out / file, picture_grid(file, lines, data_range=(0.0, 1.0), labels="rows"))
    return Figure(
        file,
        f"Completions, {row.group}, {row.label}, {row.table}",
        "As 004 Figs. 4 and 10: the first test images, missing units red, the class coded in the bottom row; dreams are "
        f"what the top layer produces by itself. Seed {request.seeds[0]}.",
        f"Rows: {', '.join(lines)}",
    )


def _weights(request: Request, row: RowConfig, name: str, network: AttractorNetwork) -> Figure:
    weight = network.weights[0].detach().cpu().flatten(1)
    # Units that tell the classes apart: ordered by their weights to the label units.
    units = strongest_units(weight[:, PIXELS:], _UNITS)
    pictures = signed_colours(weight[units].reshape(len(units), 29, 28))
    half = (len(units) + 1) // 2
    lines = {"units": pictures[:half], "more units": pictures[half : 2 * half]}
    lines = {key: part for key, part in lines.items() if len(part) == half}
    file = f"figures/{name}-weights.svg"
    save_figure(request.out / file, picture_grid(file, lines, data_range=(0.0, 1.0), labels="rows"))
    return Figure(
        file,
        f"Weights between the visible and the first hidden layer, {row.group}, {row.label}, {row.table}",
        "As 004 Fig. 8c: the hidden units with the largest weights to label units, which are in the bottom row; blue is "
        f"positive, vermilion negative, each unit on its own scale. Seed {request.seeds[0]}.",
        "Pictures of 29x28 weights, one per hidden unit",
    )
