"""How each network of 001 Table 5 is asked to complete images with missing pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmser.models import CLmser

__all__ = ["HOLE", "complete", "with_holes"]

# What stands in missing pixels: black. 001 does not say; CLmsers have to tell holes from this value alone.
HOLE = 0.0


def with_holes(images: Tensor, masks: Tensor) -> Tensor:
    """`images` ``(N, C, H, W)`` with `HOLE` where `masks` ``(N, 1, H, W)`` is True."""
    return images.masked_fill(masks, HOLE)


def complete(network: nn.Module, images: Tensor, masks: Tensor, samples: int | None = None) -> Tensor:
    """What `network` makes of all pixels of `images` from those that are not missing, shaped like `images`.

    CLmsers see the image with its holes and no mask, as in 001; the others take both. `samples` is for networks
    that draw their result (`PICNet`): the best of so many, always from the same random numbers.
    """
    damaged = with_holes(images, masks)
    if isinstance(network, CLmser):
        return network(damaged).reconstruction
    if samples is None:
        found: Tensor = network(damaged, masks)
        return found
    generator = torch.Generator(images.device).manual_seed(0)
    drawn: Tensor = network(damaged, masks, samples=samples, generator=generator)
    return drawn
