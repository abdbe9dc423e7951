"""The fused CLmser against its eager twin: time and peak memory of a training step, measured in this run.

Contenders run on the same images from the same weights, verified and timed by `lmser.contest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmser.baselines import EagerCLmser
from lmser.contest import Contender, Timing, contest, full_float32
from lmser.experiments.image_reconstruction import CHANNELS, STRIDES
from lmser.experiments.step_memory import CONTENDERS, contender, peak_of_step, training_step
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import CLmser

__all__ = ["StepCost", "compare_steps", "comparison_table"]

# float32 through ten layers: eager itself is within 1e-5 of float64.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class StepCost:
    """One contender's timed steps, and peak bytes of a step (None: unknown)."""

    timing: Timing
    peak_bytes: int | None


def compare_steps(batch: int, size: int, repeats: int, device: str = "cpu") -> list[StepCost]:
    """Time `repeats` training steps of each of `CONTENDERS` on `batch` random images of `size` x `size`
    pixels, in float32 proper also on a GPU (`lmser.contest.full_float32`).

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
    with full_float32(images.device):
        timings = _timed(built, oracle, images, repeats)
    return [StepCost(timings[name], peak_of_step(name, batch, size, device)) for name in CONTENDERS]


def _timed(
    built: Mapping[str, tuple[CLmser, Tensor]], oracle: CLmser, images: Tensor, repeats: int
) -> dict[str, Timing]:
    batch = len(images)
    sample = slice(0, min(2, batch))  # float64 is slow, and two images take every code path that fifty do
    wanted = _loss_and_gradients(oracle, images[sample].double())

    def contestant(name: str) -> Contender:
        model, own_images = built[name]
        step = training_step(model)
        return Contender(
            name, lambda: _loss_and_gradients(model, own_images[sample]), lambda: step(own_images)
        )

    return contest([contestant(name) for name in CONTENDERS], wanted, tolerance=_TOLERANCE, repeats=repeats)


def comparison_table(costs: list[StepCost], *, batch: int, size: int, machine: dict[str, str]) -> Table:
    """What `compare_steps` found, for a report: the ratio is to the better of the eager contenders."""
    eager = min(cost.timing.median for cost in costs if cost.timing.name != "fused")
    rows = []
    for cost in costs:
        timing = cost.timing
        spread = (max(timing.seconds) - min(timing.seconds)) * 1e3
        memory = () if cost.peak_bytes is None else (cost.peak_bytes / 2**20,)
        rows.append(
            Row(
                timing.name,
                (
                    Cell((timing.median * 1e3,), digits=1),
                    Cell((spread,), digits=1),
                    Cell((eager / timing.median,), digits=2),
                    Cell(memory, digits=0),
                    Cell((timing.error * 1e6,), digits=1),
                ),
            )
        )
    return Table(
        title=f"One training step of CLmser, batch {batch}, {size}x{size} pixels, float32",
        columns=("median ms", "max - min ms", "speed-up over best eager", "peak MiB", "error x 1e6"),
        rows=tuple(rows),
        header="contender",
        notes=(
            f"Forward, backward and Adam; {len(costs[0].timing.seconds)} steps each, contenders alternating, "
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
