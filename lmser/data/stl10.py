"""STL10 in its original binary format, or a stand-in as folders of 96x96 images, split as 001 splits it.

001, Sect. 5: of the 500 labelled training images of each class, "we divide the training images into a
training set and a test set in the ratio of 4:1"; STL10-n has n training images per class, n = 400, 100, 10,
and one test set for all n. STL10's own test images and its unlabelled ones are not used. The paper does not
say which images: here a seed does, and the subsets of one seed are nested.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lmser.data._draws import check_seed, order
from lmser.data.folders import list_folder, load_folder
from lmser.data.image_set import ImageSet, Split
from lmser.data.integrity import BadData, MissingData, check_root
from lmser.data.registry import DATA_SETS

__all__ = ["load_stl10", "read_stl10_images", "read_stl10_labels"]

_SIDE = 96
_IMAGE_BYTES = 3 * _SIDE * _SIDE
_CLASSES = 10
_IMAGES_PER_CLASS = 500
_TRAIN_PER_CLASS = 400


def read_stl10_images(path: str | os.PathLike[str], count: int) -> npt.NDArray[np.uint8]:
    """A view `(count, 3, 96, 96)` of a file like train_X.bin, mapped and not yet read.

    The format keeps each channel column by column; the view has the two image axes exchanged, so it is
    indexed `[image, channel, row, column]`. Errors: `BadData` if the file's length is not exactly `count`
    images.
    """
    _check_length(Path(path), count * _IMAGE_BYTES, f"{count} images of 3x{_SIDE}x{_SIDE}")
    columns_first = np.memmap(path, dtype=np.uint8, mode="r", shape=(count, 3, _SIDE, _SIDE))
    return columns_first.transpose(0, 1, 3, 2)


def read_stl10_labels(path: str | os.PathLike[str], count: int) -> npt.NDArray[np.int64]:
    """The labels of a file like train_y.bin, `(count,)`, counted from 0 (the file counts from 1).

    Errors: `BadData` for another length, a label outside 1..10, or classes of unequal size.
    """
    path = Path(path)
    _check_length(path, count, f"{count} labels of one byte")
    labels = np.fromfile(path, dtype=np.uint8)
    if labels.min() < 1 or labels.max() > _CLASSES:
        raise BadData(path, f"labels must lie in 1..{_CLASSES}, found {labels.min()}..{labels.max()}")
    per_class = np.bincount(labels, minlength=_CLASSES + 1)[1:]
    if (per_class != count // _CLASSES).any():
        raise BadData(path, f"expected {count // _CLASSES} labels of each class, found {per_class.tolist()}")
    return labels.astype(np.int64) - 1


def _check_length(path: Path, expected: int, what: str) -> None:
    found = path.stat().st_size
    if found != expected:
        state = "it is truncated" if found < expected else "it is not this file"
        raise BadData(path, f"{state}: {found} bytes, expected {expected} ({what})")


def _from_binary(folder: Path, per_class: int, seed: int) -> Split:
    if not 1 <= per_class <= _TRAIN_PER_CLASS:
        raise ValueError(f"load_stl10: per_class must be in 1..{_TRAIN_PER_CLASS}, got {per_class}")
    if not (folder / "train_y.bin").is_file():
        raise MissingData(
            f"STL10: {folder / 'train_X.bin'} is there but train_y.bin beside it is not; both are in the archive "
            "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
        )
    count = _CLASSES * _IMAGES_PER_CLASS
    images = read_stl10_images(folder / "train_X.bin", count)
    labels = read_stl10_labels(folder / "train_y.bin", count)
    train: list[int] = []
    test: list[int] = []
    for label in range(_CLASSES):
        members = np.flatnonzero(labels == label)
        members = members[order(_IMAGES_PER_CLASS, seed, f"stl10/{label}")]
        train.extend(sorted(members[:per_class].tolist()))
        test.extend(sorted(members[_TRAIN_PER_CLASS:].tolist()))

    def part(indices: list[int], name: str) -> ImageSet:
        return ImageSet(
            images=torch.from_numpy(np.ascontiguousarray(images[indices])),
            labels=torch.from_numpy(labels[indices]),
            classes=DATA_SETS["stl10"].classes,
            name=f"STL10 (original binary format), {name}",
            verified=False,  # no sha256 of the original is published
        )

    return Split(part(train, f"{per_class} training images per class"), part(test, "100 held out per class"))


def _from_folders(folder: Path, per_class: int, seed: int, workers: int | None) -> Split:
    train, test = list_folder(folder / "train"), list_folder(folder / "test")
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise BadData(folder, f"train and test must have the same classes, only one of them has {different}")
    fewest = min(len(files) for files in train.files)
    if not 1 <= per_class <= fewest:
        raise ValueError(
            f"load_stl10: per_class must be in 1..{fewest}, the images in {folder / 'train'}, got {per_class}"
        )

    def part(which: str, count: int | None, name: str) -> ImageSet:
        found = load_folder(folder / which, count, seed, size=(_SIDE, _SIDE), workers=workers)
        name = f"STL10 stand-in (image folders {folder.name}), {name}"
        return ImageSet(found.images, found.labels, found.classes, name, verified=False)

    return Split(
        part("train", per_class, f"{per_class} training images per class"), part("test", None, "test images")
    )


def load_stl10(
    root: str | os.PathLike[str], per_class: int = 400, seed: int = 0, *, workers: int | None = None
) -> Split:
    """The training set STL10-n, n = `per_class`, and the test set of 001 Sect. 5; `images` are uint8 `(N, 3,
    96, 96)`.

    Looked for in `root` and its subfolders stl10_binary, stl10, STL10: the original train_X.bin and
    train_y.bin. If there are none, then in `root` and its subfolders stl10_like, stl10-like: folders
    train/CLASS and test/CLASS of 96x96 images, whose own test set is taken whole. `name` of the result says
    which was found. `seed` chooses the training images (and, of the binary format, which 100 of a class are
    held out); for one seed, STL10-10 is part of STL10-100 is part of STL10-400, and the test set does not
    depend on n.

    `verified` is always False: the structure is checked (lengths, label range, 500 per class, size of every
    image), but no sha256 of the original is published.

    Errors: `MissingData` with the folders searched and how to get the data; `BadData` naming the file that is
    truncated or foreign; ValueError for a `per_class` that the data cannot give; ImportError naming the extra
    where pillow is missing and images have to be decoded.
    """
    folder = check_root("load_stl10", root)
    if isinstance(per_class, bool) or not isinstance(per_class, int):
        raise TypeError(f"load_stl10: per_class must be an int, got {type(per_class).__name__}")
    check_seed("load_stl10", seed)
    for candidate in (folder / name for name in DATA_SETS["stl10"].folders):
        if (candidate / "train_X.bin").is_file():
            return _from_binary(candidate, per_class, seed)
    for candidate in (folder / name for name in DATA_SETS["stl10-like"].folders):
        if (candidate / "train").is_dir() and (candidate / "test").is_dir():
            return _from_folders(candidate, per_class, seed, workers)
    raise MissingData(
        f"STL10 was not found: {folder} has neither train_X.bin (in itself, stl10_binary, stl10, STL10) nor "
        f"image folders train/CLASS and test/CLASS (in itself, stl10_like or stl10-like); "
        f"{DATA_SETS['stl10'].by_hand}"
    )
