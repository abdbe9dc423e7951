"""Where a classifier is wrong: which class it takes for which, and how sure of it it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmser.experiments.generated import predicted

__all__ = ["ClassErrors", "class_errors"]


@dataclass(frozen=True)
class ClassErrors:
    """What a classifier gets wrong; shares in percent.

    accuracy:  the share of all images that is right
    right:     the same of the images of each class, NaN for a class without any
    worst:     the class of which the smallest share is right, the first of equal ones
    taken_for: the wrong class that most images of `worst` are given, the first of equal ones
    one_kind:  the share of all wrong images that belong to `worst` and are given `taken_for`
    certainty: the mean probability, 0 to 1, that a wrong image is given for its wrong class

    The last two are NaN where nothing is wrong.
    """

    accuracy: float
    right: tuple[float, ...]
    worst: int
    taken_for: int
    one_kind: float
    certainty: float


@torch.no_grad()
def class_errors(classifier: nn.Module, images: Tensor, labels: Tensor) -> ClassErrors:
    """The errors of a classifier of two classes or more on `images` with `labels`, int64 ``(N,)``, N > 0."""
    logits, labels = predicted(classifier, images), labels.cpu()
    classes = logits.shape[1]
    probability, found = logits.softmax(1).max(1)
    count = torch.bincount(labels * classes + found, minlength=classes * classes).view(classes, classes)
    right = 100 * count.diagonal().double() / count.sum(1)
    worst = int(right.nan_to_num(math.inf).argmin())
    others = count[worst].clone()
    others[worst] = -1
    wrong = found != labels
    return ClassErrors(
        accuracy=100 * float((~wrong).double().mean()),
        right=tuple(right.tolist()),
        worst=worst,
        taken_for=int(others.argmax()),
        one_kind=100 * int(others.max()) / int(wrong.sum()) if wrong.any() else math.nan,
        certainty=float(probability[wrong].double().mean()),
    )
