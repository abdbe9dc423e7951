"""What is taken away from an image that an attractor network has to complete (004 Sect. 4.3 and 4.4; App. D.3, D.4).

"patches": squares of 3 to 6 pixels fall until at least a quarter of the white pixels is gone
(`lmser.data.patch_masks`). White is what is brighter than half of an image's brightest pixel: reduced to 28x28,
thin strokes are grey, and some drawings have no pixel above the middle of the whole range.

"perlin": 40 % of the pixels, by thresholded Perlin noise (`lmser.data.perlin_masks`). 004 gives its frequency for
MNIST alone, 7; it is 7 here too. All channels of a pixel go together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmser.data import patch_masks, perlin_masks

__all__ = ["IMAGE_RANGE", "Damage", "damage_of", "damaged_batch", "on_tanh_range"]

# Images as tanh units can hold them. 004 says so of MNIST alone, where its loss needs values inside the range
# (0.999); the squared error does not.
IMAGE_RANGE = (-1.0, 1.0)

Damage = Callable[[Tensor, torch.Generator], Tensor]
"""``damage(images, generator) -> observed``: images ``(N, C, H, W)`` on `IMAGE_RANGE` on the CPU, bool of their
shape, True where a pixel is left."""


def damage_of(data: Mapping[str, Any]) -> Damage:
    """What a row's ``[data]`` asks for: ``damage = "patches"`` or ``"perlin"`` with its ``share``.

    Raises ValueError for another word.
    """
    kinds = {"patches": _patches, "perlin": _perlin}
    if data["damage"] not in kinds:
        raise ValueError(f"data.damage: expected {' or '.join(map(repr, kinds))}, got {data['damage']!r}")
    return functools.partial(kinds[data["damage"]], share=data["share"])


def on_tanh_range(images: Tensor) -> Tensor:
    """Bytes ``(N, C, H, W)`` as float32 on `IMAGE_RANGE`."""
    if images.dtype is not torch.uint8:
        raise TypeError(f"images: expected bytes, got {images.dtype}")
    return images.float() * (2 / 255) - 1


def damaged_batch(images: Tensor, *, damage: Damage) -> tuple[Tensor, Tensor]:
    """Images on `IMAGE_RANGE` and what of them is observed, which torch's global generator decides.

    The global generator is saved with a run, so that one that is continued draws the masks that it would have drawn.
    """
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    values = on_tanh_range(images)
    return values, damage(values.cpu(), generator).to(values.device)


def _patches(images: Tensor, generator: torch.Generator, *, share: float) -> Tensor:
    above_black = images - IMAGE_RANGE[0]
    white = above_black > 0.5 * above_black.flatten(1).amax(1).view(-1, 1, 1, 1)
    return ~patch_masks(white, generator, share=share)


def _perlin(images: Tensor, generator: torch.Generator, *, share: float) -> Tensor:
    height, width = images.shape[-2:]
    return ~perlin_masks(len(images), (height, width), share, generator).expand_as(images)
