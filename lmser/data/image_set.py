"""What every reader of this package returns: images, labels, and what is known about where they came from."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ImageSet", "Split"]


@dataclass(frozen=True)
class ImageSet:
    """Labelled 8-bit images of one size.

    images:   uint8, `(N, H, W)` for grey or `(N, C, H, W)` for colour images, contiguous
    labels:   int64 `(N,)`, each an index into `classes`
    classes:  the names of the classes
    name:     the data set in words, with the part of it and the form in which it was found
    verified: True where the bytes are known to be the original's (a pinned sha256 matched), False where only
              their structure was checked
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    verified: bool

    def __post_init__(self) -> None:
        if self.images.dtype is not torch.uint8 or self.images.dim() not in (3, 4):
            raise ValueError(
                "ImageSet: images must be uint8 of shape (N, H, W) or (N, C, H, W), "
                f"got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype is not torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"ImageSet: labels must be int64 of shape ({self.images.shape[0]},), "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(
                f"ImageSet: labels must lie in 0..{len(self.classes) - 1}, "
                f"got {int(self.labels.min())}..{int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to_float(self, low: float = 0.0, high: float = 1.0, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """The images as `(N, C, H, W)` with byte 0 at `low` and byte 255 at `high`.

        The metrics' `data_range` is then `high - low`. 001 Table 4 is on `to_float(-1, 1)`, 000 and 001
        Tables 5 and 8 on `to_float(0, 1)`. Errors: ValueError unless `low < high`, both finite, and `dtype`
        floating.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"to_float: low must be below high, both finite, got low={low}, high={high}")
        if not dtype.is_floating_point:
            raise ValueError(f"to_float: dtype must be a floating type, got {dtype}")
        images = self.images if self.images.dim() == 4 else self.images.unsqueeze(1)
        # 256 values, each rounded once from float64: 0 and 255 land on low and high exactly.
        levels = torch.arange(256, dtype=torch.float64) / 255
        table = (low * (1 - levels) + high * levels).to(dtype)
        result = torch.empty(images.shape, dtype=dtype)
        for part, indices in zip(torch.split(result, 256), torch.split(images, 256), strict=True):
            # In parts, because the int32 indices of the whole set would take as much memory as the result.
            part.copy_(table[indices.int()])
        return result

    def take(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (int64), in that order, as a set of their own."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes, self.name, self.verified)

    def sha256(self) -> str:
        """A checksum of shape, pixels and labels: two runs that print the same one saw the same data."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


class Split(NamedTuple):
    """A training set and a test set that share no image."""

    train: ImageSet
    test: ImageSet
