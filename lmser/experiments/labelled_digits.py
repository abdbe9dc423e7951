"""Digits with label units as one visible state (004, Sect. 4.2 and App. D.2).

812 units = 784 pixels, row by row, and 28 label units, "using the first 20 by redundantly coding the class label
in pairs of units, and ignoring the final 8 units". Pixels are scaled from [0, 1] to [-0.999, 0.999]. Of the
label units, 2c and 2c + 1 are 0.999 for class c and all others -0.999; the final 8 always are -0.999. Evidence
never includes a label unit, so settling has to fill them in like any missing pixel, and the class is read from
what they become. As a picture the state is 29x28 with the label in the bottom row, as in the paper's Fig. 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "CLASSES",
    "HIGHEST",
    "LABEL_UNITS",
    "PIXELS",
    "UNITS",
    "digits_of",
    "label_sums",
    "observed_units",
    "read_classes",
    "visible_pictures",
    "visible_targets",
]

CLASSES = 10
PIXELS = 28 * 28
LABEL_UNITS = 28
UNITS = PIXELS + LABEL_UNITS
HIGHEST = 0.999
"""The largest target, and the negative of the smallest: inside the range of tanh, whose inverse is finite there."""


def visible_targets(images: Tensor, labels: Tensor) -> Tensor:
    """The visible states `(N, 812)` of images `(N, 1, 28, 28)` on [0, 1] and labels int64 `(N,)` in 0..9, in the
    dtype and on the device of the images.

    Errors: ValueError naming the argument for another shape, a dtype that is not floating, or labels outside
    0..9.
    """
    if not images.is_floating_point() or images.shape[1:] != (1, 28, 28):
        raise ValueError(
            "visible_targets: images must be floating of shape (N, 1, 28, 28), "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    if labels.dtype is not torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"visible_targets: labels must be int64 of shape ({len(images)},), "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < CLASSES:
        raise ValueError(
            f"visible_targets: labels must lie in 0..9, got {int(labels.min())}..{int(labels.max())}"
        )
    visible = images.new_full((len(images), UNITS), -HIGHEST)
    visible[:, :PIXELS] = HIGHEST * (2 * images.flatten(1) - 1)
    pair = PIXELS + 2 * labels.to(images.device).unsqueeze(1)
    visible.scatter_(1, torch.cat([pair, pair + 1], dim=1), HIGHEST)
    return visible


def observed_units(missing: Tensor) -> Tensor:
    """Which units are evidence, bool `(N, 812)`: the pixels that are not `missing`, and no label unit.

    missing: bool `(N, 1, 28, 28)`, True where a pixel is missing, as `lmser.data.perlin_masks` gives it; all
    False for whole images. Errors: ValueError for another dtype or shape.
    """
    if missing.dtype is not torch.bool or missing.shape[1:] != (1, 28, 28):
        raise ValueError(
            "observed_units: missing must be bool of shape (N, 1, 28, 28), "
            f"got {missing.dtype} {tuple(missing.shape)}"
        )
    observed = missing.new_zeros((len(missing), UNITS))
    observed[:, :PIXELS] = ~missing.flatten(1)
    return observed


def label_sums(visible: Tensor) -> Tensor:
    """The sum of the pair of label units of each class, `(N, 10)`, of states `(N, 812)`, as settled.

    A trailing 1x1, the shape of fully connected states, is taken as well. Errors: ValueError for another
    shape.
    """
    return _flat("label_sums", visible)[:, PIXELS : PIXELS + 2 * CLASSES].reshape(-1, CLASSES, 2).sum(dim=2)


def read_classes(visible: Tensor) -> Tensor:
    """The class whose pair of label units has the largest sum, int64 `(N,)`; the first of equal ones.

    Errors: as `label_sums`.
    """
    return label_sums(visible).argmax(dim=1)


def digits_of(visible: Tensor) -> Tensor:
    """The pixels of states `(N, 812)` as images `(N, 1, 28, 28)` on [0, 1], the inverse of `visible_targets`;
    what settled beyond 0.999 is a little outside.

    Errors: as `label_sums`.
    """
    pixels = _flat("digits_of", visible)[:, :PIXELS]
    return ((pixels / HIGHEST + 1) / 2).reshape(-1, 1, 28, 28)


def visible_pictures(visible: Tensor) -> Tensor:
    """States `(N, 812)` as pictures `(N, 1, 29, 28)` on [0, 1], the label units in the bottom row.

    Errors: as `label_sums`.
    """
    return ((_flat("visible_pictures", visible) / HIGHEST + 1) / 2).reshape(-1, 1, 29, 28)


def _flat(function: str, visible: Tensor) -> Tensor:
    if visible.shape[1:] not in ((UNITS,), (UNITS, 1, 1)):
        raise ValueError(f"{function}: visible must have shape (N, {UNITS}), got {tuple(visible.shape)}")
    return visible.flatten(1)
