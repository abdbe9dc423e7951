"""Masks of missing pixels: dense irregular points (inpainting, 001) and a bar over the eyes (association, 000).

001, Sect. 5 and Fig. 7, inpaints pictures with "irregularly and densely distributed point-shaped masks" but
gives neither a generator nor a share of missing pixels. The construction here: dots of irregular outline, a
few pixels wide, fall at random places until the wanted share of the picture is covered.

A dot is the union of three discs, the first in the middle of the dot and the others off it by at most half a
radius each way. Radii are uniform between 1/2 and 1 of the dot's radius, which is itself uniform between
1/256 and 1/64 of the picture's side: 1 to 4 pixels at 256x256. 256 such dots are made per seed and size; each
fall chooses one of them and a place. Dots fall independently, so some touch; a dot that crosses an edge goes
on at the opposite one, so every pixel is equally likely to be missing.

Everything is integer arithmetic on the words of `_draws.words`: the same arguments give the same bits on
every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmser.data._draws import check_seed, words

__all__ = ["EYE_BOXES", "coverage_of", "eyes_mask", "point_masks"]

_SHAPES = 256  # different dots per seed and size: one byte of a word chooses
_UNIT = 16  # lengths inside a dot are in 1/16 pixel
_SMALLEST = 16
_LARGEST = 4096  # places are drawn with 27 bits, so that the bias is below 1/2^15

_Integers = npt.NDArray[np.int64]


def point_masks(count: int, size: int, coverage: float = 0.25, seed: int = 0) -> Tensor:
    """`count` masks of dense irregular points, bool `(count, 1, size, size)`, True where a pixel is missing.

    The share of missing pixels of every mask is `coverage`, exceeded by less than one dot (0.2 % of the
    picture on 256x256). 001 states none. At the default 1/4 the pictures are about as hard to complete as its
    own: filling every hole with the harmonic function of its surroundings gives 28.5 dB on 256x256 scenes,
    and its Table 5 has 26.0 to 29.0 dB for networks on Places2 (tests/test_data_masks.py with `--data`
    computes it).

    A pure function of its arguments; the first masks of a larger `count` are those of a smaller one. For new
    masks at every training step take a new seed per step: 16 masks of 256x256 take some hundredths of a
    second (`python -m timeit -s "from lmser.data import point_masks" "point_masks(16, 256)"`).

    Errors: TypeError or ValueError naming the argument for a `count` below 1, a `size` outside 16..4096, a
    `coverage` outside (0, 0.9], or a negative seed.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"point_masks: count must be an int, got {type(count).__name__}")
    if count < 1:
        raise ValueError(f"point_masks: count must be at least 1, got {count}")
    _check_size("point_masks", size)
    if isinstance(coverage, bool) or not isinstance(coverage, (int, float)):
        raise TypeError(f"point_masks: coverage must be a number, got {type(coverage).__name__}")
    if not 0 < coverage <= 0.9:
        raise ValueError(f"point_masks: coverage must be above 0 and at most 0.9, got {coverage}")
    check_seed("point_masks", seed)
    dots = _dots(size, seed)
    wanted = math.ceil(coverage * size * size)
    masks = np.empty((count, size * size), dtype=np.bool_)
    for i in range(count):
        masks[i] = _fall(dots, size, wanted, seed, f"point_masks/{i}")
    return torch.from_numpy(masks.reshape(count, 1, size, size))


def _check_size(function: str, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{function}: size must be an int, got {type(size).__name__}")
    if not _SMALLEST <= size <= _LARGEST:
        raise ValueError(f"{function}: size must be in {_SMALLEST}..{_LARGEST}, got {size}")


def _uniform(draws: _Integers, low: int | _Integers, high: int | _Integers) -> _Integers:
    """Integers in low..high, both included, from words of 31 bits."""
    return low + (draws * (high - low + 1) >> 31)


def _dots(size: int, seed: int) -> tuple[_Integers, _Integers, _Integers]:
    """The pixels of all dots one after the other, as rows and columns from the middle of a dot, and the
    number of pixels of each dot."""
    draws = (words(10 * _SHAPES, seed, "point_masks/dots") >> np.uint64(33)).astype(np.int64)
    draws = draws.reshape(10, _SHAPES)
    widest = size * _UNIT // 64
    radius = _uniform(draws[0], widest // 4, widest)
    reach = math.ceil(3 * widest / (2 * _UNIT))  # 1/2 radius off the middle, then 1 radius
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1] * _UNIT
    covered = np.zeros((_SHAPES, *rows.shape), dtype=np.bool_)
    for disc in range(3):
        extent, down, right = draws[1 + 3 * disc : 4 + 3 * disc]
        off = radius // 2 if disc else 0 * radius  # the first in the middle, so that no dot is empty
        y, x = _uniform(down, -off, off), _uniform(right, -off, off)
        distance = (rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2
        covered |= distance <= (_uniform(extent, radius // 2, radius) ** 2)[:, None, None]
    shape, row, column = np.nonzero(covered)
    return row - reach, column - reach, np.bincount(shape, minlength=_SHAPES)


def _fall(
    dots: tuple[_Integers, _Integers, _Integers], size: int, wanted: int, seed: int, purpose: str
) -> npt.NDArray[np.bool_]:
    """Dots until `wanted` pixels are covered; all fall at once, and each pixel keeps the number of its first."""
    rows, columns, areas = dots
    starts = np.cumsum(areas) - areas
    # A pixel stays free of n dots with probability exp(-n area / size^2); a fifth more is nearly always enough.
    falls = 16 + math.ceil(
        -1.2 * math.log(1 - wanted / (size * size + 1)) * size * size / float(areas.mean())
    )
    while True:
        # 63 bits, so that no sign gets in the way: 8 choose the dot, 28 its column, 27 its row.
        draws = (words(falls, seed, purpose) >> np.uint64(1)).astype(np.int64)
        shape = draws & _SHAPES - 1
        row = (draws >> 36) * size >> 27
        column = (draws >> 8 & (1 << 28) - 1) * size >> 28
        area = areas[shape]
        first = np.cumsum(area) - area
        which = np.repeat(np.arange(falls), area)
        pixel = np.arange(len(which)) - np.repeat(first - starts[shape], area)
        place = (rows[pixel] + row[which]) % size * size + (columns[pixel] + column[which]) % size
        number = np.full(size * size, falls, dtype=np.int64)
        np.minimum.at(number, place, which)
        covered = np.cumsum(np.bincount(number, minlength=falls + 1)[:falls])
        if covered[-1] >= wanted:
            return number <= np.searchsorted(covered, wanted)
        falls *= 2  # the first dots are the same, so the mask does not depend on the estimate


EYE_BOXES: Mapping[str, tuple[int, int, int, int]] = MappingProxyType(
    {
        "celeba": (43, 59, 25, 75),
        "celeba-hq": (39, 55, 24, 76),
        "celeba-like": (34, 50, 24, 76),
    }
)
"""Top, bottom, left and right edge of the bar over eyes and brows, in percent of the middle square's side."""


def eyes_mask(size: int, faces: str = "celeba-like") -> Tensor:
    """The mask that blocks the eyes of an aligned face, bool `(1, 1, size, size)`, True where missing.

    000, Sect. 4 and Fig. 7, completes "partial face images with eyes blocked" from memory and gives no
    measure. Here a bar covers both eyes and the brows, `EYE_BOXES[faces]`: 8 % of the picture, the same for
    all faces because they are aligned. `faces` is the key of the data set that `photo_files.find_photos`
    found, as each is aligned in its own way. For "celeba-like" the bar was placed by looking at the faces and
    at their mean, for "celeba" by the mean landmarks published with it (eyes at row 111 of 218, columns 69
    and 108 of 178), for "celeba-hq" by the crop that its authors compute from the landmarks.

    Errors: TypeError or ValueError for a `size` below 16 or other `faces`.
    """
    _check_size("eyes_mask", size)
    if faces not in EYE_BOXES:
        raise ValueError(f"eyes_mask: faces must be one of {', '.join(EYE_BOXES)}, got {faces!r}")
    top, bottom, left, right = ((percent * size + 50) // 100 for percent in EYE_BOXES[faces])
    mask = torch.zeros((1, 1, size, size), dtype=torch.bool)
    mask[..., top:bottom, left:right] = True
    return mask


def coverage_of(masks: Tensor) -> Tensor:
    """The share of missing pixels of each mask, float64 `(N,)`, of bool masks `(N, 1, H, W)`.

    Errors: ValueError for another dtype or shape.
    """
    if masks.dtype is not torch.bool or masks.dim() != 4 or masks.shape[1] != 1:
        raise ValueError(
            f"coverage_of: masks must be bool of shape (N, 1, H, W), got {masks.dtype} {tuple(masks.shape)}"
        )
    return masks.flatten(1).double().mean(dim=1)
