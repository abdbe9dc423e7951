"""Folders of photographs, flat or nested, listed and split into a training and a test part by file name.

000 trains on CelebA, 001 on CelebA-HQ (27,000 images for training, 3,000 for testing, chosen at random) and
on Places2 (180,000 of its training images, 10,000 of its test images, chosen at random). The papers do not
say which images: here a seed and the names of the files do, on every machine in the same way.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lmser.data._draws import check_seed
from lmser.data.integrity import BadData, MissingData, check_root
from lmser.data.registry import DATA_SETS

__all__ = ["DATA_SET_KEYS", "PhotoFiles", "PhotoSplit", "find_photos"]

DATA_SET_KEYS = {
    "faces": ("celeba", "celeba-hq", "celeba-like"),
    "faces-hq": ("celeba-hq", "celeba-like"),
    "scenes": ("places2", "places2-like"),
}
"""What a name stands for: the keys of `registry.DATA_SETS` that are tried, in this order."""

_SUFFIXES = (".jpg", ".jpeg", ".png")
# What file managers leave behind; names that start with a dot are passed over as well.
_DESKTOP_FILES = ("thumbs.db", "desktop.ini")

# The partition that is published with CelebA: files 1-162,770 for training, 162,771-182,637 for validation,
# the rest for testing. It keeps every person in one part.
_CELEBA_FILES = 202_599
_CELEBA_TRAIN_UNTIL = 162_770
_CELEBA_TEST_FROM = 182_638
_CELEBA_SIZE = (218, 178)

# 001, Sect. 5: "180k subset of the original training set", "10,000 images randomly chosen from the original
# test set".
_PLACES2_TRAIN = 180_000
_PLACES2_TEST = 10_000

_TEST_SHARE = 10  # 1/10 of the images are for testing where a data set does not say: 3,000 of 30,000 in 001


@dataclass(frozen=True)
class PhotoFiles:
    """Files of one part of a data set.

    key: of the data set in `registry.DATA_SETS`. folder: what `names` are relative to. names: sorted, with
    "/" between folders. title: the data set, the form in which it was found and the part, in words. subject:
    what the photographs show ("face", "scene"). size: the `(H, W)` that every image of this data set has,
    None where it may be any.
    """

    key: str
    folder: Path
    names: tuple[str, ...]
    title: str
    subject: str
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return self.folder / self.names[index]


class PhotoSplit(NamedTuple):
    """Training files and test files that share none."""

    train: PhotoFiles
    test: PhotoFiles


def find_photos(
    root: str | os.PathLike[str],
    dataset: str,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> PhotoSplit:
    """The files of a data set of photographs in the data folder `root`. No image is read.

    `dataset` is "faces" (CelebA, else CelebA-HQ, else the stand-in), "faces-hq" (CelebA-HQ, else the
    stand-in), "scenes" (Places2, else the stand-in), or one key of `registry.DATA_SETS`: "celeba",
    "celeba-hq", "celeba-like", "places2", "places2-like". `title` of the result says which was found.

    ============  ================================================  =========================================
    CelebA        img_align_celeba/000001.jpg …, 178x218            its own partition, 162,770 and 19,962
    CelebA-HQ     images of any size, also in subfolders            9/10 and 1/10: 27,000 and 3,000
    Places2       data_256/a/abbey/*.jpg and test_256/*.jpg, or     180,000 of data_256 and 10,000 of
                  val_256/*.jpg                                     test_256 (val_256 if there is none)
    stand-ins     faces128/*.jpg, scenes256/*.jpg                   9/10 and 1/10
    ============  ================================================  =========================================

    Chosen are the files with the smallest sha256 of seed and name without suffix, the first tenth of them
    for testing; so the choice depends on nothing but these. `train` and `test` limit the numbers: the images
    of a smaller number are among those of a larger one, and the test images do not depend on `train`.

    Errors: ValueError for another data set, a number below 1 or above what there is; `MissingData` with the
    folders searched and how to get the data; `BadData` naming the entry for a file that is not called .jpg,
    .jpeg or .png, a link to a folder, an empty folder, or a CelebA that is not complete.
    """
    folder = check_root("find_photos", root)
    check_seed("find_photos", seed)
    for name, count in (("train", train), ("test", test)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
            raise TypeError(f"find_photos: {name} must be an int or None, got {type(count).__name__}")
        if count is not None and count < 1:
            raise ValueError(f"find_photos: {name} must be at least 1, got {count}")
    found = _find(folder, dataset, seed)
    return PhotoSplit(
        _part(found.train, "train", "training", found.usual[0] if train is None else train, seed),
        _part(found.test, "test", "test", found.usual[1] if test is None else test, seed),
    )


class _Found(NamedTuple):
    """All files for training and for testing in the order in which they are chosen, and how many usually are
    (None: all)."""

    train: PhotoFiles
    test: PhotoFiles
    usual: tuple[int | None, int | None] = (None, None)


def _part(ranked: PhotoFiles, argument: str, part: str, count: int | None, seed: int) -> PhotoFiles:
    """The first `count` of `ranked`, sorted."""
    if count is None:
        count = len(ranked)
    if not 1 <= count <= len(ranked):
        raise ValueError(
            f"find_photos: {argument} must be in 1..{len(ranked)}, the {part} images of {ranked.title} in "
            f"{ranked.folder}, got {count}"
        )
    title = f"{ranked.title}, {count:,} {part} images by file name, seed {seed}"
    return replace(ranked, names=tuple(sorted(ranked.names[:count])), title=title)


def _find(root: Path, dataset: str, seed: int) -> _Found:
    """The first data set that `dataset` stands for and that `root` has."""
    singles = {key: (key,) for keys in DATA_SET_KEYS.values() for key in keys}
    keys = {**DATA_SET_KEYS, **singles}.get(dataset)
    if keys is None:
        raise ValueError(
            f"find_photos: dataset must be one of {', '.join([*DATA_SET_KEYS, *singles])}, got {dataset!r}"
        )
    for key in keys:
        for place in DATA_SETS[key].folders:
            if key == "places2":
                if (root / place / "data_256").is_dir():
                    return _places2(root / place, seed)
            elif (root / place).is_dir():
                return (
                    _celeba(root / place, seed) if key == "celeba" else _one_folder(key, root / place, seed)
                )
    raise MissingData(
        "; ".join(
            f"{DATA_SETS[key].title} was not found: {root} has none of the folders "
            f"{', '.join(DATA_SETS[key].folders)}{' with data_256 in it' if key == 'places2' else ''}: "
            f"{DATA_SETS[key].by_hand}"
            for key in keys
        )
    )


def _one_folder(key: str, folder: Path, seed: int) -> _Found:
    """CelebA-HQ and the stand-ins: all images in one folder, split by seed."""
    names = _ranked(_list(folder), seed)
    tests = len(names) // _TEST_SHARE
    if tests == 0:
        raise BadData(
            folder, f"it holds {len(names)} images, too few to keep one in {_TEST_SHARE} for testing"
        )
    subject = "scene" if key == "places2-like" else "face"
    title = f"{DATA_SETS[key].title} ({folder.name})"
    return _Found(
        PhotoFiles(key, folder, names[tests:], title, subject),
        PhotoFiles(key, folder, names[:tests], title, subject),
    )


def _celeba(folder: Path, seed: int) -> _Found:
    names = _list(folder)
    if names != tuple(f"{i:06}.jpg" for i in range(1, _CELEBA_FILES + 1)):
        raise BadData(
            folder,
            f"expected the {_CELEBA_FILES:,} files 000001.jpg to {_CELEBA_FILES:06}.jpg of CelebA, found "
            f"{len(names):,} images from {names[0]} to {names[-1]}",
        )
    title = f"{DATA_SETS['celeba'].title} ({folder.name}, its own partition)"

    def part(names: tuple[str, ...]) -> PhotoFiles:
        return PhotoFiles("celeba", folder, _ranked(names, seed), title, "face", _CELEBA_SIZE)

    return _Found(part(names[:_CELEBA_TRAIN_UNTIL]), part(names[_CELEBA_TEST_FROM - 1 :]))


def _places2(folder: Path, seed: int) -> _Found:
    tests = next((folder / name for name in ("test_256", "val_256") if (folder / name).is_dir()), None)
    if tests is None:
        raise MissingData(
            f"Places2: {folder / 'data_256'} is there but neither test_256 nor val_256 beside it; "
            f"{DATA_SETS['places2'].by_hand}"
        )

    def part(inside: Path) -> PhotoFiles:
        title = f"{DATA_SETS['places2'].title} ({inside.name})"
        return PhotoFiles("places2", inside, _ranked(_list(inside), seed), title, "scene")

    return _Found(part(folder / "data_256"), part(tests), (_PLACES2_TRAIN, _PLACES2_TEST))


def _ranked(names: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """`names` in an order that depends on the seed and on nothing but each name without its suffix."""

    def rank(name: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}/{name.rpartition('.')[0]}".encode()).digest(), name

    return tuple(sorted(names, key=rank))


def _list(folder: Path) -> tuple[str, ...]:
    """The image files in a folder and its subfolders, relative to it, sorted."""
    names: list[str] = []
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}{entry.name}"
                if entry.name.startswith(".") or entry.name.lower() in _DESKTOP_FILES:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                elif entry.is_file() and entry.name.lower().endswith(_SUFFIXES):
                    names.append(name)
                else:
                    raise BadData(
                        folder / name,
                        f"expected only image files ({', '.join(_SUFFIXES)}) and folders of them",
                    )
    if not names:
        raise BadData(folder, "it holds no image")
    return tuple(sorted(names))
