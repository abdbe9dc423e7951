"""000 Fig. 7: faces with the eyes blocked, completed by convolutional networks that know whole faces.

A network is trained to reconstruct whole faces. Shown a face whose eyes are blocked, what it gives in the
blocked region is what it recalls. 000 shows the pictures of Lmser(un-n) and no number; here the error inside
and outside the region is measured for it and for the other three combinations of the two dualities, beside
what needs no network: the blocked picture itself, the mean training face put into the region, and the region
of that training face which is nearest in the observed pixels.

000 does not say what a blocked pixel holds nor how long it trains: here it is black, and training takes
2000 steps. A table at the printed learning rate, 0.01, stands beside one at 0.001. A third one is of networks
that were trained with the eyes blocked and the whole face as the target, which is not what the paper does:
it says what the same layers can recall when they are asked to.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmser import metrics
from lmser.data.masks import coverage_of, eyes_mask
from lmser.data.photo_files import find_photos
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, row_times, table_row, train_rows
from lmser.experiments.claims import means, pairwise_lower
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.photographs import Photographs, chunks, load_photographs, on_unit_range
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import reflection_loss

__all__ = ["METRICS", "block", "run", "split_error"]

METRICS = ("MSE inside", "PSNR inside", "MSE outside", "MSE whole face")

_TITLES = {
    "as-printed": "As printed: trained on whole faces, lr 0.01",
    "calibrated": "Trained on whole faces, lr 0.001",
    "blocked": "Trained with the eyes blocked, lr 0.001",
}
_DIGITS = {"PSNR inside": 2}
_SHOWN = 6
_REMEMBERED = 10_000  # training faces for the mean and the nearest one


@dataclass(frozen=True)
class _Faces:
    """Photographs of one size with the mask of the eyes, bool ``(1, 1, side, side)``, True where blocked."""

    photographs: Photographs
    mask: Tensor

    @functools.cached_property
    def remembered(self) -> Tensor:
        """The first training faces, bytes ``(N, 3, side, side)``."""
        count = min(_REMEMBERED, len(self.photographs.train))
        return torch.stack([self.photographs.train[index] for index in range(count)])


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows("association", request.scale, request.training) if rows is None else rows
    # One set of faces for all rows: a row cannot be compared with one that has seen others.
    if any(row.data != rows[0].data for row in rows):
        raise ValueError("rows: expected the same [data] in every row")
    faces = _load(request, rows[0])
    trained = train_rows(
        request,
        rows,
        functools.partial(_job, faces=faces, device=request.device),
        experiment="association",
        data=faces.photographs.facts("faces"),
    )
    present = [key for key in _TITLES if any(row.table == key for row in rows)]
    references = _references(faces)
    tables = {key: _table(key, trained, references, faces) for key in present}
    results = Results(
        experiment="association",
        title="Association: faces with the eyes blocked",
        summary=(
            f"Convolutional networks complete {len(faces.photographs.test)} test faces of "
            f"{faces.photographs.side}x{faces.photographs.side} pixels in [0, 1], of which "
            f"{float(coverage_of(faces.mask)):.1%} are blocked."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tuple(tables.values()),
        figures=tuple(_figure(request, key, trained, faces) for key in present),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={**faces.photographs.facts("faces"), "configuration files sha256": checksum(rows)},
        times=row_times(trained),
        claims=_claims(tables),
    )
    results.write(request.out)
    return results


def _load(request: Request, row: RowConfig) -> _Faces:
    photographs = load_photographs(request.data, row.data)
    key = find_photos(request.data, row.data["name"], test=row.data.get("test")).train.key
    return _Faces(photographs, eyes_mask(photographs.side, key))


def _job(row: RowConfig, faces: _Faces, device: str) -> Job:
    shown = block(faces.photographs.shown(_SHOWN), faces.mask)
    mask = faces.mask.to(device) if row.objective["input"] == "blocked" else None
    return Job(
        data=faces.photographs.train,
        loss=functools.partial(_loss, mask=mask),
        evaluate=functools.partial(_measure, faces=faces),
        metrics=METRICS,
        pictures=functools.partial(_complete, images=shown),
    )


def block(images: Tensor, mask: Tensor) -> Tensor:
    """`images` ``(N, C, H, W)`` with 0 where `mask`, bool ``(1, 1, H, W)``, is True."""
    return images.masked_fill(mask.to(images.device), 0.0)


def _loss(model: nn.Module, pixels: Tensor, mask: Tensor | None) -> Tensor:
    """001 Eq. (1) towards the whole face, of the whole face or of the blocked one."""
    images = on_unit_range(pixels)
    return reflection_loss(model(images if mask is None else block(images, mask)), images)


def _complete(model: nn.Module, images: Tensor) -> Tensor:
    reconstruction: Tensor = model(images.to(next(model.parameters()).device)).reconstruction
    return reconstruction.cpu().contiguous()


def split_error(found: Tensor, wanted: Tensor, mask: Tensor) -> tuple[float, float]:
    """Mean squared error per value inside `mask` and outside of it; images ``(N, C, H, W)``, the mask bool
    ``(1, 1, H, W)`` with both kinds of pixels. Nothing is clipped: an overshoot is an error like any other."""
    squares = (found.double() - wanted.double()).square().mean((0, 1))
    return float(squares[mask[0, 0]].mean()), float(squares[~mask[0, 0]].mean())


def _measure(model: nn.Module, faces: _Faces) -> dict[str, float]:
    inside = outside = whole = 0.0
    for _, images in chunks(faces.photographs.test):
        errors = split_error(_complete(model, block(images, faces.mask)), images, faces.mask)
        inside += len(images) * errors[0]
        outside += len(images) * errors[1]
        whole += len(images) * metrics.mse(_complete(model, images), images)
    count = len(faces.photographs.test)
    return {
        "MSE inside": inside / count,
        "PSNR inside": metrics.psnr_of_mse(inside / count, 1.0),
        "MSE outside": outside / count,
        "MSE whole face": whole / count,
    }


def _references(faces: _Faces) -> tuple[Row, ...]:
    """What fills the region without a network; outside of it the picture is taken as it is."""
    mean = on_unit_range(faces.remembered).mean(0, keepdim=True)
    totals = dict.fromkeys(("blocked face", "mean training face", "nearest training face"), 0.0)
    for _, images in chunks(faces.photographs.test):
        fillings = (torch.zeros_like(images), mean.expand_as(images), nearest_faces(images, faces))
        for name, filling in zip(totals, fillings, strict=True):
            totals[name] += len(images) * split_error(filling, images, faces.mask)[0]
    rows = []
    for name, total in totals.items():
        error = total / len(faces.photographs.test)
        cells = (Cell((error,)), Cell((metrics.psnr_of_mse(error, 1.0),), digits=2), Cell((0.0,)), Cell(()))
        rows.append(Row(name, cells, group="without a network"))
    return tuple(rows)


def nearest_faces(images: Tensor, faces: _Faces) -> Tensor:
    """For each of `images` the training face nearest to it (squared error) in the pixels not blocked."""
    observed = block(images, faces.mask).flatten(1)
    best = torch.full((len(images),), float("inf"))
    found = torch.zeros_like(images)
    for part in faces.remembered.split(256):
        known = on_unit_range(part)
        distance, index = torch.cdist(observed, block(known, faces.mask).flatten(1)).min(1)
        nearer = distance < best
        best[nearer], found[nearer] = distance[nearer], known[index[nearer]]
    return found


def _table(key: str, trained: Trained, references: tuple[Row, ...], faces: _Faces) -> Table:
    differs = ["stand-in data"] if faces.photographs.stand_in else []
    rows = [
        table_row(row, found, METRICS, digits=_DIGITS, differs=differs)
        for row, found in trained.items()
        if row.table == key
    ]
    return Table(
        _TITLES[key],
        METRICS,
        (*rows, *references),
        notes=(
            "Inside and outside: the blocked region and the rest, of what is given for a blocked face. "
            "PSNR is that of the mean squared error. Whole face: reconstruction of a face that is not blocked.",
        ),
    )


def _claims(tables: Mapping[str, Table]) -> tuple[Claim, ...]:
    found = []
    for key in ("as-printed", "calibrated"):
        if key not in tables:
            continue
        inside = {**means(tables[key], "MSE inside"), **means(tables[key], "MSE inside", "without a network")}
        where, source = f"{_TITLES[key]}: MSE inside the blocked region: ", "000, Association"
        if {"Lmser(un-n)", "Lmser(un)"} <= set(inside):
            found.append(
                pairwise_lower(
                    "Shortcuts between paired neurons are not beneficial in associative memory",
                    source,
                    where,
                    {"": inside},
                    [("Lmser(un-n)", "Lmser(un)")],
                )
            )
        if "Lmser(un-n)" in inside:
            found.append(
                pairwise_lower(
                    "Lmser(un-n) recovers the unobserved part: better than the mean training face put there",
                    source,
                    where,
                    {"": inside},
                    [("Lmser(un-n)", "mean training face")],
                )
            )
    return tuple(found)


def _figure(request: Request, key: str, trained: Trained, faces: _Faces) -> Figure:
    images = faces.photographs.shown(_SHOWN)
    columns = {"eyes blocked": block(images, faces.mask)}
    for row, found in trained.items():
        if row.table == key and found[0].pictures:
            columns[row.label] = found[0].pictures[max(found[0].pictures)]
    columns["face"] = images
    name = f"figures/faces-{key}.svg"
    save_figure(request.out / name, picture_grid(name, columns, data_range=(0.0, 1.0)))
    return Figure(
        name,
        f"Faces with the eyes blocked and what they bring to mind. {_TITLES[key]}",
        f"As 000 Fig. 7: test faces, seed {request.seeds[0]}.",
        f"Columns: {', '.join(columns)}",
    )
