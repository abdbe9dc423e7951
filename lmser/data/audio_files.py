"""Recordings as they lie on disk: npz files of int16 samples, and wav files."""

from __future__ import annotations

import lzma
import os
import re
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmser.data._draws import order
from lmser.data.integrity import BadData, MissingData, check_root
from lmser.data.registry import DATA_SETS

__all__ = ["PARTS", "AudioFiles", "Recording", "find_audio", "read_wav"]

PARTS = {"train": "training", "valid": "validation", "test": "testing"}
_SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}

_FSDD = re.compile(r"(\d)_([A-Za-z0-9]+)_(\d+)\.wav")
_FSDD_TEST, _FSDD_VALID = range(5), range(5, 10)
_LEAST = 3  # files of a class: one for each part


@dataclass(frozen=True)
class Recording:
    """samples: float32 ``(n,)`` on [-1, 1].  part: a key of `PARTS`."""

    samples: Tensor
    label: int
    part: str


@dataclass(frozen=True)
class AudioFiles:
    """All recordings of a data set, of one rate, at least one in each part."""

    recordings: tuple[Recording, ...]
    classes: tuple[str, ...]
    rate: int
    name: str


def find_audio(function: str, root: str | os.PathLike[str], name: str, seed: int) -> AudioFiles:
    """The recordings called `name` (see `lmser.data.load_audio`). `function` begins the messages."""
    folder = check_root(function, root)
    if not isinstance(name, str) or not name:
        raise TypeError(f"{function}: name must be the name of a data set or a folder, got {name!r}")
    known: dict[str, Callable[[Path], AudioFiles | None]] = {"fsdd": _fsdd, "birds10": _birds10}
    if name in known:
        for place in DATA_SETS[name].folders:
            found = known[name](folder / place)
            if found is not None:
                return found
        data_set = DATA_SETS[name]
        raise MissingData(
            f"{data_set.title} was not found in {folder} and its subfolders "
            f"{', '.join(place for place in data_set.folders if place != '.')}: {data_set.by_hand}"
        )
    return _by_class(check_root(function, folder / name), seed)


def _fsdd(folder: Path) -> AudioFiles | None:
    if (folder / "fsdd_subset.npz").is_file():
        return _fsdd_subset(folder / "fsdd_subset.npz")
    if (folder / "recordings").is_dir():
        return _fsdd_files(folder / "recordings")
    return None


def _fsdd_part(index: int) -> str:
    if index in _FSDD_TEST:
        return "test"
    return "valid" if index in _FSDD_VALID else "train"


def _fsdd_files(folder: Path) -> AudioFiles:
    found, rates = [], {}
    for path in sorted(folder.glob("*.wav")):
        parts = _FSDD.fullmatch(path.name)
        if parts is None:
            raise BadData(path, "expected a name like 7_jackson_32.wav, DIGIT_SPEAKER_INDEX")
        samples, rates[path] = read_wav(path)
        found.append(Recording(samples, int(parts[1]), _fsdd_part(int(parts[3]))))
    title = f"{DATA_SETS['fsdd'].title}, {len(found):,} recordings"
    return _checked(folder, found, DATA_SETS["fsdd"].classes, _one_rate(folder, rates), title)


def _fsdd_subset(path: Path) -> AudioFiles:
    read = _arrays(path, {"samples": 1, "offsets": 1, "digit": 1, "index": 1, "rate": 0})
    samples, offsets, digits = _int16(path, read["samples"]), read["offsets"], read["digit"]
    count = len(offsets) - 1
    if count < 1 or offsets[0] != 0 or offsets[-1] != len(samples) or (np.diff(offsets) < 1).any():
        raise BadData(path, f"offsets must rise from 0 to the {len(samples)} samples")
    for name in ("digit", "index"):
        if read[name].dtype.kind not in "iu" or len(read[name]) != count:
            raise BadData(path, f"{name} must be {count} integers, got {read[name].dtype} {read[name].shape}")
    if digits.min() < 0 or digits.max() > 9:
        raise BadData(path, f"digit must lie in 0..9, found {digits.min()}..{digits.max()}")
    found = [
        Recording(samples[start:end], int(digit), _fsdd_part(int(index)))
        for start, end, digit, index in zip(offsets[:-1], offsets[1:], digits, read["index"], strict=True)
    ]
    title = f"{DATA_SETS['fsdd'].title} (subset, {path.name})"
    return _checked(path, found, DATA_SETS["fsdd"].classes, _rate(path, read["rate"]), title)


def _birds10(folder: Path) -> AudioFiles | None:
    path = folder / "birds10.npz"
    if not path.is_file():
        return None
    read = _arrays(path, {"samples": 2, "species": 1, "rate": 0})
    species = tuple(map(str, read["species"]))
    if len(species) != len(read["samples"]) or len(set(species)) < len(species):
        raise BadData(
            path, f"species must be {len(read['samples'])} different names, got {', '.join(species)}"
        )
    samples = _int16(path, read["samples"])
    first = round(samples.shape[1] * _SHARES["train"])
    second = round(samples.shape[1] * (_SHARES["train"] + _SHARES["valid"]))
    found = [
        Recording(part, label, name)
        for label, recording in enumerate(samples)
        for name, part in zip(PARTS, recording.tensor_split((first, second)), strict=True)
    ]
    return _checked(
        path, found, species, _rate(path, read["rate"]), f"{DATA_SETS['birds10'].title} ({path.name})"
    )


def _by_class(folder: Path, seed: int) -> AudioFiles:
    classes = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(classes) < 2:
        raise BadData(folder, f"expected two or more folders CLASS/*.wav in it, found {len(classes)}")
    found, rates = [], {}
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() == ".wav")
        if len(files) < _LEAST:
            raise BadData(
                folder / name, f"a class needs {_LEAST} wav files or more to be divided, found {len(files)}"
            )
        place = order(len(files), seed, f"audio/{label}").argsort()
        each = max(1, len(files) // 5)
        for path, position in zip(files, place.tolist(), strict=True):
            part = "test" if position < each else "valid" if position < 2 * each else "train"
            samples, rates[path] = read_wav(path)
            found.append(Recording(samples, label, part))
    title = f"audio folder {folder.name}, {len(found):,} recordings, seed {seed}"
    return _checked(folder, found, tuple(classes), _one_rate(folder, rates), title)


def read_wav(path: Path) -> tuple[Tensor, int]:
    """Samples float32 ``(n,)`` on [-1, 1], channels averaged, and the rate, of a PCM file of 8 to 32 bits.

    Raises BadData naming the file for what is not one, is cut off or holds no sample.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            content = file.readframes(count)
    except (wave.Error, EOFError, OSError, RuntimeError) as error:
        raise BadData(path, f"it is not a wav file of PCM samples, or damaged ({error})") from error
    if not 1 <= width <= 4 or channels < 1 or rate < 1:
        raise BadData(path, f"found {channels} channels of {8 * width} bits at {rate} Hz")
    if count == 0 or len(content) != count * channels * width:
        raise BadData(
            path, f"its header promises {count} samples, it holds {len(content) // (channels * width)}"
        )
    values = _integers(content, width).reshape(-1, channels).mean(1)
    return torch.from_numpy((values / 2 ** (8 * width - 1)).astype(np.float32)), rate


def _integers(content: bytes, width: int) -> npt.NDArray[np.float64]:
    """Little-endian samples as signed numbers; those of 8 bits are stored without a sign."""
    if width == 1:
        return np.frombuffer(content, np.uint8).astype(np.float64) - 128
    if width == 3:
        # Each becomes the upper three bytes of an int32.
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0].astype(np.float64) / 256
    return np.frombuffer(content, f"<i{width}").astype(np.float64)


def _arrays(path: Path, expected: dict[str, int]) -> dict[str, Any]:
    """The arrays of an npz file, each with the number of dimensions expected of it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in expected}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise BadData(
            path, f"it is not an npz file with {', '.join(expected)}, or damaged ({error})"
        ) from error
    for name, dimensions in expected.items():
        if found[name].ndim != dimensions:
            raise BadData(path, f"{name} must have {dimensions} dimensions, got shape {found[name].shape}")
    return found


def _int16(path: Path, samples: npt.NDArray[Any]) -> Tensor:
    if samples.dtype != np.int16:
        raise BadData(path, f"samples must be int16, got {samples.dtype}")
    return torch.from_numpy(samples).float() / 2**15


def _rate(path: Path, rate: Any) -> int:
    if rate.dtype.kind not in "iu" or int(rate) < 1:
        raise BadData(path, f"rate must be a positive integer, got {rate!r}")
    return int(rate)


def _one_rate(folder: Path, rates: dict[Path, int]) -> int:
    if not rates:
        raise BadData(folder, "it holds no wav file")
    first, rate = next(iter(rates.items()))
    for path, other in rates.items():
        if other != rate:
            raise BadData(
                path, f"it has {other} samples a second, {first.name} has {rate}: resample one of them"
            )
    return rate


def _checked(
    path: Path, recordings: Iterable[Recording], classes: tuple[str, ...], rate: int, name: str
) -> AudioFiles:
    found = tuple(recordings)
    for part, use in PARTS.items():
        if not any(recording.part == part and len(recording.samples) for recording in found):
            raise BadData(path, f"it holds no recording for {use}")
    return AudioFiles(found, classes, rate, name)
