"""000, Recognition: MNIST digits read by Lmser(sup) and by a feed-forward network of the same layers, clean and
attacked.

000 reports the accuracy under FGSM of size 0.3 and concludes that Lmser is more robust. FGSM is one step along
a gradient, and a network can stand it without being robust: where the gradient is zero or misleading ("masked",
Athalye, Carlini, Wagner 2018) the one step does nothing, and a better attack still succeeds. So beside FGSM
stand:

- PGD from a random start, an image counting as recognised only if it stands the ascent of the cross-entropy
  and the ascent of the margin of the best wrong class; where PGD leaves more than FGSM, gradients are masked;
- the FGSM examples made on the other network of the pair, which take nothing from this one's gradient; where
  they do more harm than the network's own, its gradients are masked;
- the share of images at which the gradient is exactly zero in float32;
- sizes beyond 0.3: at 0.5 every image can be made plain grey, so that whatever still seems recognised is a
  failure of the attack.

With one reflection the logits of Lmser(sup) are read at the end of the first bottom-up pass: they, and the
gradient of any attack, depend on the encoder alone. What the reconstruction error changes, it changes by
training.

Readings. 000 does not say how a convolutional network gives its class; here class units are channels of the
top layer, in CNN and CNN-Lmser alike, and above 000's four layers (28 to 4 pixels a side) stand two more of stride
2, so that the top layer has one position, which sees the whole digit. An attack is given the true labels.

000 does not say either how the reconstruction error is scaled beside the cross-entropy. The rows "averaged
error" have it averaged over the pixels, the others summed (`lmser.experiments.supervised_loss`).

What is claimed is decided as follows: "more robust" is a higher accuracy at every seed, by more than one
percentage point and more than two standard errors of a difference between two shares of so many images, of a
network that reads at least half of the clean images: one whose units have died gives every image the same class,
which no attack can change.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lmser._extras import require
from lmser.data import load_mnist
from lmser.experiments import Request
from lmser.experiments.attacks import fgsm, logits_of, pgd, recognised, zero_gradients
from lmser.experiments.campaign import Job, Trained, load_trained, row_times, train_rows
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.figures_accuracy import accuracy_panels
from lmser.experiments.labelled_images import UNIT_RANGE, LabelledImages
from lmser.experiments.paper import paper_table
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.supervised_loss import loss_of
from lmser.experiments.tables import Cell, Row, Table

__all__ = ["run"]

NAME = "recognition"

_SIZE = 0.3  # 000's
_CLAIMED_SIZES = (0.1, _SIZE)
_LEARNED = 50.0  # per cent of clean images: below, there is nothing to attack
_POINTS = 1.0  # percentage points, see `_exceeds`
_BASELINES = ("FCN", "CNN")
_TITLES = {
    "as-printed": "as printed, lr 0.01 x 0.9999^step",
    "calibrated": "calibrated, lr 0.001 x 0.9999^step",
}


class _Digits(LabelledImages):
    """The images as the rows want them."""

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` test images from all over the set, the same at every call: its halves differ in difficulty."""
        step = max(1, len(self.test) // count)
        return self.test[::step][:count], self.test_labels[::step][:count]


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted and ImportError (the attack library is missing), each
    with a message for the user.
    """
    require("art.attacks.evasion")  # asked for now, not after the first training
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    for row in rows:
        if _SIZE not in row.evaluation["sizes"]:
            raise ValueError(
                f"{row.path}: evaluation.sizes: expected {_SIZE} among them, got {row.evaluation['sizes']}"
            )
    train, test = (load_mnist(request.data, False, part) for part in (True, False))
    digits = _Digits.of(train, test, request.device)
    trained = train_rows(
        request,
        rows,
        functools.partial(_job, digits=digits),
        experiment=NAME,
        data={"train": train.sha256(), "test": test.sha256()},
    )
    transferred = _transferred(request, trained, digits)
    present = [key for key in _TITLES if any(row.table == key for row in rows)]
    tables: list[Table] = []
    claims: list[Claim] = []
    figures: list[Figure] = []
    for key in present:
        found = {row: jobs for row, jobs in trained.items() if row.table == key}
        tables += [_attacked_table(key, found, transferred), _sizes_table(key, found)]
        claims += _claims(key, found)
        figures += [_curves(request, key, found), *_pictures(request, key, found, digits)]
    original = "original files" if train.verified and test.verified else "not the original files"
    first = rows[0].evaluation
    results = Results(
        experiment=NAME,
        title="Recognition of MNIST, clean and attacked",
        summary=(
            "Test accuracy in percent of fully connected 784-300-100-10 and convolutional 1-16-32-64-64-64-64 "
            f"networks, clean and under attacks within an L-infinity ball on images in [0, 1]. Clean, FGSM "
            f"{_SIZE} and the share of zero gradients are on {len(digits.some(first['images'])[0])} test "
            f"images, the others on {len(digits.some(first['attacked'])[0])} of them. PGD: {first['pgd_steps']} "
            f"steps of a tenth of the size from {first['pgd_restarts']} random start(s) for each of two losses."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tuple(tables),
        figures=tuple(figures),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": f"MNIST, {original}",
            "training data sha256": train.sha256(),
            "test data sha256": test.sha256(),
            "configuration files sha256": checksum(rows),
        },
        notes=(
            "000 says that the clean accuracies of FCN and Lmser(sup) are both over 98 %, and does not give that "
            "of the CNN based Lmser.",
            "With one reflection an attack's gradient goes through the encoder alone: the logits are read before "
            "anything is sent down.",
        ),
        claims=tuple(claims),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _job(row: RowConfig, digits: _Digits) -> Job:
    sizes = row.evaluation["sizes"]
    return Job(
        data=(digits.train, digits.train_labels),
        loss=loss_of(row),
        evaluate=functools.partial(_measure, row=row, digits=digits),
        metrics=(
            "clean",
            "FGSM",
            "zero",
            *(f"{name} {size}" for name in ("FGSM", "PGD") for size in (0, *sizes)),
        ),
        pictures=lambda model: fgsm(model, digits.shown, digits.shown_labels, _SIZE),
    )


def _percent(right: Tensor) -> float:
    return 100 * int(right.sum()) / len(right)


def _measure(model: nn.Module, row: RowConfig, digits: _Digits) -> dict[str, float]:
    settings = row.evaluation
    images, labels = digits.some(settings["images"])
    found = {
        "clean": _percent(recognised(model, images, labels)),
        "FGSM": _percent(recognised(model, fgsm(model, images, labels, _SIZE), labels)),
        "zero": _percent(zero_gradients(model, images, labels)),
    }
    images, labels = digits.some(settings["attacked"])
    clean = recognised(model, images, labels)
    found["FGSM 0"] = found["PGD 0"] = _percent(clean)
    for size in settings["sizes"]:
        found[f"FGSM {size}"] = _percent(recognised(model, fgsm(model, images, labels, size), labels))
        standing = clean.clone()
        for loss in ("cross-entropy", "margin"):
            # An image that is lost already cannot be won back: only the others are attacked again.
            left = standing.nonzero()[:, 0]
            if len(left):
                examples = pgd(
                    model, images[left], labels[left], size, loss=loss,
                    steps=settings["pgd_steps"], restarts=settings["pgd_restarts"],
                )  # fmt: skip
                standing[left] = recognised(model, examples, labels[left])
        found[f"PGD {size}"] = _percent(standing)
    return found


def _transferred(request: Request, trained: Trained, digits: _Digits) -> dict[RowConfig, tuple[float, ...]]:
    """Row -> accuracy for each seed on the FGSM examples made on the network that the row is beside; NaN where
    one of the two diverged."""
    accuracies: dict[RowConfig, tuple[float, ...]] = {}
    for row in trained:
        partner = row.evaluation["beside"]
        makers = [other for other in trained if (other.table, other.label) == (row.table, partner)]
        images, labels = digits.some(row.evaluation["attacked"])
        found = []
        for index, seed in enumerate(request.seeds if makers else ()):
            if any(trained[each][index].diverged_at is not None for each in (row, makers[0])):
                found.append(math.nan)
                continue
            examples = fgsm(load_trained(request, makers[0], seed), images, labels, _SIZE)
            found.append(_percent(recognised(load_trained(request, row, seed), examples, labels)))
        accuracies[row] = tuple(found)
    return accuracies


# Tables.


def _finals(found: Trained, row: RowConfig, metric: str) -> tuple[float, ...]:
    return tuple(job.final(metric) for job in found[row])


def _attacked_table(key: str, found: Trained, transferred: Mapping[RowConfig, tuple[float, ...]]) -> Table:
    paper = paper_table("000", "recognition")
    lines = []
    for row in found:
        printed = {
            name: value
            for name, value in paper.get(row.label.partition(",")[0], {}).items()
            if not isinstance(value, str)
        }
        cells = (
            Cell(_finals(found, row, "clean"), printed.get("clean"), digits=2),
            Cell(_finals(found, row, "FGSM"), printed.get(f"FGSM {_SIZE}"), digits=2),
            Cell(_finals(found, row, f"PGD {_SIZE}"), digits=2),
            Cell(transferred[row], digits=2),
            Cell(_finals(found, row, "zero"), digits=2),
        )
        lines.append(Row(row.label, cells, group=row.group, differs=row.differs))
    return Table(
        title=f"MNIST, {_TITLES[key]}: accuracy %, attacks of size {_SIZE} on images in [0, 1]",
        columns=("clean", "FGSM", "PGD", "FGSM made on the other", "zero gradients, % of images"),
        rows=tuple(lines),
        source="000 Recognition",
        notes=tuple(_signs(found, transferred)),
    )


def _signs(found: Trained, transferred: Mapping[RowConfig, tuple[float, ...]]) -> list[str]:
    """One sentence for each network on whether its gradients are masked."""
    sentences = []
    for row in found:
        sizes = row.evaluation["sizes"]
        fast, projected = (
            {size: _mean(_finals(found, row, f"{attack} {size}")) for size in sizes}
            for attack in ("FGSM", "PGD")
        )
        count = row.evaluation["attacked"]
        signs = [
            f"PGD leaves more than FGSM at size {size} ({projected[size]:.1f} against {fast[size]:.1f} %)"
            for size in sizes
            if _exceeds(projected[size], fast[size], count)
        ]
        signs += [
            f"FGSM leaves more at size {large} ({fast[large]:.1f} %) than at {small} ({fast[small]:.1f} %)"
            for small, large in itertools.pairwise(sizes)
            if _exceeds(fast[large], fast[small], count)
        ]
        if _exceeds(fast[_SIZE], left := _mean(transferred[row]), count):
            signs.append(f"examples made on the other network leave less ({left:.1f} %) than its own")
        if (share := _mean(_finals(found, row, "zero"))) > _POINTS:
            signs.append(f"the gradient is zero at {share:.1f} % of the images")
        sentences.append(f"Signs of masked gradients, {row.label}: {'; '.join(signs) or 'none'}.")
    return sentences


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _sizes_table(key: str, found: Trained) -> Table:
    first = next(iter(found)).evaluation
    sizes = (0, *first["sizes"])
    return Table(
        title=f"MNIST, {_TITLES[key]}: accuracy % over the size of the attack, {first['attacked']} test images",
        columns=tuple(map(str, sizes)),
        rows=tuple(
            Row(
                row.label,
                tuple(Cell(_finals(found, row, f"{attack} {size}"), digits=1) for size in sizes),
                group=attack,
                differs=row.differs,
            )
            for attack in ("FGSM", "PGD")
            for row in found
        ),
    )


# Claims.


def _claims(key: str, found: Trained) -> list[Claim]:
    """000's sentence for each Lmser, under FGSM as it has it and under PGD."""
    by_label = {row.label: row for row in found}
    claims = []
    for row in found:
        other = by_label.get(row.evaluation["beside"])
        if other is None or row.model["kind"] in _BASELINES:
            continue
        sizes = [size for size in _CLAIMED_SIZES if size in row.evaluation["sizes"]]
        attacks = [("FGSM", _SIZE, "FGSM", "images"), *(("PGD", s, f"PGD {s}", "attacked") for s in sizes)]
        for attack, size, metric, count in attacks:
            ours, theirs = (_finals(found, each, metric) for each in (row, other))
            images = row.evaluation[count]
            evidence = (
                f"{_TITLES[key]}: {row.label} {_listed(ours)}, {other.label} {_listed(theirs)} % by seed"
            )
            clean = _finals(found, row, "clean")
            learned = min(clean) >= _LEARNED
            if not learned:
                evidence += f"; {row.label} has not learned, it reads {_listed(clean)} % of clean images"
            claims.append(
                Claim(
                    f"{row.label} is more robust than {other.label} under {attack} of size {size}",
                    "000, Recognition",
                    learned and all(_exceeds(a, b, images) for a, b in zip(ours, theirs, strict=True)),
                    evidence,
                )
            )
    return claims


def _exceeds(more: float, less: float, images: int) -> bool:
    """Whether one percentage of so many images is above another by more than `_POINTS` and two standard errors."""
    error = math.sqrt((more * (100 - more) + less * (100 - less)) / images)
    return more > less + max(_POINTS, 2 * error)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


# Figures.


def _curves(request: Request, key: str, found: Trained) -> Figure:
    panels: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for row, jobs in found.items():
        sizes = (0, *row.evaluation["sizes"])
        panels.setdefault(row.group, {})[row.label] = {
            attack: [(size, jobs[0].final(f"{attack} {size}")) for size in sizes]
            for attack in ("FGSM", "PGD")
        }
    name = f"figures/accuracy-{key}.svg"
    drawn = accuracy_panels(name, panels, x_label="size of the attack (1 is black to white)")
    save_figure(request.out / name, drawn)
    return Figure(
        name,
        f"Accuracy over the size of the attack, {_TITLES[key]}",
        f"FGSM solid, PGD dashed, the same images, seed {request.seeds[0]}. Where the dashed line is far below the "
        "solid one, what stood FGSM was not robust.",
        f"Panels: {', '.join(panels)}; lines: {', '.join(row.label for row in found)}, each under FGSM and PGD",
    )


def _pictures(request: Request, key: str, found: Trained, digits: _Digits) -> tuple[Figure, ...]:
    lines = {"test image": digits.shown}
    for row, jobs in found.items():
        if jobs[0].diverged_at is None:
            examples = jobs[0].pictures[max(jobs[0].pictures)]
            read = logits_of(load_trained(request, row, request.seeds[0]), examples).argmax(1)
            lines[f"{row.label}, read as\n{' '.join(map(str, read.tolist()))}"] = examples
    name = f"figures/examples-{key}.svg"
    save_figure(request.out / name, picture_grid(name, lines, data_range=UNIT_RANGE, labels="rows"))
    return (
        Figure(
            name,
            f"FGSM examples of size {_SIZE}, {_TITLES[key]}",
            f"The first test image of each class and what FGSM makes of it on each network, with the classes that "
            f"network then reads; seed {request.seeds[0]}.",
            f"Rows: {', '.join(' '.join(line.split()) for line in lines)}",
        ),
    )
