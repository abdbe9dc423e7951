"""001 Table 4 and Figs. 5 and 6: reconstruction of STL10 from few images, by CLmser, its ablations and U-Net.

Three tables are made, because at the printed learning rate two things happen that the paper does not
mention: the ReLU units of CLmser-n and CAE die (a constant image is then all they can give), and some seeds
of CLmser are thrown far off by the first steps of Adam. So the printed setting stands first; then the same
with a warm-up, and a learning rate at which CLmser-n and CAE live, at n = 100 and 10; then that from the
near-isometric start, at n = 100.

SGD (Fig. 6a): 001 gives the same learning rate, 0.01, for both optimisers. With J summed over the pixels, as
Adam may have it, SGD leaves the finite numbers within ten steps at any rate above 1e-5; with the mean over
the pixels it trains at 0.01. So for SGD the mean is what is meant.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lmser.data import ImageSet, load_stl10
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, row_times, table_row, train_rows
from lmser.experiments.claims import lowest, means, pairwise_lower
from lmser.experiments.figures import loss_curves, picture_grid, save_figure
from lmser.experiments.image_reconstruction import (
    IMAGE_RANGE,
    METRICS,
    VARIANTS,
    measure,
    mse_of_loss,
    reconstruct,
)
from lmser.experiments.paper import paper_table
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Table

__all__ = ["run"]

NAME = "stl10-reconstruction"

# Chooses the subsets of the training images, the same for every run.
_DATA_SEED = 0
# The figures' n; the paper's is 100 as well.
_FIGURE_GROUP = "n = 100"
_SHOWN = 6

_TITLES = {
    "as-printed": "As printed: Adam, lr 0.01, default initialisation",
    "steady": "With a warm-up, and lr 0.002 for CLmser-n and CAE",
    "isometric": "From the near-isometric start",
    "sgd": "SGD, lr 0.01",
}


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    largest = max(row.data["per_class"] for row in rows)
    train, test = load_stl10(request.data, largest, _DATA_SEED)
    prepared = _Prepared(request, train, test)
    trained = train_rows(
        request, rows, prepared.job, experiment=NAME, data={"train": train.sha256(), "test": test.sha256()}
    )
    common = () if train.name.startswith("STL10 (original") else ("stand-in data",)
    tables = tuple(
        _table(key, title, trained, common)
        for key, title in _TITLES.items()
        if any(row.table == key for row in rows)
    )
    tested = prepared.tested(rows[0])
    results = Results(
        experiment=NAME,
        title="Reconstruction of STL10 from few images",
        summary=(
            f"{len(tested)} test images in [-1, 1], {tested.shape[-1]}x{tested.shape[-1]} pixels; "
            "n training images per class. PSNR and SSIM are means over images with data range 2."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tables,
        figures=_figures(request, trained, tested),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": train.name,
            "training data sha256": train.sha256(),
            "test data sha256": test.sha256(),
            "configuration files sha256": checksum(rows),
        },
        claims=tuple(claim for table in tables for claim in _claims(table)),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


class _Prepared:
    """The images as the rows want them, each made once."""

    def __init__(self, request: Request, train: ImageSet, test: ImageSet) -> None:
        self.request, self.test = request, test
        self.sets = {len(train) // len(train.classes): train}
        self._trained: dict[tuple[int, int], Tensor] = {}
        self._tested: dict[tuple[int | None, int], Tensor] = {}

    def train(self, row: RowConfig) -> Tensor:
        key = per_class, side = row.data["per_class"], row.evaluation["side"]
        if key not in self._trained:
            if per_class not in self.sets:
                self.sets[per_class] = load_stl10(self.request.data, per_class, _DATA_SEED).train
            images = _sized(self.sets[per_class].to_float(*IMAGE_RANGE), side)
            self._trained[key] = images.to(self.request.device)
        return self._trained[key]

    def tested(self, row: RowConfig) -> Tensor:
        key = count, side = row.evaluation.get("per_class"), row.evaluation["side"]
        if key not in self._tested:
            chosen = self.test if count is None else self.test.take(_first_of_each_class(self.test, count))
            self._tested[key] = _sized(chosen.to_float(*IMAGE_RANGE), side)
        return self._tested[key]

    def job(self, row: RowConfig) -> Job:
        images = self.tested(row)
        return Job(
            data=self.train(row),
            loss=_sum_loss if row.objective["loss"] == "sum" else _mean_loss,
            evaluate=functools.partial(measure, images=images),
            metrics=METRICS,
            pictures=functools.partial(reconstruct, images=_spread(images)),
        )


def _sum_loss(model: nn.Module, images: Tensor) -> Tensor:
    loss: Tensor = model.loss(images)  # type: ignore[operator]
    return loss


def _mean_loss(model: nn.Module, images: Tensor) -> Tensor:
    return _sum_loss(model, images) / images[0].numel()


def _first_of_each_class(images: ImageSet, count: int) -> Tensor:
    return torch.cat([(images.labels == label).nonzero()[:count, 0] for label in range(len(images.classes))])


def _sized(images: Tensor, side: int) -> Tensor:
    return images if images.shape[-1] == side else nn.functional.adaptive_avg_pool2d(images, side)


def _spread(images: Tensor) -> Tensor:
    """A few images from all over the set."""
    return images[:: max(1, len(images) // _SHOWN)][:_SHOWN]


def _table(key: str, title: str, trained: Trained, common: Sequence[str]) -> Table:
    rows = {row: found for row, found in trained.items() if row.table == key}
    source = next(iter(rows)).source
    paper = paper_table("001", "table 4") if source else {}
    table = Table(
        title=title,
        columns=METRICS,
        rows=tuple(
            table_row(
                row,
                found,
                METRICS,
                printed=paper.get(row.group, {}).get(row.label, {}),
                digits={"PSNR": 2},
                differs=common,
            )
            for row, found in rows.items()
        ),
        source=source,
    )
    groups = dict.fromkeys(row.group for row in rows)
    notes = tuple(f"MSE, {group}: {table.order(0, group)}." for group in groups)
    return dataclasses.replace(table, notes=notes)


def _claims(table: Table) -> tuple[Claim, ...]:
    """001's sentences on reconstruction, held against every n of one table."""
    groups = {group: means(table, "MSE", group) for group in dict.fromkeys(row.group for row in table.rows)}
    whole = {group: found for group, found in groups.items() if set(VARIANTS) <= set(found)}
    if not whole:
        return ()
    where = f"{table.title}, MSE: "
    paired = (("CLmser", "CLmser-n"), ("CLmser-w", "CAE"))
    shared = (("CLmser", "CLmser-w"), ("CLmser-n", "CAE"))
    return (
        lowest("CLmser performs best", "001 Sect. 5.1", where, whole, "CLmser"),
        pairwise_lower("DPN enhances reconstruction significantly", "001 Sect. 5.4", where, whole, paired),
        pairwise_lower("DCW enhances reconstruction as well", "001 Sect. 5.4", where, whole, shared),
        _main_gain(where, whole),
    )


def _main_gain(where: str, groups: Mapping[str, Mapping[str, float]]) -> Claim:
    """From CAE, the ratio of errors that each duality alone brings; "more" is the larger ratio at every n."""
    gains = {
        group: (found["CAE"] / found["CLmser-w"], found["CAE"] / found["CLmser-n"])
        for group, found in groups.items()
    }
    return Claim(
        "DPN plays the main role, DCW alone gains less",
        "001 Sect. 5.4",
        all(pairing > sharing for pairing, sharing in gains.values()),
        where
        + "; ".join(
            f"{group}: CAE's error falls {pairing:.2f} times by DPN alone, {sharing:.2f} times by DCW alone"
            for group, (pairing, sharing) in gains.items()
        ),
    )


def _figures(request: Request, trained: Trained, tested: Tensor) -> tuple[Figure, ...]:
    figures = []
    for key, panel, words in (("sgd", "a", "SGD"), ("as-printed", "b", "Adam")):
        found = {row.label: (row, jobs[0]) for row, jobs in _shown(trained, key).items()}
        if not found:
            continue
        curves = {
            label: mse_of_loss(job.curve, _values(row, tested))
            for label, (row, job) in sorted(found.items(), key=lambda item: _colour(item[0]))
        }
        name = f"figures/loss-{words.lower()}.svg"
        drawn = loss_curves(name, curves, y_label="training MSE per pixel, images in [-1, 1]")
        save_figure(request.out / name, drawn)
        figures.append(
            Figure(
                name,
                f"Loss during training with {words}, {_FIGURE_GROUP}",
                f"As 001 Fig. 6{panel}: lr 0.01, default initialisation, seed {request.seeds[0]}.",
                f"Training error over steps of {', '.join(curves)} with {words}",
            )
        )
    for key in ("as-printed", "steady", "isometric"):
        pictures = {
            row.label: jobs[0].pictures for row, jobs in _shown(trained, key).items() if row.label in VARIANTS
        }
        columns = {label: kept[max(kept)] for label, kept in reversed(pictures.items()) if kept}
        if not columns:
            continue
        columns["original"] = _spread(tested)
        name = f"figures/reconstructions-{key}.svg"
        save_figure(request.out / name, picture_grid(name, columns, data_range=IMAGE_RANGE))
        figures.append(
            Figure(
                name,
                f"Test images and their reconstructions, {_FIGURE_GROUP}",
                f"As 001 Fig. 5. {_TITLES[key]}, seed {request.seeds[0]}.",
                f"Columns: {', '.join(columns)}",
            )
        )
    return tuple(figures)


def _shown(trained: Trained, key: str) -> Trained:
    return {
        row: jobs for row, jobs in trained.items() if row.table == key and row.group == _FIGURE_GROUP and jobs
    }


def _values(row: RowConfig, images: Tensor) -> int:
    """By how many values the logged loss is a sum."""
    return images[0].numel() if row.objective["loss"] == "sum" else 1


def _colour(label: str) -> int:
    """The demo's colours, U-Net last."""
    return [*VARIANTS, "U-Net"].index(label)
