"""Photographs of faces and scenes, decoded into memory: CelebA, CelebA-HQ, Places2 and their stand-ins."""

from __future__ import annotations

import os

import torch

from lmser.data.decode import decode_squares
from lmser.data.image_set import ImageSet, Split
from lmser.data.photo_files import PhotoFiles, find_photos

__all__ = ["check_square", "load_photos"]

# All of CelebA-HQ at 256x256 is 5.9 GB. What is larger would rather be read from the disk while training.
_MOST_BYTES = 16 << 30


def check_square(function: str, size: int, crop: int | None) -> None:
    """TypeError or ValueError that names `function` unless a square of `crop` can be reduced to `size`."""
    for name, value in (("size", size), ("crop", crop)):
        if name == "crop" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{function}: {name} must be at least 1, got {value}")
    if crop is not None and crop < size:
        raise ValueError(f"{function}: crop must be at least size, got crop={crop} and size={size}")


def load_photos(
    root: str | os.PathLike[str],
    dataset: str,
    size: int,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    crop: int | None = None,
    workers: int | None = None,
) -> Split:
    """Training and test photographs of faces or scenes; `images` are uint8 `(N, 3, size, size)`.

    `dataset`, `train`, `test` and `seed` choose the files as `photo_files.find_photos` says. Of every image
    the middle square is taken, `crop` pixels wide or as wide as the image allows (of CelebA's 178x218: 178),
    and reduced to `size` with pillow's Lanczos filter; nothing is ever enlarged. 000 crops CelebA "at the
    center to 128x128", which taken literally is `crop=128`, and 178 reduced to 128 the other reading.

    These sets are for reconstruction and inpainting: all labels are 0, `classes` is ("face",) or ("scene",).
    `name` says which data set, in which form, how many images and by which seed, and "stand-in" where it is
    one. `verified` is False. The same files give the same bytes with the same release of pillow.

    The images are decoded by `workers` threads (default: one per processor, at most 8) and kept in memory, 3
    size^2 bytes each; for sets that do not fit, `stream.photo_streams` reads them while training.

    Errors: as `find_photos` and `decode.decode_square`; ValueError for a `size` below 1, a `crop` below
    `size`, or more than 16 GiB in all.
    """
    check_square("load_photos", size, crop)
    files = find_photos(root, dataset, train=train, test=test, seed=seed)
    bytes_needed = 3 * size * size * (len(files.train) + len(files.test))
    if bytes_needed > _MOST_BYTES:
        raise ValueError(
            f"load_photos: {len(files.train):,} training and {len(files.test):,} test images of {size}x{size} "
            f"take {bytes_needed / 1e9:.0f} GB of memory, at most {_MOST_BYTES / 1e9:.0f} GB are read; give "
            "smaller numbers with train and test, or use photo_streams"
        )
    return Split(*(_load(part, size, crop, workers) for part in files))


def _load(files: PhotoFiles, size: int, crop: int | None, workers: int | None) -> ImageSet:
    paths = [files.path(i) for i in range(len(files))]
    return ImageSet(
        images=decode_squares(paths, size, crop, files.size, workers),
        labels=torch.zeros(len(paths), dtype=torch.int64),
        classes=(files.subject,),
        name=files.title,
        verified=False,
    )
