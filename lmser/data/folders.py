"""Images sorted into one folder per class: `FOLDER/CLASS/*.jpg` (or .jpeg, .png)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lmser.data._draws import check_seed, order
from lmser.data.decode import decode_all
from lmser.data.image_set import ImageSet
from lmser.data.integrity import BadData, check_root

__all__ = ["ImageFolder", "list_folder", "load_folder"]

_SUFFIXES = (".jpg", ".jpeg", ".png")
# What file managers leave behind; names that start with a dot are passed over as well.
_DESKTOP_FILES = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class ImageFolder:
    """The files of a folder of classes, sorted by name: `files[i]` are those of `classes[i]`."""

    path: Path
    classes: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]


def _visible(folder: Path) -> list[Path]:
    entries = [
        p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in _DESKTOP_FILES
    ]
    return sorted(entries, key=lambda entry: entry.name)


def list_folder(path: str | os.PathLike[str]) -> ImageFolder:
    """What is in a folder of classes.

    Errors: `MissingData` if there is no such folder; `BadData` naming the entry for a folder without classes,
    a class without images, a stray file among the classes, or a file that is not called .jpg, .jpeg or .png.
    """
    root = check_root("list_folder", path)
    classes, files = [], []
    for entry in _visible(root):
        if not entry.is_dir():
            raise BadData(entry, f"expected one folder per class in {root}, this is a file")
        inside = _visible(entry)
        for file in inside:
            if not file.is_file() or file.suffix.lower() not in _SUFFIXES:
                raise BadData(file, f"expected image files ({', '.join(_SUFFIXES)}) only in a class folder")
        if not inside:
            raise BadData(entry, "the class folder holds no image")
        classes.append(entry.name)
        files.append(tuple(inside))
    if not classes:
        raise BadData(root, "it holds no class folder")
    return ImageFolder(root, tuple(classes), tuple(files))


def load_folder(
    path: str | os.PathLike[str],
    per_class: int | None = None,
    seed: int = 0,
    *,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
) -> ImageSet:
    """A folder of classes as one set, class by class in the order of their names.

    `per_class` images of each class are chosen by `seed` (default all); the choices of one seed are nested,
    so 10 per class are among the 100 per class, and depend on the number of files of a class, not on the
    machine. Only the chosen files are decoded. `size` is the `(H, W)` all must have, by default that of the
    first.

    Errors: as `list_folder` and `decode.decode_all`; ValueError for a `per_class` below 1 or above what a
    class has.
    """
    folder = list_folder(path)
    check_seed("load_folder", seed)
    chosen: list[Path] = []
    labels: list[int] = []
    for label, (name, files) in enumerate(zip(folder.classes, folder.files, strict=True)):
        count = len(files) if per_class is None else per_class
        if not 1 <= count <= len(files):
            raise ValueError(
                f"load_folder: per_class must be in 1..{len(files)}, the images of class {name!r} in "
                f"{folder.path}, got {per_class}"
            )
        indices = sorted(order(len(files), seed, f"folder/{label}")[:count].tolist())
        chosen.extend(files[i] for i in indices)
        labels.extend([label] * count)
    return ImageSet(
        images=decode_all(chosen, size, workers),
        labels=torch.tensor(labels, dtype=torch.int64),
        classes=folder.classes,
        name=f"image folder {folder.path.name}",
        verified=False,
    )
