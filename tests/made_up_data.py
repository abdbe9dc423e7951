"""Data folders of random pictures in the formats that the readers take, for tests of what is done with them."""

from __future__ import annotations

import gzip
import io
import struct
import wave
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


def fsdd(root: Path, *, takes: int = 12, longest: int = 900) -> Path:
    """``root/fsdd/fsdd_subset.npz`` with `takes` recordings of each digit by one speaker; returns `root`.

    Digit d is a tone of d + 1 waves in 200 samples, in noise; take i has ``longest - 50 i`` samples.
    """
    generator = np.random.default_rng(0)
    recordings, labels, indices = [], [], []
    for digit in range(10):
        for take in range(takes):
            time = np.arange(longest - 50 * take)
            tone = np.sin(2 * np.pi * (digit + 1) * time / 200) + 0.2 * generator.standard_normal(len(time))
            recordings.append((8000 * tone).astype(np.int16))
            labels.append(digit)
            indices.append(take)
    (root / "fsdd").mkdir(parents=True)
    np.savez(
        root / "fsdd" / "fsdd_subset.npz",
        samples=np.concatenate(recordings),
        offsets=np.cumsum([0, *map(len, recordings)]),
        digit=np.array(labels),
        index=np.array(indices),
        rate=np.array(1000),
    )
    return root


def birds10(root: Path, *, samples: int = 3000) -> Path:
    """``root/birds10/birds10.npz`` with a recording of each of ten species; returns `root`."""
    generator = np.random.default_rng(1)
    time = np.arange(samples)
    tones = np.stack([np.sin(2 * np.pi * (bird + 1) * time / 200) for bird in range(10)])
    noisy = 8000 * (tones + 0.2 * generator.standard_normal(tones.shape))
    (root / "birds10").mkdir(parents=True)
    np.savez(
        root / "birds10" / "birds10.npz",
        samples=noisy.astype(np.int16),
        species=np.array([f"Avis {bird}" for bird in range(10)]),
        rate=np.array(1000),
    )
    return root


def wav(path: Path, samples: np.ndarray, *, rate: int = 1000, width: int = 2) -> Path:
    """A wav file of integer samples ``(n,)`` or ``(n, channels)`` of `width` bytes; returns its path."""
    columns = samples.reshape(len(samples), -1)
    values = (columns + 128 if width == 1 else columns).astype("<i8")
    content = values.view(np.uint8).reshape(*columns.shape, 8)[..., :width].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(columns.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)
    return path
