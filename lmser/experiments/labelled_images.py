"""A labelled data set as the experiments with class units read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lmser.data import ImageSet

__all__ = ["UNIT_RANGE", "LabelledImages"]

UNIT_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class LabelledImages:
    """Images ``(N, C, H, W)`` on [0, 1] and labels ``(N,)``; the training part is on the device of the run.

    shown, shown_labels: the first test image of each class, for the figures.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    shown: Tensor
    shown_labels: Tensor

    @classmethod
    def of(cls, train: ImageSet, test: ImageSet, device: torch.device | str) -> Self:
        images = test.to_float(*UNIT_RANGE)
        first = torch.stack([(test.labels == label).nonzero()[0, 0] for label in test.labels.unique()])
        return cls(
            train=train.to_float(*UNIT_RANGE).to(device),
            train_labels=train.labels.to(device),
            test=images,
            test_labels=test.labels,
            shown=images[first],
            shown_labels=test.labels[first],
        )
