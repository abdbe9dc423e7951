"""What the experiments on CelebA-HQ and Places2 share: the images, and how a restored image is measured.

Images are on [0, 1], as 001 Tables 5 and 8 have them, and are kept as bytes until they are used. What does not
fit into memory is read from the disk while training (`lmser.data.PhotoStream`).

PSNR is that of the mean squared error over all images, not the mean of the images' PSNRs: `lmser.metrics` says
why these two tables are read so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmser import metrics
from lmser.data import PhotoStream, load_photos, photo_streams
from lmser.data.photo_files import find_photos

__all__ = ["METRICS", "Photographs", "Tally", "chunks", "load_photographs", "on_unit_range"]

METRICS = ("l1", "MSE", "PSNR", "SSIM")

# More than this is read from the disk: the training images of Places2 at 256x256 are 35 GB.
_MOST_BYTES = 8 << 30
_CHUNK = 32


@dataclass(frozen=True)
class Photographs:
    """Training and test images of one data set, ``(N, 3, side, side)`` bytes, or streams of such.

    train_name, test_name: in words.  train_digest, test_digest: tell two sets apart.
    stand_in: whether it takes the place of the paper's data set.
    """

    train: Tensor | PhotoStream
    test: Tensor | PhotoStream
    side: int
    train_name: str
    test_name: str
    train_digest: str
    test_digest: str
    stand_in: bool

    def facts(self, key: str) -> dict[str, str]:
        """What `Results.data` says of it."""
        return {
            f"{key}: training": self.train_name,
            f"{key}: training data sha256": self.train_digest,
            f"{key}: test": self.test_name,
            f"{key}: test data sha256": self.test_digest,
        }

    def shown(self, count: int) -> Tensor:
        """`count` test images from all over the set, on [0, 1]."""
        places = range(0, len(self.test), max(1, len(self.test) // count))[:count]
        return on_unit_range(torch.stack([self.test[place] for place in places]))


def load_photographs(root: Path, data: Mapping[str, Any]) -> Photographs:
    """The images that a row's ``[data]`` asks for: ``name`` and ``side``, and if the data set is a stand-in
    ``stand_in_side`` in its place where that is given; ``test`` limits the test images.

    Raises what `lmser.data.load_photos` raises.
    """
    name, test = data["name"], data.get("test")
    files = find_photos(root, name, test=test)
    stand_in = "stand-in" in files.train.title
    side = data.get("stand_in_side", data["side"]) if stand_in else data["side"]
    if 3 * side * side * (len(files.train) + len(files.test)) > _MOST_BYTES:
        train, tested = photo_streams(root, name, side, test=test)
        return Photographs(
            train, tested, side, train.name, tested.name, train.fingerprint(), tested.fingerprint(), stand_in
        )
    images = load_photos(root, name, side, test=test)
    return Photographs(
        images.train.images,
        images.test.images,
        side,
        images.train.name,
        images.test.name,
        images.train.sha256(),
        images.test.sha256(),
        stand_in,
    )


def on_unit_range(images: Tensor) -> Tensor:
    """Bytes as float32 on [0, 1]."""
    if images.dtype is not torch.uint8:
        raise TypeError(f"images: expected bytes, got {images.dtype}")
    return images.float() / 255


def chunks(images: Tensor | PhotoStream) -> Iterator[tuple[int, Tensor]]:
    """``(index of the first, images on [0, 1])``, a few at a time."""
    for start in range(0, len(images), _CHUNK):
        stop = min(start + _CHUNK, len(images))
        yield start, on_unit_range(torch.stack([images[index] for index in range(start, stop)]))


@dataclass
class Tally:
    """The means of `METRICS` over images that come a few at a time."""

    images: int = 0
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Both ``(N, C, H, W)``, `wanted` on [0, 1]. Nothing is clipped: an overshoot is an error like any
        other."""
        found, wanted = found.detach().cpu(), wanted.cpu()
        means = metrics.l1(found, wanted), metrics.mse(found, wanted), metrics.ssim(found, wanted, 1.0)
        self._sums = [total + len(wanted) * mean for total, mean in zip(self._sums, means, strict=True)]
        self.images += len(wanted)

    def means(self) -> dict[str, float]:
        """ValueError where nothing was added."""
        if self.images == 0:
            raise ValueError("Tally: no image was added, the means are not defined")
        l1, mse, ssim = (total / self.images for total in self._sums)
        # A mean squared error of NaN or infinity has no PSNR.
        psnr = metrics.psnr_of_mse(mse, 1.0) if math.isfinite(mse) else math.nan
        return {"l1": l1, "MSE": mse, "PSNR": psnr, "SSIM": ssim}
