"""``lmser demo``: the comparison of 001 in minutes, on crops of photographs that need no download.

The four networks of 001 Table 1 learn to reconstruct crops of the photographs inside the scikit-learn and
scikit-image
wheels, twice: from PyTorch's default initialisation, as in 001, and from the near-isometric start. Steps and
seeds are fixed, so that the same machine gives the same bits. Beside the table of errors stand the cost of a
training step and that of its eager twin, measured in the same run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lmser.data import ImageSet, photo_crops
from lmser.experiments.eager_comparison import compare_steps, comparison_table
from lmser.experiments.figures import loss_curves, picture_grid, save_figure
from lmser.experiments.image_reconstruction import (
    IMAGE_RANGE,
    METRICS,
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
from lmser.report import write_report
from lmser.training import TrainConfig

__all__ = ["DEMO", "Configuration", "run"]

_STARTS: Mapping[str, str] = {"default": "default initialisation", "isometric": "near-isometric start"}


@dataclass(frozen=True)
class Configuration:
    """Everything that decides the demo's numbers.

    001 Table 3 gives lr 0.01 and Adam. The warm-up is not in 001: without it the first Adam steps of a tied
    network, whose two directions move at once, throw a third of the seeds so far off that they need hundreds
    of steps to return.
    """

    crop: int = 64
    train_crops: int = 600
    test_crops: int = 60
    batch_size: int = 16
    steps: int = 80
    lr: float = 0.01
    warmup: int = 10
    seeds: tuple[int, ...] = (0, 1)
    timing_batch: int = 50
    timing_size: int = 96
    timing_repeats: int = 5
    pictures: int = 6

    def training(self, seed: int) -> TrainConfig:
        """Constant learning rate after the warm-up."""
        return TrainConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            gamma=1.0,
            warmup=self.warmup,
            drop_last=True,
            seed=seed,
        )


DEMO = Configuration()

_Jobs = dict[tuple[str, str], list[JobResult]]  # (start, variant) -> one per seed


def run(
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
    configuration: Configuration = DEMO,
) -> Results:
    """Run the demo into `out`: weights per network, ``figures/``, ``results.json``, ``report.html``.

    Raises RunRefused where `out` cannot be used, Interrupted where a signal came (``resume=True`` goes on to
    the same bits), ImportError naming the extra where a dependency is missing.
    """
    plan = {"experiment": "demo", "device": torch.device(device).type, **dataclasses.asdict(configuration)}
    open_run_directory(out, plan, resume=resume)
    train_set = photo_crops(configuration.train_crops, configuration.crop, seed=0, split="train")
    test_set = photo_crops(configuration.test_crops, configuration.crop, seed=0, split="test")
    test = test_set.to_float(*IMAGE_RANGE)
    jobs = _train_all(out, train_set.to_float(*IMAGE_RANGE), test, device, progress, configuration)
    costs = compare_steps(
        configuration.timing_batch, configuration.timing_size, configuration.timing_repeats, device
    )
    facts = machine(device)
    timing = comparison_table(
        costs, batch=configuration.timing_batch, size=configuration.timing_size, machine=facts
    )
    tables = [_table(start, jobs, configuration) for start in _STARTS]
    results = Results(
        experiment="demo",
        title="CLmser on photographs",
        summary=(
            "CLmser, CLmser-w (weights not shared), CLmser-n (neurons not paired) and CAE (neither) "
            "reconstruct crops of photographs; images in [-1, 1], held-out crops."
        ),
        scale="demo",
        seeds=configuration.seeds,
        tables=(*tables, timing),
        figures=_figures(out, jobs, test, configuration),
        seconds=sum(job.seconds for found in jobs.values() for job in found),
        machine=facts,
        data=_data(train_set, test_set),
        notes=_findings(tables),
    )
    results.write(out)
    write_report(
        out / "report.html",
        [(out, results)],
        title=results.title,
        introduction="The demo of lmser: one run on this machine, beside 001 Table 4.",
    )
    return results


def _train_all(
    out: Path, train: Tensor, test: Tensor, device: str, progress: bool, configuration: Configuration
) -> _Jobs:
    planned = [
        (start, variant, seed) for start in _STARTS for variant in VARIANTS for seed in configuration.seeds
    ]
    pixels = test[0].numel()
    shown = test[: configuration.pictures]
    jobs: _Jobs = {}
    with ExperimentProgress(len(planned), len(planned) * configuration.steps, shown=progress) as bar:
        for start, variant, seed in planned:
            config = configuration.training(seed)
            job = train_job(
                out / start / variant / f"seed-{seed}",
                build=functools.partial(build_variant, variant, start),
                loss=_loss,
                data=train,
                config=config,
                eval_at=(config.steps,),
                evaluate=functools.partial(measure, images=test),
                metrics=METRICS,
                pictures=functools.partial(reconstruct, images=shown),
                identity={"variant": variant, "start": start},
                device=torch.device(device),
                on_step=bar.job(f"{variant}, {_STARTS[start]}, seed {seed}", config.steps),
            )
            curve = mse_of_loss(job.curve, pixels)
            jobs.setdefault((start, variant), []).append(dataclasses.replace(job, curve=curve))
    return jobs


def _loss(model: nn.Module, images: Tensor) -> Tensor:
    loss: Tensor = model.loss(images)  # type: ignore[operator]
    return loss


def _table(start: str, jobs: _Jobs, configuration: Configuration) -> Table:
    paper = paper_table("001", "table 4")["n = 100"]
    differs = (
        f"{configuration.train_crops} crops of {configuration.crop}x{configuration.crop} pixels from six "
        f"photographs, batch {configuration.batch_size}, {configuration.steps} steps, linear warm-up over "
        f"{configuration.warmup}"
    )
    if start != "default":
        differs += f", {_STARTS[start]}"
    rows = tuple(
        Row(
            variant,
            tuple(
                Cell(
                    tuple(job.final(metric) for job in jobs[start, variant]),
                    paper[variant][metric],
                    digits=2 if metric == "PSNR" else 4,
                )
                for metric in METRICS
            ),
            differs=differs,
        )
        for variant in VARIANTS
    )
    return Table(
        title=f"Reconstruction of held-out crops, {_STARTS[start]}, images in [-1, 1]",
        columns=METRICS,
        rows=rows,
        source="001 Table 4 (STL10, n = 100)",
    )


def _findings(tables: list[Table]) -> tuple[str, ...]:
    """What the numbers say, in sentences that follow from them and from nothing else."""
    orders = [
        f"MSE, {start}: {table.order(0)}." for start, table in zip(_STARTS.values(), tables, strict=True)
    ]
    paper = "001 Table 4 (n = 100): CLmser < CLmser-w < CLmser-n < CAE."
    shared, free = ([table.mean(0, name) for table in tables] for name in ("CLmser", "CLmser-w"))
    gains = [f / s for s, f in zip(shared, free, strict=True)]
    claim = (
        f"What sharing the weights buys (MSE of CLmser-w over that of CLmser): {gains[0]:.2f} from the "
        f"default initialisation, {gains[1]:.2f} from the near-isometric start."
    )
    return (*orders, paper, claim)


def _figures(out: Path, jobs: _Jobs, test: Tensor, configuration: Configuration) -> tuple[Figure, ...]:
    figures = []
    for start, words in _STARTS.items():
        curves = {variant: _mean_curve(jobs[start, variant]) for variant in VARIANTS}
        name = f"figures/loss-{start}.svg"
        save_figure(
            out / name, loss_curves(name, curves, y_label="training MSE per pixel, images in [-1, 1]")
        )
        figures.append(
            Figure(
                name,
                f"Loss during training, {words}",
                f"As 001 Fig. 6b (Adam): mean over {len(configuration.seeds)} seeds of the batch's MSE.",
                f"Training error over steps of {', '.join(VARIANTS)}, {words}",
            )
        )
    pictures: dict[str, Tensor] = {
        name: jobs["default", name][0].pictures[configuration.steps] for name in reversed(tuple(VARIANTS))
    }
    pictures["original"] = test[: configuration.pictures]
    name = "figures/reconstructions.svg"
    save_figure(out / name, picture_grid(name, pictures, data_range=IMAGE_RANGE))
    figures.append(
        Figure(
            name,
            "Held-out crops and their reconstructions",
            f"As 001 Fig. 5: default initialisation, seed {configuration.seeds[0]}.",
            f"Columns: {', '.join(pictures)}",
        )
    )
    return tuple(figures)


def _mean_curve(jobs: list[JobResult]) -> list[tuple[int, float]]:
    length = min(len(job.curve) for job in jobs)
    return [(jobs[0].curve[i][0], sum(job.curve[i][1] for job in jobs) / len(jobs)) for i in range(length)]


def _data(train: ImageSet, test: ImageSet) -> dict[str, str]:
    return {
        "training data": train.name,
        "test data": test.name,
        "data checked": "the known photographs"
        if train.verified and test.verified
        else "not the known bytes",
        "training data sha256": train.sha256(),
    }
