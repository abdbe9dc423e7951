"""Digits with label units as the experiments train and measure them (004 Sect. 4.2, App. D.2).

The visible state is `lmser.experiments.labelled_digits`'s. A row's ``[data] missing`` is the share of pixels that
thresholded Perlin noise of frequency 7 takes away, 0 for none; label units are never observed. Every image of a batch
gets a new mask, drawn by the run's own generator; every test image has one that no run and no network changes. A
row's ``[data] shift``, 0 where there is none, moves every image of a batch by up to so many pixels in both
directions, black coming in; no test image is moved. In a test every image settles by itself, to 0.01 in at most 100
iterations, however far its network was settled in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.data import ImageSet, perlin_masks
from lmser.experiments.bar_task import MAX_STEPS, OFF, SWEEPS, THETA
from lmser.experiments.labelled_digits import (
    HIGHEST,
    PIXELS,
    observed_units,
    read_classes,
    visible_pictures,
    visible_targets,
)
from lmser.experiments.networks import build_network
from lmser.models import FBAN, AttractorNetwork
from lmser_kernels import Settled

__all__ = ["ERROR", "FULL", "MASKED", "METRICS", "MISSING", "OFF", "SWEEPS", "DigitTask"]

MISSING = 1 / 3
FREQUENCY = 7

MASKED = "accuracy, masked"
FULL = "accuracy, whole images"
ERROR = "MSE of missing pixels"
METRICS = (MASKED, FULL, ERROR, OFF, SWEEPS)

_TEST_SEED = 4_002_000
_SIDE = 28
_CHUNK = 500


class DigitTask:
    """Training data and measures for rows with ``[data] name = "mnist"``.

    train, test: the digits; `count` limits the test images.
    """

    def __init__(
        self, train: ImageSet, test: ImageSet, device: torch.device | str, count: int | None = None
    ) -> None:
        self.train = visible_targets(train.to_float(0.0, 1.0), train.labels).to(device)
        images = test if count is None else test.take(torch.arange(min(count, len(test))))
        self.targets = visible_targets(images.to_float(0.0, 1.0), images.labels)
        self.labels = images.labels
        self.masked = observed_units(
            perlin_masks(
                len(test), _SIDE, MISSING, torch.Generator().manual_seed(_TEST_SEED), frequency=FREQUENCY
            )[: len(images)]
        )
        self.whole = torch.zeros_like(self.masked)
        self.whole[:, :PIXELS] = True
        self.mean_error = self._error_of_mean()

    def build(self, model: Mapping[str, Any]) -> nn.Module:
        """The network of a row's ``[model]``, on the CPU; one with ``centred = true`` is centred on the mean of the
        training pixels, and of label units, which nobody sees, on 0."""
        network = build_network(model)
        if model.get("centred"):
            assert isinstance(network, FBAN)
            centre = self.train.mean(0)
            centre[PIXELS:] = 0
            network.centre_on(centre)
        return network

    def _error_of_mean(self) -> float:
        """MSE of the mean training image in the missing pixels of the test."""
        missing = ~self.masked[:, :PIXELS]
        off = self.targets[:, :PIXELS] - self.train[:, :PIXELS].mean(0).cpu()
        return float(off[missing].square().mean())

    def transform(self, share: float, shift: int = 0) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Batch of visible states -> the batch, moved where `shift` asks for it, and new evidence for it, with a share
        of the pixels missing. ValueError for a `shift` that is no whole number from 0 to 27."""
        if not isinstance(shift, int) or isinstance(shift, bool) or not 0 <= shift < _SIDE:
            raise ValueError(f"shift: expected a whole number of pixels from 0 to {_SIDE - 1}, got {shift!r}")

        def damaged(targets: Tensor) -> tuple[Tensor, Tensor]:
            if shift:
                targets = _moved(targets, shift)
            if share == 0:
                observed = torch.zeros_like(targets, dtype=torch.bool)
                observed[:, :PIXELS] = True
                return targets, observed
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            missing = perlin_masks(len(targets), _SIDE, share, generator, frequency=FREQUENCY)
            return targets, observed_units(missing).to(targets.device)

        return damaged

    @torch.no_grad()
    def measure(self, network: nn.Module, *, masked: bool = True) -> dict[str, float]:
        """The `METRICS` of a network: accuracies in percent, the mean squared error of missing pixels, on [-0.999,
        0.999], the root mean square by which observed ones are off, and the mean number of iterations.

        All but `FULL` are those of masked images; without `masked` there are only `FULL` and the iterations, of whole
        ones.
        """
        whole = self._settled(network, self.whole)
        if not masked:
            return {name: whole[name] for name in (FULL, SWEEPS)}
        found = self._settled(network, self.masked)
        return {
            MASKED: found[FULL],
            FULL: whole[FULL],
            **{name: found[name] for name in (ERROR, OFF, SWEEPS)},
        }

    def _settled(self, network: nn.Module, observed: Tensor) -> dict[str, float]:
        assert isinstance(network, AttractorNetwork)
        device = next(network.parameters()).device
        right = sweeps = missing = off = 0.0
        for start in range(0, len(self.targets), _CHUNK):
            part = slice(start, start + _CHUNK)
            targets, seen = self.targets[part], observed[part]
            settled = _settled(network, targets.to(device), seen.to(device))
            found = network.read(settled).cpu()
            right += float((read_classes(found) == self.labels[part]).sum())
            sweeps += float(settled.steps.sum())
            squared = (found - targets)[:, :PIXELS].double().square()
            missing += float(squared[~seen[:, :PIXELS]].sum())
            off += float(squared[seen[:, :PIXELS]].sum())
        pixels = float(observed[:, :PIXELS].sum())
        absent = len(self.targets) * PIXELS - pixels
        return {
            FULL: 100 * right / len(self.targets),
            ERROR: missing / absent if absent else 0.0,
            OFF: (off / pixels) ** 0.5,
            SWEEPS: sweeps / len(self.targets),
        }

    @torch.no_grad()
    def completions(self, network: nn.Module, count: int, *, masked: bool = True) -> Tensor:
        """Completions and dreams of the first `count` test images, ``(2, count, 1, 29, 28)``, on the CPU."""
        assert isinstance(network, AttractorNetwork)
        device = next(network.parameters()).device
        seen = (self.masked if masked else self.whole)[:count]
        settled = _settled(network, self.targets[:count].to(device), seen.to(device))
        shown = torch.stack([network.read(settled), network.dream(settled)]).cpu()
        return torch.stack([visible_pictures(part) for part in shown])

    def shown(self, count: int, *, masked: bool = True) -> Mapping[str, Tensor]:
        """The same images as targets ``(count, 1, 29, 28)``, and which of their units are observed."""
        seen = (self.masked if masked else self.whole)[:count]
        return {
            "target": visible_pictures(self.targets[:count]),
            "observed": seen.reshape(-1, 1, _SIDE + 1, _SIDE),
        }


def _moved(targets: Tensor, most: int) -> Tensor:
    """Visible states with every image moved by -most ... most pixels in both directions, each equally likely; torch's
    global generator decides."""
    by = torch.randint(-most, most + 1, (2, len(targets), 1)).to(targets.device)
    place = torch.arange(_SIDE, device=targets.device)
    rows, columns = (place + by[0] + most, place + by[1] + most)
    images = targets[:, :PIXELS].reshape(-1, _SIDE, _SIDE)
    framed = F.pad(images, (most,) * 4, value=-HIGHEST)
    which = torch.arange(len(targets), device=targets.device)
    moved = framed[which[:, None, None], rows[:, :, None], columns[:, None, :]]
    return torch.cat([moved.flatten(1), targets[:, PIXELS:]], 1)


def _settled(network: AttractorNetwork, targets: Tensor, observed: Tensor) -> Settled:
    return network.complete(targets, observed, theta=THETA, max_steps=MAX_STEPS, per_sample=True)
