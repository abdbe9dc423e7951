"""What the adversarially trained inpainting networks, `PENNet` and `PICNet`, have in common.

Both were published for pixels on [-1, 1] and for images that halve evenly down to their deepest feature map.
Here the network takes the range that its images have, and its depth follows from their size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.models.reflection import Pair, pair


class CompletionNetwork(nn.Module, ABC):
    """Images on `image_range` and masks of missing pixels, checked and brought to [-1, 1]; see `PENNet`.

    size:        height and width of the images (an int is both), at least `smallest`
    depth:       the published number of halvings; ``self.depth`` is less where fewer than 4 positions would be
                 left along the shorter side
    width:       factor on the published numbers of channels
    image_range: darkest and brightest value of a pixel
    """

    def __init__(
        self,
        size: int | Pair,
        width: float,
        image_range: tuple[float, float],
        *,
        depth: int,
        smallest: int,
    ) -> None:
        super().__init__()
        self.size = height, breadth = pair("size", size)
        if min(self.size) < smallest:
            raise ValueError(f"size: expected at least {smallest} pixels each way, got {height}x{breadth}")
        self.depth = min(depth, (min(self.size) // 4).bit_length() - 1)
        if height % 2**self.depth or breadth % 2**self.depth:
            raise ValueError(
                f"size: {self.depth} halvings need multiples of {2**self.depth}, got {height}x{breadth}"
            )
        if isinstance(width, bool) or not isinstance(width, (int, float)) or not width > 0:
            raise ValueError(f"width: expected a number above 0, got {width!r}")
        self.width = width
        if len(image_range) != 2 or not image_range[0] < image_range[1]:
            raise ValueError(f"image_range: expected (low, high) with low < high, got {image_range!r}")
        self.image_range = float(image_range[0]), float(image_range[1])

    @abstractmethod
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Every pixel of `image` as the network makes it, missing or not."""

    def _take(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`image` on [-1, 1] and the missing pixels as bool; ValueError or TypeError naming what is wrong."""
        if image.dim() != 4 or image.shape[1] != 3 or len(image) == 0:
            raise ValueError(f"image: expected shape (N, 3, H, W), got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise TypeError(f"image: expected floating point values, got {image.dtype}")
        step = 2**self.depth
        if image.shape[2] % step or image.shape[3] % step:
            raise ValueError(f"image: expected sides that are multiples of {step}, got {tuple(image.shape)}")
        expected = (len(image), 1, *image.shape[2:])
        if tuple(mask.shape) != expected:
            raise ValueError(f"mask: expected shape {expected}, got {tuple(mask.shape)}")
        if mask.dtype is not torch.bool:
            if not mask.is_floating_point():
                raise TypeError(f"mask: expected bool or floating point values, got {mask.dtype}")
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise ValueError(
                    "mask: expected 1 where a pixel is missing and 0 elsewhere, got other values"
                )
            mask = mask == 1
        low, high = self.image_range
        return (image - low) * (2 / (high - low)) - 1, mask

    def _give(self, signed: Tensor) -> Tensor:
        """From [-1, 1] to `image_range`."""
        low, high = self.image_range
        return (signed + 1) * ((high - low) / 2) + low


def halved(x: Tensor, times: int) -> Tensor:
    """`x` ``(N, C, H, W)`` at ``2**-times`` of its size, each value the mean of its block."""
    return x if times == 0 else F.avg_pool2d(x, 2**times)


def visible_halved(x: Tensor, missing: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Mean over the visible pixels of each block (0 where there is none), and their share of the block.

    x: ``(N, C, H, W)``; missing: ``(N, 1, H, W)`` bool. Returns ``(N, C, H', W')`` and ``(N, 1, H', W')``, H'
    and W' being ``2**-times`` of H and W. What stands in missing pixels has no influence.
    """
    share = halved((~missing).to(x.dtype), times)
    total = halved(x.masked_fill(missing, 0), times)
    # Shares are multiples of 4**-times, so the floor only replaces zeros.
    return total / share.clamp(min=4.0**-times), share


def masked_l1(x: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Mean of |x - target| over the pixels in `where` ``(N, 1, H, W)`` bool and all their channels; 0 where
    there are none."""
    total = (x - target).abs().masked_fill(~where, 0).sum()
    return total / (where.sum() * x.shape[1]).clamp(min=1)
