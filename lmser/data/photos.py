"""Real photographs without a download: those inside the wheels of scikit-learn and scikit-image.

The files are read from the installed packages' folders. scikit-image's own functions are not called, because
for a file that is not there they would go to the network.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lmser._extras import require
from lmser.data._draws import check_seed, words
from lmser.data.decode import decode
from lmser.data.image_set import ImageSet
from lmser.data.integrity import MissingData

__all__ = ["Photo", "photo_crops", "sample_photos"]


@dataclass(frozen=True)
class Photo:
    """One photograph: `pixels` uint8 `(3, H, W)`; `verified` where these are the known pixels."""

    name: str
    package: str
    pixels: Tensor
    verified: bool


@dataclass(frozen=True)
class _Bundled:
    name: str
    package: str
    file: str
    size: tuple[int, int]
    sha256: str  # of the decoded pixels


_BUNDLED = (
    _Bundled(
        "china",
        "sklearn",
        "datasets/images/china.jpg",
        (427, 640),
        "703b57b1605931243bb0722533f5c165023c472db8b8d8c8c29ba3f2fb233f9e",
    ),
    _Bundled(
        "flower",
        "sklearn",
        "datasets/images/flower.jpg",
        (427, 640),
        "fdf9c4b028214ce5f5a6669c9d37aa3356302fcbf8b8a30cf6e46d55a44ff11a",
    ),
    _Bundled(
        "astronaut",
        "skimage",
        "data/astronaut.png",
        (512, 512),
        "9d1263ba0e684c996ad8d59ebeeb479d2608e2d7bb09a217aafcb77f1c5f9533",
    ),
    _Bundled(
        "chelsea",
        "skimage",
        "data/chelsea.png",
        (300, 451),
        "9c717786308ef130d869e61afda7439c5a84e3624d7d1bc0500947db97a023f1",
    ),
    _Bundled(
        "coffee",
        "skimage",
        "data/coffee.png",
        (400, 600),
        "9b3e037f9cd32e3aa4673b24f51de4b8b0a6c6fc4c4f2c89d2dd5d63cc43e8f2",
    ),
    _Bundled(
        "rocket",
        "skimage",
        "data/rocket.jpg",
        (427, 640),
        "94bc01cd6c3812d001dc262b1fc2de79c32671282dd2a1043f7ac6e120b19f94",
    ),
)

# Of every photograph, the left 7/10 of the columns are for training and the rest for testing.
_TRAIN_TENTHS = 7


def _folder_of(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        require(package)  # raises the ImportError that names the extra
        raise MissingData(f"the package {package} has no folder to read photographs from")
    return Path(spec.submodule_search_locations[0])


def sample_photos() -> tuple[Photo, ...]:
    """The six photographs china, flower, astronaut, chelsea, coffee, rocket, always all and in this order.

    Nothing is ever downloaded. Source and licence of each:
    `lmser.data.registry.describe("photos")`.

    Errors: ImportError naming the extra if scikit-learn, scikit-image or pillow is missing; `MissingData` if
    an installed package comes without the file (a distribution may strip it); `BadData` if it is not the
    image or not of the size that the crops rely on.
    """
    photos = []
    for bundled in _BUNDLED:
        path = _folder_of(bundled.package) / bundled.file
        if not path.is_file():
            raise MissingData(
                f"the photograph {bundled.name} is not at {path}: the installed {bundled.package} comes "
                "without it; the wheels of scikit-learn and scikit-image on PyPI have it"
            )
        pixels = decode(path, bundled.size)
        verified = hashlib.sha256(pixels.numpy().data).hexdigest() == bundled.sha256
        photos.append(Photo(bundled.name, bundled.package, pixels, verified))
    return tuple(photos)


def photo_crops(n: int, size: int, seed: int = 0, split: Literal["train", "test"] = "train") -> ImageSet:
    """Random square crops of the sample photographs, half of them mirrored: uint8 `(n, 3, size, size)`.

    Training crops lie in the left 7/10 of a photograph, test crops in the right 3/10: no pixel is in both,
    whatever the seeds. It is an easier test than photographs never seen, as both parts show the same scenes.
    Photograph, position and mirroring are uniform; `labels` is the number of the photograph, `classes` their
    names. The same arguments give the same bytes on every machine whose `verified` is True; the first crops
    of a larger `n` are those of a smaller.

    Errors: ValueError for `n` below 1, a `size` below 1 or above 136 (the narrowest test region), a negative
    seed, or another split; as `sample_photos`.
    """
    if split not in ("train", "test"):
        raise ValueError(f"photo_crops: split must be 'train' or 'test', got {split!r}")
    for name, value in (("n", n), ("size", size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"photo_crops: {name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"photo_crops: {name} must be at least 1, got {value}")
    check_seed("photo_crops", seed)
    largest = min(min(b.size[0], b.size[1] - _cut(b.size[1])) for b in _BUNDLED)
    if size > largest:
        raise ValueError(
            f"photo_crops: size must be at most {largest}, the narrowest test region, got {size}"
        )
    photos = sample_photos()
    regions = [_region(photo.pixels, split) for photo in photos]
    draws = words(4 * n, seed, f"photo_crops/{split}").reshape(n, 4)
    images = torch.empty((n, 3, size, size), dtype=torch.uint8)
    labels = torch.empty(n, dtype=torch.int64)
    for i, (which, down, right, mirror) in enumerate(draws.tolist()):
        labels[i] = which % len(regions)
        region = regions[which % len(regions)]
        top = down % (region.shape[1] - size + 1)
        left = right % (region.shape[2] - size + 1)
        crop = region[:, top : top + size, left : left + size]
        images[i] = crop.flip(2) if mirror % 2 else crop
    return ImageSet(
        images=images,
        labels=labels,
        classes=tuple(photo.name for photo in photos),
        name=f"{n} {size}x{size} crops of sample photographs, {split} regions",
        verified=all(photo.verified for photo in photos),
    )


def _cut(width: int) -> int:
    return width * _TRAIN_TENTHS // 10


def _region(pixels: Tensor, split: Literal["train", "test"]) -> Tensor:
    cut = _cut(pixels.shape[2])
    return pixels[:, :, :cut] if split == "train" else pixels[:, :, cut:]
