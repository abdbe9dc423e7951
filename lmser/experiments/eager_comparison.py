"""The fused CLmser against its eager twin: time and peak memory of a training step, measured in this run.

Contenders alternate (A B C A B C …) on the same images from the same weights, and medians are compared, so
that what else the machine does falls on all of them alike. No speed is returned unless every contender's
loss and gradients agree with the eager twin in float64.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from lmser.baselines import EagerCLmser
from lmser.experiments.image_reconstruction import CHANNELS, STRIDES
from lmser.experiments.step_memory import CONTENDERS, contender, peak_of_step, training_step
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import CLmser

__all__ = ["StepCost", "compare_steps", "comparison_table"]

# float32 through ten layers: eager itself is within 1e-5 of float64.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class StepCost:
    """One contender: seconds of each timed step, peak bytes of a step (None: unknown), error against
    float64."""

    name: str
    seconds: tuple[float, ...]
    peak_bytes: int | None
    error: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compare_steps(batch: int, size: int, repeats: int, device: str = "cpu") -> list[StepCost]:
    """Time `repeats` training steps of each of `CONTENDERS` on `batch` random images of `size` x `size`
    pixels.

    Raises ArithmeticError, and times nothing, where a contender's loss or gradients are wrong.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = (torch.rand(batch, 3, size, size) * 2 - 1).to(device)
        oracle = EagerCLmser(3, CHANNELS, STRIDES)
    state = oracle.state_dict()
    built = {}
    for name in CONTENDERS:
        model, own_images = contender(name, images)
        model.load_state_dict(state)
        built[name] = (model, own_images)
    oracle = oracle.to(images.device, torch.float64)
    sample = slice(0, min(2, batch))  # float64 is slow, and two images take every code path that fifty do
    wanted = _loss_and_gradients(oracle, images[sample].double())
    errors = {}
    for name, (model, own_images) in built.items():
        errors[name] = _error(_loss_and_gradients(model, own_images[sample]), wanted)
        if not errors[name] < _TOLERANCE:
            raise ArithmeticError(
                f"{name!r} is off by {errors[name]:.1e} from float64, more than {_TOLERANCE}: "
                "its speed means nothing"
            )
    steps = {name: training_step(model) for name, (model, _) in built.items()}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = perf_counter()
            step(built[name][1])
            if repeat > 0:  # the first is a warm-up
                seconds[name].append(perf_counter() - start)
    return [
        StepCost(name, tuple(seconds[name]), peak_of_step(name, batch, size, device), errors[name])
        for name in CONTENDERS
    ]


def comparison_table(costs: list[StepCost], *, batch: int, size: int, machine: dict[str, str]) -> Table:
    """What `compare_steps` found, for a report: the ratio is to the better of the eager contenders."""
    eager = min(cost.median for cost in costs if cost.name != "fused")
    rows = []
    for cost in costs:
        spread = (max(cost.seconds) - min(cost.seconds)) * 1e3
        memory = () if cost.peak_bytes is None else (cost.peak_bytes / 2**20,)
        rows.append(
            Row(
                cost.name,
                (
                    Cell((cost.median * 1e3,), digits=1),
                    Cell((spread,), digits=1),
                    Cell((eager / cost.median,), digits=2),
                    Cell(memory, digits=0),
                    Cell((cost.error * 1e6,), digits=1),
                ),
            )
        )
    return Table(
        title=f"One training step of CLmser, batch {batch}, {size}x{size} pixels, float32",
        columns=("median ms", "max - min ms", "speed-up over best eager", "peak MiB", "error x 1e6"),
        rows=tuple(rows),
        header="contender",
        notes=(
            f"Forward, backward and Adam; {len(costs[0].seconds)} steps each, contenders alternating, "
            f"after one warm-up, {machine['threads']} threads, {machine['processor']}.",
            "Peak: most memory of the process during a step above what it held before, each contender in a "
            "fresh process (Linux resident set on a CPU, torch's allocator on CUDA). Error: of loss and "
            "gradients, relative to float64.",
        ),
    )


def _loss_and_gradients(model: CLmser, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss = model.loss(images)
    loss.backward()
    found = [loss.detach().double(), *(p.grad.double() for p in model.parameters() if p.grad is not None)]
    model.zero_grad()
    return found


def _error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest over the tensors of ‖found - wanted‖ / ‖wanted‖; NaN where anything is."""
    ratios = [(f - w).norm() / w.norm() for f, w in zip(found, wanted, strict=True)]
    return float(torch.stack(ratios).max())
