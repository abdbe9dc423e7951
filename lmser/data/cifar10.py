"""CIFAR-10 in its binary version, packed or unpacked, in its python version, or as a subset in one npz file.

A file of the binary version is 10,000 records of one label byte and 3072 bytes of pixels, each channel row by
row; there are five for training and one for testing. The python version is the same records in the same order
as pickles of Python 2. A pickle is a program; here it is run by an unpickler for which no name exists but
three of NumPy's, and behind these stand records that only keep what they are given. So neither NumPy nor
anything else is ever called by a file.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import pickle
import shlex
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lmser.data.image_set import ImageSet
from lmser.data.integrity import BadData, MissingData, check_root
from lmser.data.registry import DATA_SETS

__all__ = ["load_cifar10", "read_cifar10_binary", "read_cifar10_pickle"]

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_CLASSES = 10
_IMAGES_PER_FILE = 10_000
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = ("test_batch",)
_ARCHIVE = "cifar-10-binary.tar.gz"
_SUBSET = "cifar10_subset.npz"

# Of the files of the binary version. The first is also that of the records of an independent lossless copy.
_SHA256 = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}

# A pickle holds file names besides the records, a few bytes each.
_MOST_PICKLE_BYTES = 40 << 20

Records = npt.NDArray[np.uint8]
"""`(N, 3073)`: the label, then the pixels, as the binary version has them."""


def read_cifar10_binary(path: str | os.PathLike[str]) -> Records:
    """The records of a file like data_batch_1.bin.

    Errors: FileNotFoundError; `BadData` naming the file unless it has the length of exactly 10,000 records.
    """
    path = Path(path)
    _check_length(path, path.stat().st_size)
    return np.fromfile(path, dtype=np.uint8).reshape(_IMAGES_PER_FILE, 1 + _PIXELS)


def _check_length(path: Path, found: int) -> None:
    expected = _IMAGES_PER_FILE * (1 + _PIXELS)
    if found != expected:
        state = "it is truncated" if found < expected else "it is not this file"
        raise BadData(
            path, f"{state}: {found} bytes, expected {expected} ({_IMAGES_PER_FILE} records of {1 + _PIXELS})"
        )


def _read_archive(path: Path, names: tuple[str, ...]) -> list[tuple[Path, Records]]:
    """The records of the files `names`, read from the archive in one go; nothing is written to the disk."""
    found: dict[str, tuple[Path, Records]] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = Path(member.name).name.removesuffix(".bin")
                if name not in names or not member.isreg():
                    continue
                inside = path / member.name
                _check_length(inside, member.size)
                content = archive.extractfile(member)
                assert content is not None  # as it is a regular file
                records = np.frombuffer(content.read(), dtype=np.uint8)
                found[name] = inside, records.reshape(_IMAGES_PER_FILE, 1 + _PIXELS)
    except BadData:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise BadData(path, f"the archive cannot be read ({error})") from error
    for name in names:
        if name not in found:
            raise BadData(path, f"there is no {name}.bin in the archive")
    return [found[name] for name in names]


class _Kept:
    """What stands for `numpy.ndarray` and `numpy.dtype` while a pickle runs: keeps its arguments and state.

    Both attributes are there before the first call, because a pickle may make an object without `__init__`;
    `__setstate__` keeps it from writing any other.
    """

    arguments: tuple[Any, ...] = ()
    state: object = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Array(_Kept):
    pass


class _Dtype(_Kept):
    pass


# `_reconstruct(ndarray, (0,), b"b")` makes the array whose state follows.
_KNOWN_NAMES: dict[tuple[str, str], type[_Kept]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Kept]:
        if (module, name) not in _KNOWN_NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place in CIFAR-10")
        return _KNOWN_NAMES[module, name]

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it refers to an object outside itself")


def read_cifar10_pickle(path: str | os.PathLike[str]) -> Records:
    """The records of a file like data_batch_1 of the python version. Nothing in the file is executed.

    Errors: FileNotFoundError; `BadData` naming the file if it is too long, truncated or corrupt, asks for any
    class or function but those of a NumPy array, or does not hold 10,000 images and labels.
    """
    path = Path(path)
    if path.stat().st_size > _MOST_PICKLE_BYTES:
        raise BadData(path, f"it holds more than {_MOST_PICKLE_BYTES} bytes, which no file of CIFAR-10 does")
    try:
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:
        # Python promises no list of what a damaged pickle can raise (IndexError, TypeError, MemoryError, …).
        raise BadData(path, f"the pickle cannot be read ({error or type(error).__name__})") from error
    if not isinstance(batch, dict) or b"data" not in batch or b"labels" not in batch:
        raise BadData(path, "the pickle is not a dictionary with b'data' and b'labels'")
    labels = batch[b"labels"]
    if (
        not isinstance(labels, list)
        or len(labels) != _IMAGES_PER_FILE
        or not all(type(label) is int and 0 <= label < _CLASSES for label in labels)
    ):
        raise BadData(path, f"labels must be a list of {_IMAGES_PER_FILE} integers in 0..{_CLASSES - 1}")
    return np.concatenate([np.array(labels, dtype=np.uint8)[:, None], _pixels(path, batch[b"data"])], axis=1)


def _pixels(path: Path, data: object) -> npt.NDArray[np.uint8]:
    """The pixels `(10000, 3072)` in the state that the pickle gave to its array: (version, shape, dtype,
    whether column by column, bytes)."""
    state = data.state if isinstance(data, _Array) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise BadData(path, "data is not a NumPy array")
    _, shape, dtype, columns_first, content = state
    if not isinstance(dtype, _Dtype) or dtype.arguments[:1] not in (("u1",), (b"u1",)):
        raise BadData(path, "data must be a NumPy array of unsigned bytes")
    if shape != (_IMAGES_PER_FILE, _PIXELS) or columns_first:
        raise BadData(path, f"data must be of shape {(_IMAGES_PER_FILE, _PIXELS)} row by row, got {shape}")
    if not isinstance(content, bytes) or len(content) != _IMAGES_PER_FILE * _PIXELS:
        raise BadData(path, f"data does not hold the {_IMAGES_PER_FILE * _PIXELS} bytes of its shape")
    return np.frombuffer(content, dtype=np.uint8).reshape(_IMAGES_PER_FILE, _PIXELS)


def _read_subset(path: Path, train: bool) -> Records:
    part = "train" if train else "test"
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file[f"x_{part}"], file[f"y_{part}"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise BadData(
            path, f"it is not an npz file with x_{part} and y_{part}, or damaged ({error})"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3) or len(images) == 0:
        raise BadData(
            path, f"x_{part} must be uint8 of shape (N, 32, 32, 3), got {images.dtype} {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise BadData(
            path, f"y_{part} must be {len(images)} integers, got {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= _CLASSES:
        raise BadData(
            path, f"labels must lie in 0..{_CLASSES - 1}, found {labels.min()}..{labels.max()} in y_{part}"
        )
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), _PIXELS)
    return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)


def _original_of(records: Records) -> str | None:
    """Which of the original files holds exactly these records."""
    digest = hashlib.sha256(np.ascontiguousarray(records).data).hexdigest()
    return next((name for name, known in _SHA256.items() if known == digest), None)


def _read_files(folder: Path, suffix: str, names: tuple[str, ...]) -> list[tuple[Path, Records]]:
    read = read_cifar10_binary if suffix else read_cifar10_pickle
    paths = [folder / f"{name}{suffix}" for name in names]
    for path in paths:
        if not path.is_file():
            raise MissingData(f"CIFAR-10: {path} is missing, other files of the set are in {folder}")
    return [(path, read(path)) for path in paths]


def _find_original(root: Path, names: tuple[str, ...]) -> tuple[str, list[tuple[Path, Records]]] | None:
    """What was found, in words, and the records of each of the files `names`; None if there is nothing."""
    folders = [root / folder for folder in DATA_SETS["cifar10"].folders]

    def unpacked(suffix: str) -> Path | None:
        return next(
            (f for f in folders if any((f / (n + suffix)).is_file() for n in (*_TRAIN, *_TEST))), None
        )

    if (folder := unpacked(".bin")) is not None:
        return "binary version", _read_files(folder, ".bin", names)
    for folder in folders:
        if (folder / _ARCHIVE).is_file():
            return f"archive {_ARCHIVE}", _read_archive(folder / _ARCHIVE, names)
    if (folder := unpacked("")) is not None:
        return "python version", _read_files(folder, "", names)
    return None


def _joined(parts: list[tuple[Path, Records]], names: tuple[str, ...]) -> tuple[Records, bool]:
    """The records of all parts, checked, and whether all are the original's."""
    verified = True
    for (path, records), name in zip(parts, names, strict=True):
        if records[:, 0].max() >= _CLASSES:
            raise BadData(path, f"labels must lie in 0..{_CLASSES - 1}, found {records[:, 0].max()}")
        original = _original_of(records)
        if original not in (None, name):
            raise BadData(path, f"it is {original} of CIFAR-10, not {name}")
        verified = verified and original is not None
    whole = np.concatenate([records for _, records in parts])
    per_class = np.bincount(whole[:, 0], minlength=_CLASSES)
    if (per_class != len(whole) // _CLASSES).any():
        raise BadData(
            parts[0][0].parent,
            f"expected {len(whole) // _CLASSES} images of each class in {', '.join(names)}, "
            f"found {per_class.tolist()}",
        )
    return whole, verified


def _image_set(records: Records, name: str, verified: bool) -> ImageSet:
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(records[:, 1:]).reshape(-1, *_SHAPE)),
        labels=torch.from_numpy(records[:, 0].astype(np.int64)),
        classes=DATA_SETS["cifar10"].classes,
        name=name,
        verified=verified,
    )


def load_cifar10(root: str | os.PathLike[str], train: bool = True) -> ImageSet:
    """The training images of CIFAR-10, or its test images; `images` are uint8 `(N, 3, 32, 32)`, RGB.

    Looked for in this order: the binary version, data_batch_1.bin … data_batch_5.bin and test_batch.bin; its
    archive cifar-10-binary.tar.gz; the python version, the same names without .bin; each in `root`, in its
    subfolder cifar10 and in cifar-10-batches-bin, cifar-10-batches-py of both. N is 50,000, or 10,000 for
    `train=False`. If none is there, the npz file cifar10_subset.npz in `root` or its subfolder cifar10: arrays
    x_train, x_test uint8 `(N, 32, 32, 3)` and y_train, y_test `(N,)`. `name` of the result says which was
    found, a subset as such.

    `verified` says that the labels and pixels have the sha256 of the original binary files (for a subset: of
    one of them). Where they have not, lengths, label range and equal numbers of each class are checked all
    the same (of a subset: lengths and range).

    Errors: `MissingData` with the folders searched, or the one file that is not beside the others; `BadData`
    naming the file that is truncated, foreign, or the original of another part.
    """
    if not isinstance(train, bool):
        raise TypeError(f"load_cifar10: train must be True or False, got {train!r}")
    folder = check_root("load_cifar10", root)
    names, part = (_TRAIN, "training") if train else (_TEST, "test")
    original = _find_original(folder, names)
    if original is not None:
        version, parts = original
        records, verified = _joined(parts, names)
        return _image_set(records, f"CIFAR-10 ({version}), {part} part", verified)
    for candidate in (folder / name for name in DATA_SETS["cifar10-subset"].folders):
        if (candidate / _SUBSET).is_file():
            records = _read_subset(candidate / _SUBSET, train)
            name = f"CIFAR-10 subset ({_SUBSET}), {len(records):,} {part} images"
            return _image_set(records, name, _original_of(records) is not None)
    raise MissingData(
        f"CIFAR-10 was not found: {folder} has neither data_batch_1.bin, {_ARCHIVE} nor data_batch_1 (in itself, "
        f"cifar10, cifar-10-batches-bin, cifar-10-batches-py) nor {_SUBSET} (in itself, cifar10); "
        f"`{shlex.join(['lmser', 'data', 'get', 'cifar10', '--root', str(folder)])}` downloads the archive"
    )
