"""Data folders of random pictures in the formats that the readers take, for tests of what is done with them."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest


def digits(root: Path, *names: str, train: int = 60, test: int = 20) -> Path:
    """``root/NAME/*.gz`` as MNIST's, the ten classes in turn; returns `root`."""
    generator = np.random.default_rng(0)
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        for part, count in (("train", train), ("t10k", test)):
            pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = np.arange(count, dtype=np.uint8) % 10
            for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
                header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
                with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb") as file:
                    file.write(header + values.tobytes())
    return root


def stl10(root: Path, *, train: int = 3, test: int = 2) -> Path:
    """``root/stl10_like/PART/CLASS/*.png`` with two classes; returns `root`."""
    for part, count in (("train", train), ("test", test)):
        for name in ("church", "parachute"):
            pictures(root / "stl10_like" / part / name, count, (96, 96))
    return root


def pictures(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """``folder/N.png``, colour pictures of `size` (height, width); returns `folder`."""
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(sum(folder.name.encode()))
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def omniglot(root: Path, part: str = "background", *, characters: int = 3) -> Path:
    """``root/omniglot/images_PART.zip`` with characters of two alphabets; returns `root`.

    Drawing d of character c is white paper with a black square of side 10 + d at row 5 c.
    """
    image = pytest.importorskip("PIL.Image")
    (root / "omniglot").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / "omniglot" / f"images_{part}.zip", "w") as archive:
        for character in range(characters):
            alphabet = f"{'Latin' if character else 'Greek'}/character{max(character, 1):02}"
            for drawing in range(1, 21):
                paper = np.ones((105, 105), dtype=bool)
                paper[5 * character : 5 * character + 10 + drawing, 40 : 50 + drawing] = False
                content = io.BytesIO()
                image.fromarray(paper).save(content, format="PNG")
                name = f"images_{part}/{alphabet}/{character + 1:04}_{drawing:02}.png"
                archive.writestr(name, content.getvalue())
    return root
