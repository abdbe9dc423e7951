"""000 Figs. 4 to 6: pictures generated from codes, by class and style and along single units of the code.

000 gives pictures and no number. What can be measured in them is measured here, with a classifier trained
apart as the judge, and what the paper says of them in words is held against bounds
(`lmser.experiments.generation_claims`).

The paper's networks have paired neurons, whose drive from below carries the image past the code. Codes that
are sent down alone then find their neurons without the drive that they were trained with, and codes that are
sent down with an image's drives held change next to nothing: both are shown. Networks without paired neurons
(the paper's un-n; sup-n is the same with labels) have the code alone to reconstruct from, and are run beside
them.

The convolutional network of 000 has a code of 64 channels at 4x4 positions, of which one unit is little. So
it is also run with two more layers that end in ten units at one position, as the fully connected code has.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lmser import metrics
from lmser.data import Split, load_mnist
from lmser.data.registry import DATA_SETS
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, load_trained, row_times, table_row, train_rows
from lmser.experiments.codes import codes_of, most_varied, random_styles, range_values
from lmser.experiments.generated import (
    class_from_style,
    class_pictures,
    diversity,
    predicted,
    step_evenness,
    traverse,
)
from lmser.experiments.generation_claims import claims
from lmser.experiments.generation_figures import Shown, style_figure, traversal_figure
from lmser.experiments.labelled_images import LabelledImages
from lmser.experiments.provenance import machine
from lmser.experiments.results import Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.experiments.training_job import JobResult
from lmser.frechet import frechet_distance
from lmser.models import ReflectionNetwork

__all__ = ["run"]

_TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
_READINGS = {False: "no drive from below", True: "drives held"}
_KNOWN = 5000  # training images whose codes say what is usual

# A unit acts where the first and the last picture along it differ by this much (root mean square per pixel;
# two test images of MNIST differ by 0.3 to 0.4).
_ACTS = 0.05

# The figures show the units of the code of the first test image of this class.
_SHOWN = 6


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows("generation", request.scale, request.training) if rows is None else rows
    for table in ("styles", "traversals"):
        measured = [
            {key: row.evaluation[key] for key in ("styles", "images", "values") if key in row.evaluation}
            for row in rows
            if row.table == table
        ]
        if any(other != measured[0] for other in measured):
            raise ValueError(
                f"rows: expected the same [evaluation] numbers in all of {table}, got {measured}"
            )
    names = [name for name in _TITLES if any(row.data["name"] == name for row in rows)]
    sets = {
        name: Split(*(load_mnist(request.data, name == "fashion-mnist", part) for part in (True, False)))
        for name in names
    }
    pixels = {name: LabelledImages.of(*parts, request.device) for name, parts in sets.items()}
    trained = train_rows(
        request,
        rows,
        functools.partial(_job, sets=pixels),
        experiment="generation",
        data={name: [part.sha256() for part in parts] for name, parts in sets.items()},
    )
    judged = _Judge(request, trained, pixels)
    styles, traversals = judged.styles(), judged.traversals()
    results = Results(
        experiment="generation",
        title="Generation from codes",
        summary=(
            "Pictures decoded from codes that no image gave: by class and style (000 Fig. 4) and along "
            "single units (Figs. 5 and 6). 000 gives no numbers; the pictures are judged by a CNN trained "
            "apart, on images in [0, 1]."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=(*filter(None, (styles, traversals)), _classifiers(trained)),
        figures=judged.figures(),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={**_data(sets), "configuration files sha256": checksum(rows)},
        times=row_times(trained),
        claims=claims(styles, traversals),
    )
    results.write(request.out)
    return results


def _data(sets: Mapping[str, Split]) -> dict[str, str]:
    found = {}
    for name, parts in sets.items():
        original = all(part.verified for part in parts)
        found[_TITLES[name]] = "original files" if original else "not the original files"
        for part, words in zip(parts, ("training", "test"), strict=True):
            found[f"{_TITLES[name]} {words} data sha256"] = part.sha256()
    return found


def _job(row: RowConfig, sets: Mapping[str, LabelledImages]) -> Job:
    pixels = sets[row.data["name"]]
    labelled = row.table == "classifier" or row.model.get("num_classes") is not None
    return Job(
        data=(pixels.train, pixels.train_labels) if labelled else pixels.train,
        loss=_loss,
        evaluate=functools.partial(_measure, pixels=pixels),
        metrics=("accuracy",) if row.table == "classifier" else ("MSE",),
        # What is drawn is made after training, from the weights.
        pictures=lambda _: torch.empty(0),
    )


def _loss(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> Tensor:
    loss: Tensor = model.loss(images) if labels is None else model.loss(images, labels)  # type: ignore[operator]
    return loss


def _measure(model: nn.Module, pixels: LabelledImages) -> dict[str, float]:
    if not isinstance(model, ReflectionNetwork):
        guessed = predicted(model, pixels.test).argmax(1)
        return {"accuracy": 100 * float((guessed == pixels.test_labels).float().mean())}
    device = next(model.parameters()).device
    parts = [model(part.to(device)).reconstruction.cpu() for part in pixels.test.split(1000)]
    return {"MSE": metrics.mse(torch.cat(parts), pixels.test)}


class _Judge:
    """Everything that is measured and drawn after training, over all rows and seeds."""

    def __init__(self, request: Request, trained: Trained, sets: Mapping[str, LabelledImages]) -> None:
        self.request, self.trained, self.sets = request, trained, sets
        self._networks: dict[tuple[RowConfig, int], Shown] = {}

    def _rows(self, table: str, name: str) -> list[RowConfig]:
        return [row for row in self.trained if row.table == table and row.data["name"] == name]

    def _loaded(self, row: RowConfig, seed: int) -> Shown | None:
        """None for a run whose loss left the finite numbers."""
        if self._job(row, seed).diverged_at is not None:
            return None
        if (row, seed) not in self._networks:
            network, pixels = load_trained(self.request, row, seed), self.sets[row.data["name"]]
            assert isinstance(network, ReflectionNetwork)
            known = codes_of(network, pixels.train[:_KNOWN], pixels.train_labels[:_KNOWN])
            self._networks[row, seed] = Shown(row.label, network, known)
        return self._networks[row, seed]

    def _job(self, row: RowConfig, seed: int) -> JobResult:
        return self.trained[row][self.request.seeds.index(seed)]

    @functools.cached_property
    def _classifiers(self) -> dict[tuple[str, int], nn.Module]:
        return {
            (row.data["name"], seed): load_trained(self.request, row, seed)
            for row in self.trained
            if row.table == "classifier"
            for seed in self.request.seeds
        }

    # Fig. 4: class and style.

    def styles(self) -> Table | None:
        lines = []
        for name in self.sets:
            rows = self._rows("styles", name)
            if not rows:
                continue
            lines.append(self._test_images(name, rows[0].evaluation["styles"]))
            for row in rows:
                for held in self._readings(row):
                    found = [self._style_numbers(row, seed, held=held) for seed in self.request.seeds]
                    lines.append(_line(row, found, held, (2, 4, 2, 4)))
        if not lines:
            return None
        return Table(
            "By class and style: a code of ten category units and two style units",
            ("recognised %", "diversity", "class from style %", "test MSE"),
            tuple(lines),
            notes=(
                "recognised: pictures that the classifier takes for the class asked for, in random styles. "
                "Styles are drawn from the normal distribution, independent of the class, that the style "
                "units with their training noise have over the training images; category units stand at the "
                "class's mean.",
                "diversity: standard deviation of a pixel over the styles of one class (root of the mean "
                "variance).",
                "class from style: test images whose style is nearest to the mean style of their class; "
                "chance is 10.",
                "drives held: those of the first test image of the class after the one asked for.",
            ),
        )

    def _readings(self, row: RowConfig) -> tuple[bool, ...]:
        return (False, True) if row.model.get("dpn", True) else (False,)

    def _test_images(self, name: str, count: int) -> Row:
        """The judge's own accuracy, and the diversity of as many test images of a class as there are styles."""
        pixels = self.sets[name]
        row = self._rows("classifier", name)[0]
        spread = [diversity(pixels.test[pixels.test_labels == k][:count]) for k in _labels(pixels)]
        cells = (
            Cell(tuple(job.final("accuracy") for job in self.trained[row]), digits=2),
            Cell((sum(spread) / len(spread),)),
            Cell(()),
            Cell(()),
        )
        return Row("test images", cells, group=_TITLES[name])

    def _style_numbers(self, row: RowConfig, seed: int, *, held: bool) -> tuple[float | None, ...]:
        loaded = self._loaded(row, seed)
        if loaded is None:
            return (float("nan"),) * 4
        pixels, judge = self.sets[row.data["name"]], self._classifiers[row.data["name"], seed]
        tested = codes_of(loaded.network, pixels.test, pixels.test_labels)
        styles = random_styles(loaded.known, row.model["style_units"], row.evaluation["styles"], seed)
        right, spread = 0, 0.0
        for label in _labels(pixels):
            images = pixels.shown.roll(-1, 0)[label].expand(len(styles), -1, -1, -1)
            pictures = class_pictures(loaded.network, loaded.known, label, styles, images, held=held)
            right += int((predicted(judge, pictures).argmax(1) == label).sum())
            spread += diversity(pictures)
        classes = len(_labels(pixels))
        return (
            100 * right / (classes * len(styles)),
            spread / classes,
            class_from_style(row.model["style_units"], loaded.known, tested),
            self._job(row, seed).final("MSE"),
        )

    # Figs. 5 and 6: along single units.

    def traversals(self) -> Table | None:
        lines = []
        for name in self.sets:
            rows = self._rows("traversals", name)
            if rows:
                lines.append(self._unchanged(name, rows[0].evaluation["images"]))
            for row in rows:
                for held in self._readings(row):
                    found = [self._unit_numbers(row, seed, held=held) for seed in self.request.seeds]
                    lines.append(_line(row, found, held, (2, 1, 4, 2, 2, 2, 4)))
        if not lines:
            return None
        first = next(row for row in self.trained if row.table == "traversals")
        images, values = first.evaluation["images"], first.evaluation["values"]
        return Table(
            "Along single units of the code",
            (
                "upper end",
                "units that act",
                "change",
                "largest step",
                "classes met",
                "Fréchet distance",
                "test MSE",
            ),
            tuple(lines),
            notes=(
                f"{values} values over the range that training images give a unit (1st to 99th percentile), "
                f"the other units as in the first {images} test images of each class; of a convolutional "
                "code the ten channels that vary most. upper end: of that range, mean over the units (000 goes "
                "from 0 to 10).",
                f"units that act: of ten, change of {_ACTS} or more. change: root mean square difference per "
                "pixel between the two ends.",
                f"largest step: between neighbours, over the mean step (1: even; {values - 1}: one jump), "
                "where a unit acts. classes met: different classes that the classifier sees along one unit.",
                "Fréchet distance: between the classifier's logits of these pictures and of all test images. "
                "test images: of those that the codes are of, unchanged; pictures that do not change come as near.",
            ),
        )

    def _unchanged(self, name: str, count: int) -> Row:
        """The Fréchet distance of the images that the traversals start from."""
        pixels = self.sets[name]
        judges = [self._classifiers[name, seed] for seed in self.request.seeds]
        images = _first_of_each_class(pixels, count)
        near = [frechet_distance(predicted(judge, images), predicted(judge, pixels.test)) for judge in judges]
        cells = (*[Cell(())] * 5, Cell(tuple(near), digits=2), Cell(()))
        return Row("test images", cells, group=_TITLES[name])

    def _unit_numbers(self, row: RowConfig, seed: int, *, held: bool) -> tuple[float | None, ...]:
        loaded = self._loaded(row, seed)
        if loaded is None:
            return (float("nan"),) * 7
        pixels, judge = self.sets[row.data["name"]], self._classifiers[row.data["name"], seed]
        images = _first_of_each_class(pixels, row.evaluation["images"])
        units = most_varied(loaded.known)
        values = range_values(loaded.known, units, row.evaluation["values"])
        pictures = traverse(loaded.network, images, units, values, held=held)
        change, largest = step_evenness(pictures, _ACTS)
        logits = predicted(judge, pictures.flatten(0, 2))
        met = logits.argmax(1).reshape(pictures.shape[:3]).sort(-1).values.diff(dim=-1)
        return (
            float(values[:, -1].mean()),
            float((change >= _ACTS).sum()),
            float(change.mean()),
            largest,
            float((1 + (met != 0).sum(-1)).float().mean()),
            frechet_distance(logits, predicted(judge, pixels.test)),
            self._job(row, seed).final("MSE"),
        )

    # Figures, of the first seed.

    def figures(self) -> tuple[Figure, ...]:
        found = []
        out, seed = self.request.out, self.request.seeds[0]
        for name, pixels in self.sets.items():
            title, classes = _TITLES[name], DATA_SETS[name].classes
            for row in self._rows("styles", name):
                loaded = self._loaded(row, seed)
                if loaded is not None:
                    found.append(style_figure(out, title, classes, loaded, pixels.shown, seed))
            rows = self._rows("traversals", name)
            for key in dict.fromkeys(row.evaluation["figure"] for row in rows):
                same = [row for row in rows if row.evaluation["figure"] == key]
                shown = [loaded for row in same if (loaded := self._loaded(row, seed)) is not None]
                if shown:
                    ranges = {False, same[0].evaluation.get("printed_range", False)}
                    found += [
                        traversal_figure(out, title, key, shown, pixels.shown[_SHOWN], seed, printed=printed)
                        for printed in sorted(ranges)
                    ]
        return tuple(found)


def _labels(pixels: LabelledImages) -> list[int]:
    return [int(label) for label in pixels.test_labels.unique()]


def _first_of_each_class(pixels: LabelledImages, count: int) -> Tensor:
    return torch.cat([pixels.test[pixels.test_labels == label][:count] for label in _labels(pixels)])


def _line(row: RowConfig, found: Sequence[Sequence[float | None]], held: bool, digits: Sequence[int]) -> Row:
    """A row of a table from its numbers per seed; None where a number is not defined."""
    label = f"{row.label}, {_READINGS[held]}" if row.model.get("dpn", True) else row.label
    cells = tuple(
        Cell(tuple(value for value in column if value is not None), digits=places)
        for column, places in zip(zip(*found, strict=True), digits, strict=True)
    )
    return Row(label, cells, group=row.group, differs=row.differs)


def _classifiers(trained: Trained) -> Table:
    rows = [
        table_row(row, found, ("accuracy",), digits={"accuracy": 2})
        for row, found in trained.items()
        if row.table == "classifier"
    ]
    return Table("The classifier that judges", ("test accuracy %",), tuple(rows))
