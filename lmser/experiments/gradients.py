"""001 Sect. 4.2: whether the two dualities ease the vanishing of the gradient, measured layer by layer.

The quantity is the Frobenius norm of ∂J/∂W_l, J as in 001 Eq. (1) (½ the squared error summed over the pixels,
mean over the images), on one fixed batch of training images, before the first step and after the steps that a
row names. Nothing is learned on the way: the batch that is looked at is the same for all networks and steps.

A weight is used twice, by the pass up and by the pass down, and ∂J/∂W_l is the sum of what comes back along
the two (001 Eqs. 13 and 15 against Eq. 10). The two terms are told apart by differentiating the same network
with its weights taken as two: `up` is the term of the encoder's use, at the far end of the path that the error
takes back, `down` that of the decoder's, next to the error for l = 1. Without shared weights only `up` belongs
to W_l.

How 001's sentences are held against the numbers. Vanishing is read in three ways, and less of it is a larger
norm at W_1, "the lower layers of the encoder" that 001 speaks of; a larger ratio of W_1's norm to W_L's; a
larger ratio of W_1's `up` to its `down`, what is left at the far end of the error's path of what it began
with. The third leaves out what sharing adds by merely putting both terms on one weight.
"""

from __future__ import annotations

import copy
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lmser.data import ImageSet, load_stl10
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, row_times, train_rows
from lmser.experiments.figures import save_figure
from lmser.experiments.figures_panels import line_panels
from lmser.experiments.image_reconstruction import IMAGE_RANGE, VARIANTS
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.experiments.training_job import JobResult
from lmser.models import CLmser

__all__ = ["gradient_norms", "gradient_parts", "run"]

NAME = "gradients"

# Chooses the subset of the training images, the same for every run.
_DATA_SEED = 0
_OPTIMIZERS = {"adam": "Adam, lr 0.01", "sgd": "SGD, lr 0.01"}
_START = "before the first step"
_TITLE = "Norm of the gradient, "


def gradient_parts(model: CLmser, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """``(up, down)``: for every edge the gradient of J with respect to the weight as the pass up uses it,
    and as the pass down does. With shared weights ``up[l] + down[l]`` is the gradient of the weight.

    The model is left as it is, and so are its gradients.
    """
    apart = copy.deepcopy(model)
    if apart.decoder_weights is None:
        apart.decoder_weights = nn.ParameterList([weight.detach().clone() for weight in apart.weights])
        apart.dcw = False
    with torch.enable_grad():
        found = torch.autograd.grad(apart.loss(images), [*apart.weights, *apart.decoder_weights])
    return list(found[: apart.depth]), list(found[apart.depth :])


def gradient_norms(model: CLmser, images: Tensor) -> dict[str, float]:
    """``"W 1"``, ``"up 1"``, ``"down 1"``, ...: the norms of the gradient of W_l (what trains it) and of its
    two terms."""
    up, down = gradient_parts(model, images.to(model.reconstruction_bias.device))
    found = {}
    for layer, (above, below) in enumerate(zip(up, down, strict=True), 1):
        found[f"W {layer}"] = float((above + below if model.dcw else above).norm())
        found[f"up {layer}"] = float(above.norm())
        found[f"down {layer}"] = float(below.norm())
    return found


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    train, _ = load_stl10(request.data, rows[0].data["per_class"], _DATA_SEED)
    trained = train_rows(
        request,
        rows,
        functools.partial(_job, images=_sized(train, rows[0]).to(request.device)),
        experiment=NAME,
        data={"train": train.sha256()},
    )
    stand_in = "" if train.name.startswith("STL10 (original") else "stand-in data"
    tables = (_start_table(trained, stand_in), *_training_tables(trained, stand_in))
    results = Results(
        experiment=NAME,
        title="Gradient norms by layer",
        summary=(
            f"Norm of the gradient of J (½ squared error, summed over pixels) with respect to each layer's "
            f"weight on one batch of {rows[0].evaluation['probe']} training images in [-1, 1]; without shared "
            "weights, the encoder's. up / down compares the two ends of the path that the error takes back: "
            "the gradient's term of the encoder's use of W_1 and that of the decoder's (where weights are not "
            "shared, of the decoder's own weight)."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tables,
        figures=_figures(request, trained),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": train.name,
            "training data sha256": train.sha256(),
            "configuration files sha256": checksum(rows),
        },
        notes=_dead(trained, request.seeds),
        claims=_claims(tables),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _depth(row: RowConfig) -> int:
    return len(row.model["channels"])


def _sized(train: ImageSet, row: RowConfig) -> Tensor:
    images, side = train.to_float(*IMAGE_RANGE), row.evaluation["side"]
    return images if images.shape[-1] == side else nn.functional.adaptive_avg_pool2d(images, side)


def _job(row: RowConfig, images: Tensor) -> Job:
    count = row.evaluation["probe"]
    probe = images[:: max(1, len(images) // count)][:count]  # some of every class
    return Job(
        data=images,
        loss=_sum_loss if row.objective["loss"] == "sum" else _mean_loss,
        evaluate=functools.partial(gradient_norms, images=probe),
        metrics=[f"{part} {layer + 1}" for layer in range(_depth(row)) for part in ("W", "up", "down")],
        pictures=lambda _: torch.empty(0),
        eval_at=row.evaluation["at"],
    )


def _sum_loss(model: nn.Module, images: Tensor) -> Tensor:
    loss: Tensor = model.loss(images)  # type: ignore[operator]
    return loss


def _mean_loss(model: nn.Module, images: Tensor) -> Tensor:
    return _sum_loss(model, images) / images[0].numel()


# Tables.


def _start_table(trained: Trained, stand_in: str) -> Table:
    """Optimisers share the start: the first table's rows tell it."""
    first = next(iter(trained)).table
    return _table(
        _START,
        {row: found for row, found in trained.items() if row.table == first},
        lambda job, name: job.metrics[0][name],
        stand_in,
    )


def _training_tables(trained: Trained, stand_in: str) -> list[Table]:
    tables = []
    for key, words in _OPTIMIZERS.items():
        rows = {row: found for row, found in trained.items() if row.table == key}
        if rows:
            first = next(iter(rows)).evaluation["first"]
            title = f"{words}, median over steps 0 ... {first}"
            tables.append(_table(title, rows, functools.partial(_early_median, first=first), stand_in))
    return tables


def _early_median(job: JobResult, name: str, *, first: int) -> float:
    """Not the mean: the first steps of Adam throw the norms about by decades, and one step would be it."""
    return statistics.median(values[name] for step, values in job.metrics.items() if step <= first)


def _table(title: str, rows: Trained, value: Callable[[JobResult, str], float], stand_in: str) -> Table:
    depth = _depth(next(iter(rows)))
    lines = []
    for row, found in rows.items():
        cells = [
            Cell(tuple(value(job, f"W {layer}") for job in found), digits=2) for layer in range(1, depth + 1)
        ]
        for above, below in (("W 1", f"W {depth}"), ("up 1", "down 1")):
            cells.append(
                Cell(tuple(_log_ratio(value(job, above), value(job, below)) for job in found), digits=2)
            )
        differs = ", ".join(filter(None, (row.differs, stand_in)))
        lines.append(Row(row.label, tuple(cells), differs=differs))
    columns = (
        *(f"W_{layer}" for layer in range(1, depth + 1)),
        f"log10(W_1 / W_{depth})",
        "log10(up / down at W_1)",
    )
    return Table(title=f"{_TITLE}{title}", columns=columns, rows=tuple(lines))


def _log_ratio(above: float, below: float) -> float:
    return math.log10(above / below) if above > 0 and below > 0 else math.nan


def _dead(trained: Trained, seeds: Sequence[int]) -> tuple[str, ...]:
    """Runs in which a gradient is exactly zero from some step to the end: units have died, which is not
    vanishing."""
    notes = []
    for row, found in trained.items():
        for seed, job in zip(seeds, found, strict=True):
            steps = sorted(job.metrics, reverse=True)
            zero = 0
            while zero < len(steps) and job.metrics[steps[zero]]["W 1"] == 0:
                zero += 1
            if zero:
                notes.append(
                    f"{row.label}, {_OPTIMIZERS[row.table]}, seed {seed}: from step {steps[zero - 1]} on the "
                    "gradient of W_1 is exactly zero on this batch: the ReLU units on its path have died, "
                    "which is another thing than vanishing with depth."
                )
    return tuple(notes)


# Claims.


def _claims(tables: Sequence[Table]) -> tuple[Claim, ...]:
    """001's three sentences, by each reading of the module, each held against the start and both
    optimisers."""
    if not all(set(VARIANTS) <= {row.label for row in table.rows} for table in tables):
        return ()
    claims = []
    columns = tables[0].columns
    for column in (columns[0], *columns[-2:]):
        groups = {
            table.title.removeprefix(_TITLE): {
                label: table.mean(columns.index(column), label) for label in VARIANTS
            }
            for table in tables
        }
        claims += [
            _higher("DCW eases the gradient vanishing problem", column, groups, "CLmser-n", "CLmser-w"),
            _higher("DPN eases the gradient vanishing problem", column, groups, "CLmser-w", "CLmser-n"),
            _main_role(column, groups),
        ]
    return tuple(claims)


def _higher(
    text: str, column: str, groups: Mapping[str, Mapping[str, float]], alone: str, other: str
) -> Claim:
    """`alone` has the duality alone, `other` the other duality alone: with it more than without, both
    times."""
    evidence = []
    confirmed = True
    for where, found in groups.items():
        shown = []
        for having, lacking in ((alone, "CAE"), ("CLmser", other)):
            confirmed &= found[having] > found[lacking]
            sign = ">" if found[having] > found[lacking] else "≤"
            shown.append(f"{having} {found[having]:.3g} {sign} {lacking} {found[lacking]:.3g}")
        evidence.append(f"{where}: {', '.join(shown)}")
    return Claim(f"{text}, read as {column}", "001 Sect. 4.2", confirmed, "; ".join(evidence))


def _main_role(column: str, groups: Mapping[str, Mapping[str, float]]) -> Claim:
    """From CAE, DPN alone takes the value higher than DCW alone does."""
    return Claim(
        f"DPN plays the main role, read as {column}",
        "001 Sects. 4.2 and 5.2",
        all(found["CLmser-w"] > found["CLmser-n"] for found in groups.values()),
        "; ".join(
            f"{where}: CAE {found['CAE']:.3g}, with DPN alone {found['CLmser-w']:.3g}, with DCW alone "
            f"{found['CLmser-n']:.3g}"
            for where, found in groups.items()
        ),
    )


# Figures.


def _figures(request: Request, trained: Trained) -> tuple[Figure, ...]:
    figures: list[Figure] = []
    for key, words in _OPTIMIZERS.items():
        found = {row: jobs[0] for row, jobs in trained.items() if row.table == key}
        if not found:
            continue
        if not figures:
            figures.append(_path_figure(request, found))
        depth = _depth(next(iter(found)))
        panels = {
            f"W_{layer}": {
                row.label: [
                    (step, values[f"W {layer}"])
                    for step, values in job.metrics.items()
                    if not math.isnan(values[f"W {layer}"])
                ]
                for row, job in found.items()
            }
            for layer in range(1, depth + 1)
        }
        name = f"figures/training-{key}.svg"
        first = next(iter(found)).evaluation["first"]
        drawn = line_panels(name, panels, x_label="step", y_label="norm of the gradient", symlog=first)
        save_figure(request.out / name, drawn)
        figures.append(
            Figure(
                name,
                f"Norm of each layer's gradient during training, {words}",
                f"Seed {request.seeds[0]}; steps up to {first} on a linear scale, later ones on a logarithmic "
                "one. A line that ends is a gradient of zero: dead units.",
                f"Panels: {', '.join(panels)}; lines: {', '.join(row.label for row in found)}",
            )
        )
    return tuple(figures)


def _path_figure(request: Request, found: Mapping[RowConfig, JobResult]) -> Figure:
    """Both terms in the order in which the error passes them, at the start and at the end."""
    depth = _depth(next(iter(found)))
    places = [f"down {layer + 1}" for layer in range(depth)] + [
        f"up {layer}" for layer in range(depth, 0, -1)
    ]
    last = max(step for job in found.values() for step in job.metrics)
    panels = {
        f"{'before the first step' if step == 0 else f'after step {step}'}": {
            row.label: [(x, job.metrics[step][place]) for x, place in enumerate(places)]
            for row, job in found.items()
        }
        for step in (0, last)
    }
    name = "figures/path.svg"
    ticks = [place.replace("down ", "↓").replace("up ", "↑") for place in places]
    drawn = line_panels(
        name, panels, x_label="use of a weight, from the error on", y_label="norm of its term", ticks=ticks
    )
    save_figure(request.out / name, drawn)
    return Figure(
        name,
        "The gradient's terms along the path of the error",
        f"↓l is the term of W_l as the decoder uses it, ↑l as the encoder does; the error meets ↓1 first and ↑1 "
        f"last. {_OPTIMIZERS[next(iter(found)).table]}, seed {request.seeds[0]}. A line "
        "that breaks is a gradient of zero.",
        f"Lines: {', '.join(row.label for row in found)}",
    )
