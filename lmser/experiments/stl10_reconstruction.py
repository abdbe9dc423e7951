"""001 Table 4 and Figs. 5 and 6: reconstruction of STL10 from few images, by CLmser, its ablations and U-Net.

Three tables are made, because at the printed learning rate two things happen that the paper does not
mention: the ReLU units of CLmser-n and CAE die (a constant image is then all they can give), and some seeds
of CLmser are thrown far off by the first steps of Adam. So the printed setting stands first; then the same
with a warm-up, and a learning rate at which CLmser-n and CAE live; then that from the near-isometric start.

SGD (Fig. 6a): 001 gives the same learning rate, 0.01, for both optimisers. With J summed over the pixels, as
Adam may have it, SGD leaves the finite numbers within ten steps at any rate above 1e-5; with the mean over
the pixels it trains at 0.01. So for SGD the mean is what is meant.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmser.baselines import UNet
from lmser.data import ImageSet, load_stl10
from lmser.experiments import Request
from lmser.experiments.figures import loss_curves, picture_grid, save_figure
from lmser.experiments.image_reconstruction import (
    CHANNELS,
    IMAGE_RANGE,
    METRICS,
    STRIDES,
    VARIANTS,
    build_variant,
    measure,
    mse_of_loss,
    reconstruct,
)
from lmser.experiments.paper import paper_table
from lmser.experiments.progress import ExperimentProgress
from lmser.experiments.provenance import machine
from lmser.experiments.results import Figure, Results
from lmser.experiments.run_directory import open_run_directory
from lmser.experiments.tables import Cell, Row, Table
from lmser.experiments.training_job import JobResult, train_job
from lmser.training import TrainConfig

__all__ = ["MODELS", "SCALES", "Configuration", "Scale", "run"]

MODELS = ("CLmser", "CLmser-w", "U-Net", "CLmser-n", "CAE")

# Chooses the subsets of the training images, the same for every run.
_DATA_SEED = 0


@dataclass(frozen=True)
class Configuration:
    """One row of one table.

    setting:   the table.  per_class: n.  warmup: fraction of the steps.  loss: "sum" or "mean" over the
    pixels.
    """

    setting: str
    model: str
    per_class: int
    optimizer: str = "adam"
    init: str = "default"
    lr: float = 0.01
    warmup: float = 0.0
    loss: str = "sum"

    @property
    def path(self) -> str:
        return f"{self.setting}/n-{self.per_class}/{self.model}"

    @property
    def differs(self) -> str:
        """What of this row is not in 001 Tables 2 and 3."""
        parts = [f"warm-up over the first {self.warmup:.0%} of the steps"] if self.warmup else []
        if self.lr != 0.01:
            parts.append(f"lr {self.lr:g}")
        if self.init == "isometric":
            parts.append("near-isometric start")
        return ", ".join(parts)


@dataclass(frozen=True)
class Scale:
    """How much of it to run.

    epochs or steps: one of them is None.  tested: images per class, None for all test images.
    sizes:           the n of each table; that of "sgd" is the one of the figures as well.
    side:            pixels to which images are averaged down.
    """

    batch_size: int
    epochs: int | None
    steps: int | None
    tested: int | None
    sizes: Mapping[str, tuple[int, ...]]
    side: int = 96

    @property
    def figure_size(self) -> int:
        return self.sizes["sgd"][0]

    def steps_for(self, images: int) -> int:
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * -(-images // self.batch_size)

    def configurations(self) -> Iterator[Configuration]:
        """All rows, table by table."""
        for per_class in self.sizes["as-printed"]:
            for model in MODELS:
                yield Configuration("as-printed", model, per_class)
        for setting, init in (("steady", "default"), ("isometric", "isometric")):
            for per_class in self.sizes[setting]:
                for model in MODELS:
                    if init == "isometric" and model not in VARIANTS:
                        continue  # U-Net has no two directions to be each other's transpose
                    lr = 0.002 if model in ("CLmser-n", "CAE") else 0.01
                    yield Configuration(setting, model, per_class, init=init, lr=lr, warmup=0.1)
        for per_class in self.sizes["sgd"]:
            for model in MODELS:
                yield Configuration("sgd", model, per_class, optimizer="sgd", loss="mean")


_ALL, _ONE = (400, 100, 10), (100,)

SCALES: Mapping[str, Scale] = {
    "paper": Scale(
        batch_size=100,
        epochs=20,
        steps=None,
        tested=None,
        sizes={"as-printed": _ALL, "steady": _ALL, "isometric": _ALL, "sgd": _ONE},
    ),
    "quick": Scale(
        batch_size=25,
        epochs=None,
        steps=60,
        tested=10,
        sizes={"as-printed": _ALL, "steady": _ONE, "isometric": _ONE, "sgd": _ONE},
    ),
}

_TITLES = {
    "as-printed": "As printed: Adam, lr 0.01, default initialisation",
    "steady": "With a warm-up, and lr 0.002 for CLmser-n and CAE",
    "isometric": "From the near-isometric start",
    "sgd": "SGD, lr 0.01",
}

_Jobs = dict[Configuration, list[JobResult]]  # one per seed


def run(request: Request, scale: Scale | None = None) -> Results:
    """Run the experiment; `scale` replaces that of ``request.scale`` (tests use a tiny one).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    scale = SCALES[request.scale] if scale is None else scale
    rows = list(scale.configurations())
    largest = max(row.per_class for row in rows)
    train, test = load_stl10(request.data, largest, _DATA_SEED)
    plan = {
        "experiment": "stl10-reconstruction",
        "scale": dataclasses.asdict(scale),
        "rows": [dataclasses.asdict(row) for row in rows],
        "seeds": list(request.seeds),
        "device": torch.device(request.device).type,
        "data": [train.sha256(), test.sha256()],
    }
    open_run_directory(request.out, plan, resume=request.resume)
    tested = test if scale.tested is None else test.take(_first_of_each_class(test, scale.tested))
    images = _sized(tested.to_float(*IMAGE_RANGE), scale.side)
    sets = {largest: train}
    for per_class in {row.per_class for row in rows} - {largest}:
        sets[per_class] = load_stl10(request.data, per_class, _DATA_SEED).train
    jobs = _train_all(request, scale, rows, sets, images)
    results = Results(
        experiment="stl10-reconstruction",
        title="Reconstruction of STL10 from few images",
        summary=(
            f"{len(images)} test images in [-1, 1], {images.shape[-1]}x{images.shape[-1]} pixels; "
            "n training images per class. PSNR and SSIM are means over images with data range 2."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tuple(_table(setting, jobs, scale, train) for setting in _TITLES),
        figures=_figures(request, scale, jobs, images),
        seconds=sum(job.seconds for found in jobs.values() for job in found),
        machine=machine(request.device),
        data={
            "data": train.name,
            "training data sha256": train.sha256(),
            "test data sha256": tested.sha256(),
        },
    )
    results.write(request.out)
    return results


def _train_all(
    request: Request, scale: Scale, rows: list[Configuration], sets: Mapping[int, ImageSet], test: Tensor
) -> _Jobs:
    device = torch.device(request.device)
    subsets = {n: _sized(found.to_float(*IMAGE_RANGE), scale.side).to(device) for n, found in sets.items()}
    shown = test[:: max(1, len(test) // 6)][:6]
    total = sum(scale.steps_for(len(subsets[row.per_class])) for row in rows) * len(request.seeds)
    jobs: _Jobs = {}
    with ExperimentProgress(len(rows) * len(request.seeds), total, shown=request.progress) as bar:
        for seed in request.seeds:
            for row in rows:
                train = subsets[row.per_class]
                steps = scale.steps_for(len(train))
                job = train_job(
                    request.out / row.path / f"seed-{seed}",
                    build=functools.partial(_build, row),
                    loss=_sum_loss if row.loss == "sum" else _mean_loss,
                    data=train,
                    config=_training(row, scale, steps, seed),
                    eval_at=(steps,),
                    evaluate=functools.partial(measure, images=test),
                    metrics=METRICS,
                    pictures=functools.partial(reconstruct, images=shown),
                    identity=dataclasses.asdict(row),
                    device=device,
                    on_step=bar.job(f"{row.setting}, n = {row.per_class}, {row.model}, seed {seed}", steps),
                )
                curve = mse_of_loss(job.curve, train[0].numel() if row.loss == "sum" else 1)
                jobs.setdefault(row, []).append(dataclasses.replace(job, curve=curve))
    return jobs


def _build(row: Configuration) -> nn.Module:
    return UNet(3, CHANNELS, STRIDES) if row.model == "U-Net" else build_variant(row.model, row.init)


def _training(row: Configuration, scale: Scale, steps: int, seed: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=scale.batch_size,
        lr=row.lr,
        optimizer="sgd" if row.optimizer == "sgd" else "adam",
        gamma=1.0,
        warmup=round(row.warmup * steps),
        seed=seed,
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


def _table(setting: str, jobs: _Jobs, scale: Scale, train: ImageSet) -> Table:
    paper = paper_table("001", "table 4") if setting != "sgd" else {}
    common = [] if train.name.startswith("STL10 (original") else ["stand-in data"]
    if scale.epochs is None:
        common.append(f"{scale.steps} steps of batch {scale.batch_size}")
    if scale.side != 96:
        common.append(f"{scale.side}x{scale.side} pixels")
    if scale.tested is not None:
        common.append(f"{scale.tested} test images per class")
    rows = []
    for row, found in jobs.items():
        if row.setting != setting:
            continue
        printed = paper.get(f"n = {row.per_class}", {}).get(row.model, {})
        cells = tuple(
            Cell(
                tuple(job.final(metric) for job in found),
                printed.get(metric),
                digits=2 if metric == "PSNR" else 4,
            )
            for metric in METRICS
        )
        differs = ", ".join(filter(None, (row.differs, *common)))
        rows.append(Row(row.model, cells, group=f"n = {row.per_class}", differs=differs))
    table = Table(
        title=_TITLES[setting],
        columns=METRICS,
        rows=tuple(rows),
        source="001 Table 4" if paper else "",
    )
    groups = dict.fromkeys(row.group for row in rows)
    return dataclasses.replace(
        table, notes=tuple(f"MSE, {group}: {table.order(0, group)}." for group in groups)
    )


def _figures(request: Request, scale: Scale, jobs: _Jobs, test: Tensor) -> tuple[Figure, ...]:
    figures = []
    for setting, panel, words in (("sgd", "a", "SGD"), ("as-printed", "b", "Adam")):
        curves = {
            model: found[0].curve
            for model in (*VARIANTS, "U-Net")  # the demo's colours
            for row, found in jobs.items()
            if (row.setting, row.per_class, row.model) == (setting, scale.figure_size, model)
        }
        name = f"figures/loss-{words.lower()}.svg"
        save_figure(
            request.out / name, loss_curves(name, curves, y_label="training MSE per pixel, images in [-1, 1]")
        )
        figures.append(
            Figure(
                name,
                f"Loss during training with {words}, n = {scale.figure_size}",
                f"As 001 Fig. 6{panel}: lr 0.01, default initialisation, seed {request.seeds[0]}.",
                f"Training error over steps of {', '.join(curves)} with {words}",
            )
        )
    shown = test[:: max(1, len(test) // 6)][:6]
    for setting in ("as-printed", "steady", "isometric"):
        found = {
            row.model: jobs[row][0].pictures
            for row in jobs
            if row.setting == setting and row.per_class == scale.figure_size and row.model in VARIANTS
        }
        columns = {model: pictures[max(pictures)] for model, pictures in reversed(found.items()) if pictures}
        columns["original"] = shown
        name = f"figures/reconstructions-{setting}.svg"
        save_figure(request.out / name, picture_grid(name, columns, data_range=IMAGE_RANGE))
        figures.append(
            Figure(
                name,
                f"Test images and their reconstructions, n = {scale.figure_size}",
                f"As 001 Fig. 5. {_TITLES[setting]}, seed {request.seeds[0]}.",
                f"Columns: {', '.join(columns)}",
            )
        )
    return tuple(figures)
