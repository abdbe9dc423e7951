"""The bar task (004, Sect. 4.1): 5x5 images of two horizontal or two vertical bars, and evidence for one of them.

There are 2 x 10 images: two of the five rows, or two of the five columns, are white and the rest is black.
White is +1 and black is -1, the ends of the range of the visible units. Images 0-9 have horizontal bars,
images 10-19 are their transposes; within each ten the pairs of rows are in the order (0, 1), (0, 2), …, (3, 4).

Evidence is a subset of the pixels. 004 generates it "such that only one consistent completion exists" and
gives no distribution; here, for an image, a share is drawn uniformly from [0, 1] and every pixel is observed
with this probability, again and again until exactly one of the 20 images agrees with what is observed. So
before rejection every number of observed pixels from 0 to 25 is equally likely. Rows, columns and the two
directions can be exchanged, so every image is accepted equally often. 79 % of the draws are accepted.

Training may ask for `uneven` evidence now and then: a share of its own for each of the five rows, or for each of the
five columns. Then a row that is seen almost whole stands beside one of which a single pixel is, which is rare where
one share holds for the image.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from lmser.data._checks import check_count, check_generator

__all__ = ["SIDE", "BarTrials", "bar_images", "bar_trials", "consistent", "unique_evidence", "unseen_bars"]

SIDE = 5
_PIXELS = SIDE * SIDE


class BarTrials(NamedTuple):
    """Trials of the task.

    answer:   int64 `(N,)`, the number of the image that is meant, 0..19
    observed: bool `(N, 1, 5, 5)`, True where its pixel is given
    """

    answer: Tensor
    observed: Tensor


def bar_images(dtype: torch.dtype = torch.float32) -> Tensor:
    """All 20 images, `(20, 1, 5, 5)`, +1 on a bar and -1 elsewhere. Errors: ValueError unless `dtype` is
    floating."""
    if not dtype.is_floating_point:
        raise ValueError(f"bar_images: dtype must be a floating type, got {dtype}")
    images = torch.full((20, 1, SIDE, SIDE), -1.0, dtype=dtype)
    for number, rows in enumerate(combinations(range(SIDE), 2)):
        images[number, 0, list(rows), :] = 1
        images[10 + number, 0, :, list(rows)] = 1
    return images


def consistent(evidence: Tensor, observed: Tensor) -> Tensor:
    """How many of the 20 images agree with the evidence, int64 `(N,)`, by comparison with each.

    evidence: `(N, 1, 5, 5)` of real numbers; a positive pixel is white, any other black. Only the observed
    pixels are looked at. observed: bool `(N, 1, 5, 5)`. 0 means that the evidence contradicts every image.

    Errors: ValueError for another shape, or a mask that is not bool.
    """
    _check_pixels("consistent", "observed", observed)
    if evidence.shape != observed.shape:
        raise ValueError(
            f"consistent: evidence must have the shape of observed, {tuple(observed.shape)}, "
            f"got {tuple(evidence.shape)}"
        )
    return _agreeing(evidence > 0, observed)


def _agreeing(white: Tensor, observed: Tensor) -> Tensor:
    # Sums of at most 25 numbers +1, -1 and 0: exact in float32, in any order.
    seen = observed.flatten(1).float()
    signs = torch.where(white.flatten(1), seen, -seen)
    images = bar_images().flatten(1).to(seen.device)
    return (signs @ images.T == seen.sum(dim=1, keepdim=True)).sum(dim=1)


def unique_evidence(index: Tensor, generator: torch.Generator, *, uneven: float = 0.0) -> Tensor:
    """For each image of `index` (int64 `(N,)`) a random set of observed pixels, bool `(N, 1, 5, 5)`, with
    which no other image is consistent.

    The distribution is that of the module's docstring; `uneven` is the probability with which a draw has one share for
    each row or for each column, either equally often, in the place of one for the image. Some of these leave a bar
    without any observed pixel (`unseen_bars` counts them), so that it must be inferred from black ones. Errors:
    TypeError or ValueError naming the argument for an index that is not int64 in 0..19, a generator that is not the
    CPU's, or an `uneven` that is not between 0 and 1.
    """
    _check_index("unique_evidence", index)
    check_generator("unique_evidence", generator)
    if not 0 <= uneven <= 1:
        raise ValueError(f"unique_evidence: uneven must be between 0 and 1, got {uneven}")
    white = bar_images()[index] > 0
    observed = torch.zeros((len(index), 1, SIDE, SIDE), dtype=torch.bool)
    pending = torch.arange(len(index))
    while len(pending):
        draws = torch.rand((len(pending), 1 + _PIXELS), generator=generator)
        shares = draws[:, :1, None, None]
        if uneven:
            shares = _of_lines(shares, uneven, generator)
        tried = draws[:, 1:].reshape(-1, 1, SIDE, SIDE) < shares
        unique = _agreeing(white[pending], tried) == 1  # the image itself always agrees
        observed[pending[unique]] = tried[unique]
        pending = pending[~unique]
    return observed


def _of_lines(shares: Tensor, uneven: float, generator: torch.Generator) -> Tensor:
    """`shares` ``(N, 1, 1, 1)`` as ``(N, 1, 5, 5)``, new ones for rows or columns put in their place with probability
    `uneven`."""
    kinds = torch.rand((len(shares), 1, 1, 1), generator=generator)
    rows = torch.rand((len(shares), 1, SIDE, 1), generator=generator)
    lines = torch.where(kinds < uneven / 2, rows, rows.transpose(2, 3))
    return torch.where(kinds < uneven, lines, shares)


def bar_trials(count: int, generator: torch.Generator) -> BarTrials:
    """`count` trials: an image, each of the 20 equally likely, and evidence that only it is consistent with.

    10,000 take about a hundredth of a second. Errors: as `unique_evidence`; TypeError or ValueError for a
    `count` below 1.
    """
    check_count("bar_trials", "count", count)
    check_generator("bar_trials", generator)
    index = torch.randint(0, 20, (count,), generator=generator)
    return BarTrials(index, unique_evidence(index, generator))


def unseen_bars(index: Tensor, observed: Tensor) -> Tensor:
    """How many of the two bars of each image have no observed pixel, int64 `(N,)`: 0, 1 or 2.

    Errors: as `unique_evidence` and `consistent`; ValueError for two lengths.
    """
    _check_index("unseen_bars", index)
    _check_pixels("unseen_bars", "observed", observed)
    if len(index) != len(observed):
        raise ValueError(f"unseen_bars: index has {len(index)} entries, observed {len(observed)}")
    upright = torch.where((index >= 10).reshape(-1, 1, 1, 1), observed.transpose(2, 3), observed)
    rows = torch.tensor(list(combinations(range(SIDE), 2)))[index % 10]
    return (~upright.any(dim=3)[:, 0].gather(1, rows)).sum(dim=1)


def _check_index(function: str, index: Tensor) -> None:
    if index.dtype is not torch.int64 or index.dim() != 1:
        raise ValueError(
            f"{function}: index must be int64 of shape (N,), got {index.dtype} {tuple(index.shape)}"
        )
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < 20:
        raise ValueError(f"{function}: index must lie in 0..19, got {int(index.min())}..{int(index.max())}")


def _check_pixels(function: str, name: str, mask: Tensor) -> None:
    if mask.dtype is not torch.bool or mask.dim() != 4 or mask.shape[1:] != (1, SIDE, SIDE):
        raise ValueError(
            f"{function}: {name} must be bool of shape (N, 1, {SIDE}, {SIDE}), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
