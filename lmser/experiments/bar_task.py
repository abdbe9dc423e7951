"""The bar task as the experiments train and measure it (004 Sect. 4.1, App. D.1).

A batch holds each of the 20 images equally often, with evidence drawn anew for every image of it by the run's
own generator. The test is 10,000 trials that no run and no network changes. In it every image settles by
itself, as 004 defines stability "for a given input", to 0.01 in at most 100 iterations, however far its network was
settled in training.

004's "99.995 % correct" of 10,000 states cannot be a share of whole images, which comes in hundredths of a
percent, unless it is a mean over several networks; of the 250,000 pixels it leaves 12 or 13 wrong ones. Both
shares are measured. A pixel is right when its sign is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lmser.data import bar_images, bar_trials
from lmser.data.bars import BarTrials, unique_evidence, unseen_bars
from lmser.experiments.rows import RowConfig
from lmser.models import AttractorNetwork

__all__ = [
    "FIRST",
    "IMAGES",
    "MAX_STEPS",
    "METRICS",
    "MISSING",
    "OFF",
    "PIXELS",
    "SECOND",
    "SWEEPS",
    "THETA",
    "UNSEEN",
    "BarTask",
    "bar_batch",
    "fixed_trials",
    "shown_trials",
]

IMAGES = "images right"
PIXELS = "pixels right"
MISSING = "missing pixels right"
FIRST = "images after iteration 1"
SECOND = "images after iteration 2"
UNSEEN = "images with an unseen bar"
SWEEPS = "iterations"
OFF = "observed pixels off by"
METRICS = (IMAGES, PIXELS, MISSING, FIRST, SECOND, UNSEEN, SWEEPS, OFF)
"""Shares in percent; `UNSEEN` is that of the trials whose evidence has no pixel of one bar or of both; `SWEEPS` a mean
over the trials; `OFF` the root mean square by which observed pixels settle away from what was observed."""

_TRIALS = 10_000
_TEST_SEED = 4_001_000
_CHUNK = 2500

THETA, MAX_STEPS = 0.01, 100
"""When a test image is settled."""


def fixed_trials(count: int = _TRIALS) -> BarTrials:
    """The trials of the test, or the first `count` of them."""
    trials = bar_trials(_TRIALS, torch.Generator().manual_seed(_TEST_SEED))
    return BarTrials(trials.answer[:count], trials.observed[:count])


def bar_batch(index: Tensor, *, uneven: float = 0.0) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, 5, 5)`` of these numbers, and new evidence for them (bool, True where observed), which
    torch's global generator decides; `uneven` as in `lmser.data.bars.unique_evidence`."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    numbers = index.cpu()
    observed = unique_evidence(numbers, generator, uneven=uneven)
    return bar_images()[numbers].to(index.device), observed.to(index.device)


class BarTask:
    """Training data and measures for rows with ``[data] name = "bars"``; ``trials`` limits the test."""

    def __init__(self, trials: int = _TRIALS) -> None:
        self.trials = fixed_trials(trials)
        self.targets = bar_images()[self.trials.answer]

    def data(self, row: RowConfig, device: torch.device | str) -> Tensor:
        """Numbers of images, as many as a batch has. ValueError where that is not each of the 20 equally
        often."""
        size = row.training["batch_size"]
        if size % 20:
            raise ValueError(f"{row.path}: batch_size: expected a multiple of 20, got {size}")
        return torch.arange(20).repeat(size // 20).to(device)

    @torch.no_grad()
    def measure(self, network: nn.Module) -> dict[str, float]:
        """The `METRICS` of a network."""
        assert isinstance(network, AttractorNetwork)
        device = next(network.parameters()).device
        wrong: list[Tensor] = []
        first: list[Tensor] = []
        second: list[Tensor] = []
        sweeps = off = 0.0
        for targets, observed in zip(
            self.targets.split(_CHUNK), self.trials.observed.split(_CHUNK), strict=True
        ):
            given, seen = targets.to(device), observed.to(device)
            settled = network.complete(given, seen, theta=THETA, max_steps=MAX_STEPS, per_sample=True)
            found = network.read(settled).cpu()
            wrong.append(_wrong(found, targets))
            off += float((found - targets)[observed].double().square().sum())
            sweeps += float(settled.steps.sum())
            for kept, most in ((first, 1), (second, 2)):
                early = network.complete(given, seen, theta=THETA, max_steps=most, per_sample=True)
                kept.append(_wrong(network.read(early), targets))
        pixels = torch.cat(wrong)
        whole = ~pixels.any(1)
        missing = ~self.trials.observed.flatten(1)
        unseen = unseen_bars(self.trials.answer, self.trials.observed) > 0
        return {
            IMAGES: _percent(whole),
            PIXELS: _percent(~pixels),
            MISSING: _percent(~pixels[missing]),
            FIRST: _percent(~torch.cat(first).any(1)),
            SECOND: _percent(~torch.cat(second).any(1)),
            UNSEEN: _percent(whole[unseen]),
            SWEEPS: sweeps / len(pixels),
            OFF: (off / max(1, int((~missing).sum()))) ** 0.5,
        }


def _wrong(found: Tensor, wanted: Tensor) -> Tensor:
    # NaN has no sign and is wrong.
    return ~(found.sign() == wanted.sign()).flatten(1)


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def shown_trials(count: int) -> Mapping[str, Tensor]:
    """Trials of the test with at most 12 observed pixels: half of them with an unseen bar, then others."""
    trials = fixed_trials()
    hard = unseen_bars(trials.answer, trials.observed) > 0
    few = trials.observed.flatten(1).sum(1) <= 12
    parts = (hard & few).nonzero()[: count // 2, 0], (~hard & few).nonzero()[: count - count // 2, 0]
    chosen = torch.cat(parts)
    return {"target": bar_images()[trials.answer[chosen]], "observed": trials.observed[chosen]}
