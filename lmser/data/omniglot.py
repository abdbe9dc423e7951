"""Omniglot from its zip files, read in place: handwritten characters, reduced to 28x28.

images_background.zip and images_evaluation.zip hold PART/ALPHABET/characterNN/NNNN_MM.png, 20 drawings of
each character by 20 people, 105x105 and 1 bit deep, black strokes on white. 004 (App. D.3) trains on 15,424
images of 28x28 and tests on 3,856: these are the 19,280 of the background part divided 4 to 1. It says neither
which images nor how they are reduced.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmser._extras import require
from lmser.data._checks import check_count
from lmser.data._draws import check_seed, order
from lmser.data.decode import fill
from lmser.data.image_set import ImageSet, Split
from lmser.data.integrity import BadData, MissingData, check_root
from lmser.data.registry import DATA_SETS

__all__ = ["load_omniglot"]

_SIDE = 105
_DRAWINGS = 20
_TEST_DRAWINGS = 4
_MOST_BYTES = 1 << 16  # drawings have some hundreds
_NAME = re.compile(r"([^/]+)/([^/]+)/(character\d+)/(\d{4})_(\d{2})\.png")


def load_omniglot(
    root: str | os.PathLike[str],
    part: Literal["background", "evaluation"] = "background",
    *,
    size: int = 28,
    seed: int = 0,
    workers: int | None = None,
) -> Split:
    """Training and test drawings; `images` are uint8 `(N, size, size)`, white strokes on black.

    Of the 20 drawings of each character, `seed` chooses 4 for testing: 15,424 and 3,856 of the background
    part's 964 characters, 10,544 and 2,636 of the evaluation part's 659. All characters are in both sets,
    drawn by different people.

    Every drawing is inverted and reduced from 105x105 with pillow's Lanczos filter, which widens with the
    reduction and so does not alias; strokes, 2 to 3 pixels wide before, come out in greys.

    The zip file is looked for in `root` and its subfolders omniglot, Omniglot, omniglot-py and is not
    unpacked. The 19,280 drawings take some seconds, decoded by `workers` threads (default: one per processor, at
    most 8; the result does not depend on it). `labels` count the characters in the order of their folders,
    `classes` are their names, like "Greek/character01". `verified` is False: names, numbers and sizes are
    checked, but the checksums of the original's zip files are not published as sha256.

    Errors: `MissingData` with the folders searched and how to get the data; `BadData` naming the file, or
    the entry in it, for a zip file that is damaged, an entry that does not belong there, a character without
    exactly 20 drawings, or a drawing that is not a PNG image of 105x105 and 1 bit; TypeError or ValueError for
    another part, a size outside 1..105 or a negative seed; ImportError naming the extra where pillow is missing.
    """
    folder = check_root("load_omniglot", root)
    if part not in ("background", "evaluation"):
        raise ValueError(f"load_omniglot: part must be 'background' or 'evaluation', got {part!r}")
    if check_count("load_omniglot", "size", size) > _SIDE:
        raise ValueError(f"load_omniglot: size must be in 1..{_SIDE}, got {size}")
    check_seed("load_omniglot", seed)
    path = _locate(folder, part)
    with _opened(path) as archive:
        characters = _characters(path, archive, f"images_{part}")
        train, test = _split(characters, seed)

        def part_of(drawings: _Drawings, use: str) -> ImageSet:
            return ImageSet(
                images=_decode(path, archive, [entry for _, entry in drawings], size, workers),
                labels=torch.tensor([label for label, _ in drawings], dtype=torch.int64),
                classes=tuple(characters),
                name=f"Omniglot ({part} part), {len(drawings):,} {use} drawings, {size}x{size}, seed {seed}",
                verified=False,
            )

        return Split(part_of(train, "training"), part_of(test, "test"))


def _locate(root: Path, part: str) -> Path:
    data_set, name = DATA_SETS["omniglot"], f"images_{part}.zip"
    for folder in data_set.folders:
        if (root / folder / name).is_file():
            return root / folder / name
    raise MissingData(
        f"Omniglot was not found: {name} is neither in {root} nor in its subfolders "
        f"{', '.join(folder for folder in data_set.folders if folder != '.')}; {data_set.by_hand}"
    )


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise BadData(path, f"it is not a zip file, or truncated or corrupt ({error})") from error


def _characters(path: Path, archive: zipfile.ZipFile, top: str) -> dict[str, list[zipfile.ZipInfo]]:
    """The drawings of each character, by the number at the end of their names; characters sorted by name."""
    found: dict[str, list[tuple[int, zipfile.ZipInfo]]] = {}
    for entry in archive.infolist():
        # What the archivers of macOS add, and folders, which most others do.
        if entry.is_dir() or entry.filename.startswith("__MACOSX/") or entry.filename.endswith(".DS_Store"):
            continue
        name = _NAME.fullmatch(entry.filename)
        if name is None or name[1] != top:
            raise BadData(
                path / entry.filename, f"expected only drawings {top}/ALPHABET/characterNN/NNNN_MM.png"
            )
        found.setdefault(f"{name[2]}/{name[3]}", []).append((int(name[5]), entry))
    if not found:
        raise BadData(path, "it holds no drawing")
    for character, drawings in found.items():
        drawings.sort(key=itemgetter(0))
        numbers = [number for number, _ in drawings]
        if numbers != list(range(1, _DRAWINGS + 1)):
            raise BadData(path, f"expected drawings 1 to {_DRAWINGS} of {character}, found {numbers}")
    return {character: [entry for _, entry in found[character]] for character in sorted(found)}


_Drawings = list[tuple[int, zipfile.ZipInfo]]
"""The labels and the entries of drawings."""


def _split(characters: dict[str, list[zipfile.ZipInfo]], seed: int) -> tuple[_Drawings, _Drawings]:
    train: _Drawings = []
    test: _Drawings = []
    for label, (name, drawings) in enumerate(characters.items()):
        tests = set(order(_DRAWINGS, seed, f"omniglot/{name}")[:_TEST_DRAWINGS].tolist())
        for number, entry in enumerate(drawings):
            (test if number in tests else train).append((label, entry))
    return train, test


def _decode(
    path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], size: int, workers: int | None
) -> Tensor:
    pillow = require("PIL.Image")
    images = torch.empty((len(entries), size, size), dtype=torch.uint8)
    fill(images, lambda i: _drawing(pillow, path, archive, entries[i], size), workers, "load_omniglot")
    return images


def _drawing(pillow: Any, path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: int) -> Tensor:
    inside = path / entry.filename
    if entry.file_size > _MOST_BYTES:
        raise BadData(inside, f"it holds {entry.file_size} bytes, a drawing at most {_MOST_BYTES}")
    try:
        content = archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError: the entry is encrypted. NotImplementedError: a way to pack that Python does not know.
        raise BadData(inside, f"the entry cannot be read ({error})") from error
    try:
        with pillow.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.mode != "1" or image.size != (_SIDE, _SIDE):
                raise BadData(
                    inside,
                    f"expected an image of {_SIDE}x{_SIDE} and 1 bit, found {image.height}x{image.width} of "
                    f"mode {image.mode}",
                )
            grey = image.convert("L").resize((size, size), pillow.Resampling.LANCZOS)
    except pillow.UnidentifiedImageError as error:
        raise BadData(inside, "it is not a PNG image") from error
    except (OSError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:
        raise BadData(inside, f"the image cannot be decoded ({error})") from error
    return torch.from_numpy(255 - np.asarray(grey))
