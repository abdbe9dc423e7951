"""Masks of missing pixels by thresholded Perlin noise (004, Sect. 4.2 and 4.4; App. D.2 and D.4).

Perlin, An Image Synthesizer, SIGGRAPH 1985: a random gradient g sits at every point of an integer lattice. At a
place p in a cell, each of the four corners c of the cell contributes `g_c . (p - c)`, and the contributions
are blended by the cubic `3 t^2 - 2 t^3` of the place in the cell, along both axes. The lattice has `frequency`
cells along each side of the picture and pixels are taken at their middles. 004 masks a third of MNIST's
pixels with frequency 7 and 40 % of CIFAR-10's.

The pixels with the lowest noise are missing, as many as the share asks for, exactly and in every mask. The
noise is 0 at lattice points and spreads less around them, so pixels there are missing less often than others
where the share is below 1/2, as with any lattice noise: at a third of 28x28, from 28 % (next to a lattice
point) to 37 % of the time.

Gradients are the 16 integer vectors of length sqrt(65); blending weights and distances are integers as well, in units
of 2^-16. All sums stay below 2^53, so the float64 products of matrices are exact and the masks of one state
of the generator are the same on every machine. Equal noise is ordered by row, then column.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lmser.data._checks import check_count, check_generator

__all__ = ["perlin_masks", "perlin_noise"]

# One length in all directions, so that none is favoured by strength; their directions 14 to 31 degrees apart.
_GRADIENTS = torch.tensor(
    [(a * s, b * t) for a, b in ((1, 8), (4, 7), (7, 4), (8, 1)) for s in (-1, 1) for t in (-1, 1)],
    dtype=torch.float64,
)
_UNIT = 1 << 16
_LARGEST = 4096  # noise times pixels must fit 63 bits


def perlin_masks(
    count: int,
    size: int | tuple[int, int],
    share: float,
    generator: torch.Generator,
    *,
    frequency: int = 7,
) -> Tensor:
    """`count` masks, bool `(count, 1, H, W)`, True where a pixel is missing.

    size: `(H, W)`, or one number for both. share: of the missing pixels; every mask has exactly
    `round(share * H * W)` of them. generator: of the CPU; it decides the masks and goes on.

    250 masks of 28x28 take about 2 ms on one core (`python -m timeit -s "import torch; from lmser.data import
    perlin_masks; g = torch.Generator()" "perlin_masks(250, 28, 1 / 3, g)"`).

    Errors: as `perlin_noise`; ValueError for a share that is not in (0, 1) or leaves no pixel, or all.
    """
    noise = perlin_noise(count, size, generator, frequency=frequency)
    pixels = noise.shape[-2] * noise.shape[-1]
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise TypeError(f"perlin_masks: share must be a number, got {type(share).__name__}")
    missing = round(share * pixels) if 0 < share < 1 else 0
    if not 0 < missing < pixels:
        raise ValueError(
            f"perlin_masks: share must be in (0, 1) and leave some but not all of {pixels} pixels, got {share}"
        )
    # No two keys are equal: the pixel's number decides between equal noise.
    keys = (noise.flatten(1) * pixels + torch.arange(pixels)).numpy()
    # NumPy's selection is 15 times faster than torch's here.
    highest = np.partition(keys, missing - 1, axis=1)[:, missing - 1 : missing]
    return torch.from_numpy(keys <= highest).reshape(noise.shape)


def perlin_noise(
    count: int, size: int | tuple[int, int], generator: torch.Generator, *, frequency: int = 7
) -> Tensor:
    """Noise of the module's docstring, int64 `(count, 1, H, W)`, in units of 2^-32 of a cell times the
    gradients' length over sqrt(65).

    Errors: TypeError or ValueError naming the argument for a `count` or `frequency` below 1, a side outside
    1..4096, a frequency above the shorter side, or a generator that is not the CPU's.
    """
    check_count("perlin_noise", "count", count)
    height, width = _sides(size)
    check_count("perlin_noise", "frequency", frequency)
    if frequency > min(height, width):
        raise ValueError(
            f"perlin_noise: frequency must be at most the shorter side, {min(height, width)}, got {frequency}"
        )
    check_generator("perlin_noise", generator)
    points = frequency + 1
    chosen = torch.randint(0, len(_GRADIENTS), (count, points, points), generator=generator)
    down, right = _GRADIENTS[chosen].unbind(dim=-1)
    rows, row_distances = _basis(height, frequency)
    columns, column_distances = _basis(width, frequency)
    # The columns of both terms first, then all rows in one product.
    across = torch.cat([down @ columns.T, right @ column_distances.T], dim=1)
    noise = torch.cat([row_distances, rows], dim=1) @ across
    return noise.long().unsqueeze(1)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise TypeError(f"perlin_noise: size must be an int or (height, width), got {size!r}")
    if not all(1 <= side <= _LARGEST for side in sides):
        raise ValueError(f"perlin_noise: sides must be in 1..{_LARGEST}, got {size}")
    return sides[0], sides[1]


@lru_cache(maxsize=16)
def _basis(side: int, frequency: int) -> tuple[Tensor, Tensor]:
    """What the lattice lines contribute to the pixels of one axis, float64 `(side, frequency + 1)`, twice:
    the blending weights, and these times the signed distance; integers in units of 2^-16."""
    weights = torch.zeros((side, frequency + 1), dtype=torch.float64)
    distances = torch.zeros_like(weights)
    cell_length = 2 * side  # in units of 1 / (2 side) of a cell
    for pixel in range(side):
        cell, place = divmod((2 * pixel + 1) * frequency, cell_length)
        far = _UNIT * place * place * (3 * cell_length - 2 * place)
        far = (far + cell_length**3 // 2) // cell_length**3
        for line, weight, distance in ((cell, _UNIT - far, place), (cell + 1, far, place - cell_length)):
            weights[pixel, line] = weight
            distances[pixel, line] = (2 * weight * distance + cell_length) // (2 * cell_length)
    return weights, distances
