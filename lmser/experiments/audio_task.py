"""Segments of recordings as 003's audio experiment trains on and measures them.

Every segment has its mean taken off and is brought to a root mean square of 0.1 of full scale. The paper says nothing
about either.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from lmser.data import AudioSegments, AudioSplit

__all__ = ["LEVEL", "PARTS", "AudioTask", "levelled"]

LEVEL = 0.1
PARTS = ("train", "valid", "test")

_SILENCE = 1e-4  # a quieter segment is amplified no further
_CHUNK = 500


def levelled(x: Tensor) -> Tensor:
    """Waveforms ``(..., T)`` without their mean, at a root mean square of `LEVEL`."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * (LEVEL / centred.square().mean(-1, keepdim=True).sqrt().clamp_min(_SILENCE))


class AudioTask:
    """Training data and measures for the rows of one data set. The recordings are on the device, each once."""

    def __init__(self, split: AudioSplit, device: torch.device | str) -> None:
        self.parts = {name: part.to(device) for name, part in zip(PARTS, split, strict=True)}

    @property
    def train(self) -> AudioSegments:
        return self.parts["train"]

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """What training draws batches from: the numbers of the segments, and their labels."""
        return torch.arange(len(self.train), device=self.train.labels.device), self.train.labels

    def transform(self, index: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The waveforms of a batch ``(n, 1, 1, length)``, and its labels."""
        return levelled(self.train.waveforms(index)), labels

    @torch.no_grad()
    def measure(self, network: nn.Module) -> dict[str, float]:
        """Percent of the segments of each of `PARTS` that `network` classifies rightly."""
        return {name: self._accuracy(network, part) for name, part in self.parts.items()}

    def _accuracy(self, network: nn.Module, part: AudioSegments) -> float:
        right = 0
        for index in torch.arange(len(part), device=part.labels.device).split(_CHUNK):
            found = network(levelled(part.waveforms(index))).argmax(1)
            right += int((found == part.labels[index]).sum())
        return 100 * right / len(part)

    @functools.cached_property
    def chance(self) -> float:
        """Percent of the test segments that are right where all are given the training part's most frequent class."""
        test = self.parts["test"].labels
        return 100 * float((test == self.train.labels.bincount().argmax()).double().mean())
