"""003 Figs. 1 and 3: test images sent through networks and back through their own transpose.

The networks learn with 50 labels, by the loss of Eq. (10) at the weights (α, β) of the figures, each with mean pools,
max pools and inhibitor connections. Fig. 1 names none: it is taken at those of Table 2. A batch has all 50 labelled
images, which the seed draws, and as many of all. R is the sum over pixels as Eq. (8) prints it in one table, and their
mean, as the text has it, in the other: the weights (α, β) mean a factor of 784 between the two. The schedule was chosen
on training images.

003 shows pictures and no errors. Here they are measured on the test images, on [0, 1], beside the correlation of an
image with its reconstruction, as the mean over images, which a wrong scale does not lower: pictures that are drawn each
on its own scale look as it says. What networks give back before they have learned anything is shown as well.

What decides the claims, set before the committed runs, on the mean over the seeds:
- "Our network is able to correctly reconstruct the test sample" (App. A.3): the error is at most half of that of the
  mean training image, for every network of a table.
- The Resnets' "direct linear connection between the input and all of the inner representations" loses "much less
  information" (Sect. 2.1): each Resnet has a lower error than each CNN of the same table with the same pooling.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmser.data import Split, few_labels, load_mnist
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, row_times, table_row, train_rows
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.generated import predicted
from lmser.experiments.inversion_objective import build_semi_supervised
from lmser.experiments.labelled_images import LabelledImages
from lmser.experiments.networks import build_network
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, chosen_rows, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.inversion import SemiSupervised, invert
from lmser.training import TwoStreamSampler

__all__ = ["run"]

NAME = "inversion-figures"

ERROR, ALIKE, ACCURACY = "MSE per pixel", "correlation", "accuracy"
COLUMNS = (ERROR, ALIKE, ACCURACY)
_DIGITS = {ERROR: 4, ALIKE: 3, ACCURACY: 2}
_TITLES = {
    "squared": "R as printed, the sum over pixels",
    "mean-squared": "R as the text has it, the mean over pixels",
}
_UNTRAINED = "Networks that have learned nothing"
_HALF = 0.5
_SHOWN, _CHUNK = 8, 250


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    if rows is None:
        rows = chosen_rows(load_rows(NAME, request.scale, request.training), request.rows)
    sets = Split(*(load_mnist(request.data, False, part) for part in (True, False)))
    pixels = LabelledImages.of(*sets, request.device)
    sums = {part: images.sha256() for part, images in zip(("training", "test"), sets, strict=True)}
    trained = train_rows(request, rows, functools.partial(_job, pixels), experiment=NAME, data=sums)
    mean_error = float((pixels.test - pixels.train.mean(0).cpu()).square().mean())
    learned = tuple(
        Table(
            title,
            COLUMNS,
            tuple(
                table_row(row, found, COLUMNS, digits=_DIGITS)
                for row, found in trained.items()
                if row.table == key
            ),
            notes=(f"The mean training image has an error of {mean_error:.4f}.",),
        )
        for key, title in _TITLES.items()
        if any(row.table == key for row in rows)
    )
    results = Results(
        experiment=NAME,
        title="Digits sent back through networks",
        summary=(
            f"(df/dx)ᵀ f(x) of {rows[0].evaluation['images']:,} test images on [0, 1], of networks trained with 50 labels "
            "and the loss of 003's Eq. (10). 003 shows pictures and gives no errors. Accuracy in percent, of the same "
            "images."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=(*learned, _untrained(rows, request.seeds, pixels)),
        figures=_figures(request, trained, pixels),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": sets.train.name,
            **{f"{part} data sha256": value for part, value in sums.items()},
            "configuration files sha256": checksum(rows),
        },
        claims=tuple(claim for table in learned for claim in _claims(table, mean_error)),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _job(pixels: LabelledImages, row: RowConfig) -> Job:
    def by_seed(seed: int) -> Mapping[str, Any]:
        left = few_labels(pixels.train_labels, row.data["per_class"], seed)
        sampler = TwoStreamSampler(left, row.training["batch_size"], row.data["labelled"], seed)
        return {"data": (pixels.train, left), "sampler": sampler}

    return Job(
        data=(pixels.train, pixels.train_labels),
        loss=lambda model, x, y: model.loss(x, y),
        evaluate=functools.partial(_measure, pixels=pixels, count=row.evaluation["images"]),
        metrics=COLUMNS,
        pictures=lambda model: reconstructions(model, pixels.test[:_SHOWN]),
        build=functools.partial(build_semi_supervised, row),
        by_seed=by_seed,
    )


@torch.no_grad()
def reconstructions(model: nn.Module, images: Tensor) -> Tensor:
    """`(df/dx)ᵀ f(x)` of images, on the CPU."""
    network = model.model if isinstance(model, SemiSupervised) else model
    device = next(network.parameters()).device
    return torch.cat([invert(network, part.to(device)).cpu() for part in images.split(_CHUNK)])


def _measure(model: nn.Module, pixels: LabelledImages, count: int) -> dict[str, float]:
    images, labels = pixels.test[:count], pixels.test_labels[:count]
    right = (predicted(model, images).argmax(1) == labels).float().mean()
    return {
        **nearness(reconstructions(model, images), images),
        ACCURACY: 100 * float(right),
    }


def nearness(found: Tensor, images: Tensor) -> dict[str, float]:
    """Mean squared error per pixel, and the mean over images of the correlation of their pixels; 0 for an image
    without contrast."""
    first, second = (part.flatten(1).double() for part in (found, images))
    error = float((first - second).square().mean())
    first, second = (part - part.mean(1, keepdim=True) for part in (first, second))
    scale = (first.square().sum(1) * second.square().sum(1)).sqrt()
    alike = torch.where(scale > 0, (first * second).sum(1) / scale, torch.zeros_like(scale))
    return {ERROR: error, ALIKE: float(alike.mean())}


def _seeded(row: RowConfig, seed: int) -> nn.Module:
    """The network of a row as it starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(row.model).eval()


def _untrained(rows: Sequence[RowConfig], seeds: Sequence[int], pixels: LabelledImages) -> Table:
    lines = []
    for row in _one_of_each(rows):
        images = pixels.test[: row.evaluation["images"]]
        found = [nearness(reconstructions(_seeded(row, seed), images), images) for seed in seeds]
        cells = tuple(
            Cell(tuple(values[name] for values in found), digits=_DIGITS[name]) for name in (ERROR, ALIKE)
        )
        lines.append(Row(row.label, cells, group=_network(row)))
    return Table(_UNTRAINED, (ERROR, ALIKE), tuple(lines))


def _network(row: RowConfig) -> str:
    """Group "Resnet3-16 (0.6, 0.5)" without the weights of the loss."""
    return row.group.split(" (")[0]


def _one_of_each(rows: Sequence[RowConfig]) -> list[RowConfig]:
    """Of rows with one network, which starts alike in all of them, the first."""
    found: dict[tuple[str, str], RowConfig] = {}
    for row in rows:
        found.setdefault((_network(row), row.label), row)
    return list(found.values())


def _claims(table: Table, mean_error: float) -> list[Claim]:
    errors = {
        (row.group, row.label): table.mean(COLUMNS.index(ERROR), row.label, row.group) for row in table.rows
    }
    named = {key: f"{key[0]}, {key[1]}: {value:.4f}" for key, value in errors.items()}
    pairs = [
        (deep, flat)
        for deep in errors
        for flat in errors
        if deep[1] == flat[1] and deep[0].startswith("Resnet") and not flat[0].startswith("Resnet")
    ]
    claims = [
        Claim(
            "our network is able to correctly reconstruct the test sample",
            "003 App. A.3",
            all(value <= _HALF * mean_error for value in errors.values()),
            f"{table.title}: MSE {'; '.join(named.values())}; at most {_HALF * mean_error:.4f} asked for, half of that of "
            "the mean training image",
        )
    ]
    if pairs:
        claims.append(
            Claim(
                "the direct linear connection of Resnets loses much less information",
                "003 Sect. 2.1",
                all(errors[deep] < errors[flat] for deep, flat in pairs),
                f"{table.title}: MSE "
                + "; ".join(f"{named[deep]} against {flat[0]} {errors[flat]:.4f}" for deep, flat in pairs),
            )
        )
    return claims


def _figures(request: Request, trained: Trained, pixels: LabelledImages) -> tuple[Figure, ...]:
    figures = []
    shown = pixels.test[:_SHOWN]
    for key, title in _TITLES.items():
        for group in dict.fromkeys(row.group for row in trained if row.table == key):
            found = {
                row.label: jobs[0].pictures[max(jobs[0].pictures)]
                for row, jobs in trained.items()
                if (row.table, row.group) == (key, group) and jobs[0].pictures
            }
            if found:
                figures.append(_figure(request, f"{group}, {title}", f"{key}-{group}", shown, found))
    for name in dict.fromkeys(_network(row) for row in trained):
        found = {
            row.label: reconstructions(_seeded(row, request.seeds[0]), shown)
            for row in _one_of_each(list(trained))
            if _network(row) == name
        }
        figures.append(_figure(request, f"{name}, before it has learned", f"untrained-{name}", shown, found))
    return tuple(figures)


def _figure(request: Request, title: str, name: str, images: Tensor, found: Mapping[str, Tensor]) -> Figure:
    """As Figs. 1 and 3: a line per image, a column per network, first on [0, 1], then each picture on its own scale."""
    columns = {"original": images, **found}
    columns |= {f"{label}, own scale": _own_scale(pictures) for label, pictures in found.items()}
    slug = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name.lower())
    while "--" in slug:
        slug = slug.replace("--", "-")
    file = f"figures/{slug.strip('-')}.svg"
    save_figure(request.out / file, picture_grid(file, columns, data_range=(0.0, 1.0)))
    return Figure(
        file,
        f"Reconstructions: {title}",
        "As 003 Figs. 1 and 3: the first test images and what networks with mean pools, max pools and inhibitor "
        f"connections give back, on [0, 1] and each on its own scale. Seed {request.seeds[0]}.",
        f"Columns: {', '.join(columns)}",
    )


def _own_scale(pictures: Tensor) -> Tensor:
    low, high = pictures.amin((1, 2, 3), keepdim=True), pictures.amax((1, 2, 3), keepdim=True)
    return (pictures - low) / (high - low).clamp(min=1e-12)
