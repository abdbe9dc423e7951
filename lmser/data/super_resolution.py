"""Super-resolution by 2: images, their bicubic low-resolution versions, and pairs of patches (004, App. D.5).

004 trains on T91 and tests on Set5, Set14, BSD100 and Urban100. The low-resolution version of an image is
halved and doubled again, both with pillow's bicubic filter: Keys' kernel with a = -1/2, centres of pixels
aligned, widened by 2 for halving so that it does not alias. That is what MATLAB's `imresize` computes, with
which the usual numbers were made, except that pillow leaves the kernel's part outside the image away where
MATLAB mirrors the image, and rounds to bytes after each axis. On luminance with 2 pixels of border left out
(`metrics.luminance_psnr`, `metrics.luminance_ssim`) it gives, against the usual numbers and against the RGB
images with nothing left out (`metrics.psnr`, `metrics.ssim`):

    ======  ===============  ===============  ===============  ===============
    set     here             usual            RGB              004, Table 1
    ======  ===============  ===============  ===============  ===============
    Set5    33.67 dB 0.9303  33.66 dB 0.9299  31.79 dB 0.9088  32.21 dB 0.921
    Set14   30.32 dB 0.8698  30.24 dB 0.8688  28.30 dB 0.8426  29.21 dB 0.911
    BSD100  29.56 dB 0.8434  29.56 dB 0.8431  28.23 dB 0.8299  28.67 dB 0.810
    ======  ===============  ===============  ===============  ===============

(`pytest tests/test_data_super_resolution.py --data DIR` computes the first and third columns.) The paper's own
baseline is neither, and it does not say how it was measured: gains over the baseline compare better than
levels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmser._extras import require
from lmser.data._checks import check_count, check_generator
from lmser.data.decode import decode
from lmser.data.integrity import BadData, MissingData, check_root
from lmser.data.registry import DATA_SETS

__all__ = [
    "SETS",
    "PatchPairs",
    "SuperResolutionSet",
    "bicubic_low",
    "load_super_resolution",
]

SETS = ("T91", "Set5", "Set14", "BSD100", "Urban100")
"""The names of the sets, each that of its folder."""

_SCALE = 2
_SUFFIXES = (".png", ".jpg", ".jpeg")
# What file managers leave behind; names that start with a dot are passed over as well.
_DESKTOP_FILES = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class SuperResolutionSet:
    """Images of different sizes and their low-resolution versions.

    high: uint8 `(3, H, W)` each, RGB, H and W even. low: `bicubic_low` of each, of the same shape. names: of
    the files. name: of the set, in words.
    """

    high: tuple[Tensor, ...]
    low: tuple[Tensor, ...]
    names: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.high)


def bicubic_low(image: Tensor) -> Tensor:
    """An image halved and doubled again by the bicubic filter; uint8 `(3, H, W)` in and out.

    Errors: ValueError for another dtype or shape, or a side that is not even or is 0; ImportError naming the extra
    where pillow is missing.
    """
    if image.dtype is not torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(
            f"bicubic_low: image must be uint8 of shape (3, H, W), got {image.dtype} {tuple(image.shape)}"
        )
    height, width = image.shape[1:]
    if height % _SCALE or width % _SCALE or not image.numel():
        raise ValueError(f"bicubic_low: both sides must be even and positive, got {height}x{width}")
    pillow = require("PIL.Image")
    bicubic = pillow.Resampling.BICUBIC
    full = pillow.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    low = full.resize((width // _SCALE, height // _SCALE), bicubic).resize((width, height), bicubic)
    return torch.from_numpy(np.array(low)).permute(2, 0, 1).contiguous()


def load_super_resolution(root: str | os.PathLike[str], name: str) -> SuperResolutionSet:
    """The images of one of `SETS`, in the order of their file names.

    Looked for in the folders sr, SR, super-resolution of `root` and in `root` itself, each with a folder
    called `name` of PNG or JPEG files. Grey images become RGB. A last row or column is left out where the
    number of rows or columns is odd.

    Errors: ValueError for another name; `MissingData` with the folders searched and how to get the data;
    `BadData` naming the file that is not an image, is damaged, or has only one row or column, or the folder
    without one; ImportError naming the extra where pillow is missing.
    """
    folder = check_root("load_super_resolution", root)
    if name not in SETS:
        raise ValueError(f"load_super_resolution: name must be one of {', '.join(SETS)}, got {name!r}")
    data_set = DATA_SETS["super-resolution"]
    places = [folder / place / name for place in data_set.folders]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise MissingData(
            f"{name} was not found: there is none of the folders {', '.join(map(str, places))}; {data_set.by_hand}"
        )
    paths = _files(found)
    high = tuple(_even(path) for path in paths)
    return SuperResolutionSet(
        high=high,
        low=tuple(bicubic_low(image) for image in high),
        names=tuple(path.name for path in paths),
        name=f"{name}, {len(high)} images, scale {_SCALE} by pillow's bicubic filter",
    )


def _files(folder: Path) -> list[Path]:
    paths = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.name.lower() in _DESKTOP_FILES:
            continue
        if not path.is_file() or path.suffix.lower() not in _SUFFIXES:
            raise BadData(path, f"expected only image files ({', '.join(_SUFFIXES)})")
        paths.append(path)
    if not paths:
        raise BadData(folder, "it holds no image")
    return paths


def _even(path: Path) -> Tensor:
    image = decode(path)
    height, width = (side // _SCALE * _SCALE for side in image.shape[1:])
    if not height or not width:
        raise BadData(path, f"the image is {image.shape[1]}x{image.shape[2]}, too small to be halved")
    return image[:, :height, :width].contiguous()


class PatchPairs:
    """Random patches of a set, low and high resolution of the same place.

    Every place of every image is equally likely, so an image's share is its number of places. The low
    patches are cut from the low-resolution images: near a patch's edge they know of what lies beyond it, as
    they will in a whole image.

    images: the set. size: side of the patches, 40 in 004.

    Errors: TypeError or ValueError for a size below 1 or above a side of an image, which is named.
    """

    def __init__(self, images: SuperResolutionSet, size: int = 40) -> None:
        check_count("PatchPairs", "size", size)
        for image, name in zip(images.high, images.names, strict=True):
            if min(image.shape[1:]) < size:
                raise ValueError(
                    f"PatchPairs: size must be at most a side of every image, got {size} and {name} of "
                    f"{image.shape[1]}x{image.shape[2]}"
                )
        self.size = size
        # All images one after the other, so that a batch is one selection.
        self._high = torch.cat([image.flatten() for image in images.high])
        self._low = torch.cat([image.flatten() for image in images.low])
        shapes = torch.tensor([image.shape[1:] for image in images.high])
        self._heights, self._widths = shapes.unbind(dim=1)
        counts = 3 * self._heights * self._widths
        self._starts = counts.cumsum(0) - counts
        self._columns = self._widths - size + 1
        self._until = ((self._heights - size + 1) * self._columns).cumsum(0)

    @property
    def places(self) -> int:
        """How many different patches there are."""
        return int(self._until[-1])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` patches `(low, high)`, uint8 `(count, 3, size, size)` each; `generator`, of the CPU, decides
        which and goes on.

        Errors: TypeError or ValueError for a `count` below 1 or another generator.
        """
        check_count("PatchPairs.draw", "count", count)
        check_generator("PatchPairs.draw", generator)
        place = torch.randint(0, self.places, (count,), generator=generator)
        image = torch.searchsorted(self._until, place, right=True)
        before = self._until[image] - (self._heights[image] - self.size + 1) * self._columns[image]
        top, left = (place - before) // self._columns[image], (place - before) % self._columns[image]
        side, width = torch.arange(self.size), self._widths[image].reshape(-1, 1, 1, 1)
        rows, columns = top.reshape(-1, 1, 1, 1) + side[:, None], left.reshape(-1, 1, 1, 1) + side
        channels = torch.arange(3).reshape(-1, 1, 1) * (self._heights * self._widths)[image].reshape(
            -1, 1, 1, 1
        )
        pixels = self._starts[image].reshape(-1, 1, 1, 1) + channels + rows * width + columns
        return self._low[pixels], self._high[pixels]
