"""001 Sect. 6, Table 7: classification and reconstruction at once by CLmser, beside a CNN of the same layers.

"We implement the DSP by feeding both the image and its label into the network and adding a classification
error to the reconstruction error." Read as 000 Eq. (4) has it (`lmser.models.reflection_loss`):

    J = 1/N sum_n (1/2 ||x_n - reconstruction_n||² + cross_entropy(logits_n, y_n))

The image is clamped at the bottom; the label is what the class units at the top are held against. It is not put
in at the top: a network that is told the class shows nothing by giving it back. What the class units send down
is their own logits, in training as in testing.

001 says nothing more: layers, schedule and the CNN are chosen here. MNIST and Fashion-MNIST have the layers of
000's convolutional network (28 to 4 pixels a side) and two more of stride 2 above them, so that a class unit is at
one position and sees the whole image: averaged over 4 x 4 positions, none of which does, class units read 96 % of
MNIST. CIFAR-10 has twice the channels. Batch 100, 10 epochs (30 on CIFAR-10, whose stand-in has a fifth of the
images). The CNN is the first bottom-up pass alone, trained by the cross-entropy.

The reconstruction error is the sum over the pixels, or, in the rows "averaged error", their mean
(`lmser.experiments.supervised_loss`).

What decides the claim, set before any result was seen: the two tasks are done at once where CLmser's accuracy is
at most 0.02 below the CNN's (001's largest gap, on CIFAR-10, is 0.0199), and its MSE is below a tenth of that of
the mean training image.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmser import metrics
from lmser.data import ImageSet, load_cifar10, load_mnist
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, row_times, table_row, train_rows
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.labelled_images import UNIT_RANGE, LabelledImages
from lmser.experiments.paper import paper_table
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.supervised_loss import loss_of
from lmser.experiments.tables import Cell, Table

__all__ = ["run"]

NAME = "classification"

_COLUMNS = ("accuracy", "MSE")
_GAP = 0.02  # of the accuracy, and
_SHARE = 0.1  # of the mean image's error: what "at once" allows
_CIFAR10_IMAGES = 50_000
_CHUNK = 500


@dataclass(frozen=True)
class _Pictures(LabelledImages):
    """One data set as the networks read it, and the sets it was made of."""

    sets: tuple[ImageSet, ...] = ()

    @classmethod
    def load(cls, name: str, request: Request) -> _Pictures:
        train, test = (_load(name, request, part) for part in (True, False))
        return dataclasses.replace(cls.of(train, test, request.device), sets=(train, test))

    @property
    def mean_image_error(self) -> float:
        """MSE of the mean training image as the reconstruction of every test image."""
        mean = self.train.mean(0, keepdim=True).cpu()
        return metrics.mse(mean.expand_as(self.test), self.test)

    @property
    def stand_in(self) -> str:
        """What of the data is not the paper's."""
        train, test = self.sets
        if train.name.startswith("CIFAR-10") and len(train) != _CIFAR10_IMAGES:
            return f"{len(train):,} training and {len(test):,} test images"
        return "" if train.verified and test.verified else "not the original files"


def _load(name: str, request: Request, train: bool) -> ImageSet:
    if name == "cifar10":
        return load_cifar10(request.data, train)
    if name not in ("mnist", "fashion-mnist"):
        raise ValueError(f"data.name: expected 'mnist', 'fashion-mnist' or 'cifar10', got {name!r}")
    return load_mnist(request.data, name == "fashion-mnist", train)


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    names = dict.fromkeys(row.data["name"] for row in rows)
    pictures = {name: _Pictures.load(name, request) for name in names}
    sums = {
        f"{name} {part}": images.sha256()
        for name, loaded in pictures.items()
        for part, images in zip(("train", "test"), loaded.sets, strict=True)
    }
    trained = train_rows(
        request,
        rows,
        lambda row: _job(row, pictures[row.data["name"]]),
        experiment=NAME,
        data=sums,
    )
    table = _table(trained, pictures)
    results = Results(
        experiment=NAME,
        title="Classification and reconstruction at once",
        summary=(
            "CLmser with class units, trained by the reconstruction error plus the cross-entropy, beside a CNN of "
            "the same layers trained by the cross-entropy: accuracy and mean squared error per pixel on the test "
            "images, which are in [0, 1]."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=(table,),
        figures=tuple(_figure(request, name, trained, loaded) for name, loaded in pictures.items()),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": "; ".join(loaded.sets[0].name for loaded in pictures.values()),
            **{f"{name} sha256": value for name, value in sums.items()},
            "configuration files sha256": checksum(rows),
        },
        notes=("The label is the target of the class units; it is not shown to the network (000 Eq. 4).",),
        claims=tuple(_claims(table, trained, pictures)),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _job(row: RowConfig, pictures: _Pictures) -> Job:
    measured = tuple(_measured(row))
    return Job(
        data=(pictures.train, pictures.train_labels),
        loss=loss_of(row),
        evaluate=functools.partial(_measure, pictures=pictures, measured=measured),
        metrics=measured,
        pictures=functools.partial(_reconstruct, images=pictures.shown),
    )


def _reconstructs(row: RowConfig) -> bool:
    return row.model["kind"] != "CNN"


def _measured(row: RowConfig) -> list[str]:
    return ["accuracy", *(["MSE"] if _reconstructs(row) else [])]


@torch.no_grad()
def _measure(model: nn.Module, pictures: _Pictures, measured: tuple[str, ...]) -> dict[str, float]:
    device = next(model.parameters()).device
    right, squared = 0, 0.0
    for images, labels in zip(pictures.test.split(_CHUNK), pictures.test_labels.split(_CHUNK), strict=True):
        output = model(images.to(device))
        right += int((getattr(output, "logits", output).argmax(1).cpu() == labels).sum())
        if "MSE" in measured:
            squared += metrics.mse(output.reconstruction.cpu(), images) * len(images)
    found = {"accuracy": right / len(pictures.test), "MSE": squared / len(pictures.test)}
    return {name: found[name] for name in measured}


@torch.no_grad()
def _reconstruct(model: nn.Module, images: Tensor) -> Tensor:
    """Reconstructions on the CPU; nothing for a network that has none."""
    output = model(images.to(next(model.parameters()).device))
    reconstruction: Tensor = getattr(output, "reconstruction", torch.empty(0))
    return reconstruction.cpu()


def _table(trained: Trained, pictures: dict[str, _Pictures]) -> Table:
    paper = paper_table("001", "table 7")
    lines = []
    for row, found in trained.items():
        whole = table_row(
            row,
            found,
            _measured(row),
            printed=paper.get(row.group, {}).get(row.label.partition(",")[0], {}),
            differs=(pictures[row.data["name"]].stand_in,),
        )
        cells = dict(zip(_measured(row), whole.cells, strict=True))
        lines.append(dataclasses.replace(whole, cells=tuple(cells.get(name, Cell(())) for name in _COLUMNS)))
    return Table(
        title="Accuracy, and MSE per pixel, images in [0, 1]",
        columns=_COLUMNS,
        rows=tuple(lines),
        source="001 Table 7",
        notes=tuple(
            f"{_group(trained, name)}: the mean training image has MSE {loaded.mean_image_error:.4f}."
            for name, loaded in pictures.items()
        ),
    )


def _group(trained: Trained, name: str) -> str:
    """What the table calls a data set."""
    return next(row.group for row in trained if row.data["name"] == name)


def _claims(table: Table, trained: Trained, pictures: dict[str, _Pictures]) -> list[Claim]:
    """001's sentence for each data set, by the module's criterion on the means over the seeds."""
    claims = []
    for name, loaded in pictures.items():
        group = _group(trained, name)
        labels = [row.label for row in trained if row.data["name"] == name]
        both = [row for row in trained if row.data["name"] == name and len(_measured(row)) == 2]
        for row in both if "CNN" in labels else ():
            ours, theirs = (table.mean(0, label, group) for label in (row.label, "CNN"))
            error, most = table.mean(1, row.label, group), _SHARE * loaded.mean_image_error
            claims.append(
                Claim(
                    f"DSP enables CLmser to classify and reconstruct at once: {group}, {row.label}",
                    "001 Sect. 6",
                    ours >= theirs - _GAP and error < most,
                    f"accuracy {ours:.4f}, the CNN's {theirs:.4f} (at most {_GAP} below is asked for); MSE "
                    f"{error:.4f} (below {most:.4f}, {_SHARE:g} of the mean image's, is asked for)",
                )
            )
    return claims


def _figure(request: Request, name: str, trained: Trained, loaded: _Pictures) -> Figure:
    lines = {"test image": loaded.shown}
    for row, jobs in trained.items():
        if row.data["name"] == name and _reconstructs(row) and jobs[0].pictures:
            lines[row.label] = jobs[0].pictures[max(jobs[0].pictures)]
    group, file = _group(trained, name), f"figures/{name}.svg"
    save_figure(request.out / file, picture_grid(file, lines, data_range=UNIT_RANGE, labels="rows"))
    return Figure(
        file,
        f"{group}: test images and their reconstructions",
        f"The first test image of each class, seed {request.seeds[0]}.",
        f"Rows: {', '.join(lines)}",
    )
