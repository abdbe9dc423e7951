"""MNIST and Fashion-MNIST in the idx format they were published in.

An idx file is two zero bytes, a type byte (8 for unsigned bytes), the number of dimensions, each dimension as
a big-endian 32-bit integer, then the values in C order; the published files are gzip-compressed. Reader and
checks are strict: one byte too few or too many, or a count that another file contradicts, is an error that
names the file.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import shlex
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch

from lmser.data.image_set import ImageSet
from lmser.data.integrity import BadData, MissingData, check_root
from lmser.data.registry import DATA_SETS, DataSet

__all__ = ["load_mnist", "read_idx"]

_UNSIGNED_BYTE = 8
_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
_GZIP = b"\x1f\x8b"

# The training images are 47 MB. The limit keeps a damaged or hostile header from asking for terabytes.
_MAX_BYTES = 1 << 30


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """The unsigned bytes of an idx file, plain or gzip-compressed (told apart by content), in their shape.

    Errors: FileNotFoundError; `BadData` naming the file for a gzip stream that is truncated, corrupt or
    followed by something else, a bad magic number, a type other than unsigned bytes, no dimension or an
    unreasonable size, fewer bytes than the header says, or more.
    """
    return _parse(Path(path), _content(Path(path)))


def _content(path: Path) -> bytes:
    """The file's bytes, uncompressed if it is a gzip file; read to the end, where gzip's checksum is."""
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == _GZIP
            file.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=file) as stream:
                    return _read_limited(path, stream)
            return _read_limited(path, file)
    except EOFError as error:
        raise BadData(path, "the gzip file ends too early, it is truncated") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadData(path, f"the gzip file is corrupt ({error})") from error


def _read_limited(path: Path, stream: IO[bytes] | gzip.GzipFile) -> bytes:
    content = io.BytesIO()
    while block := stream.read(1 << 20):
        content.write(block)
        if content.tell() > _MAX_BYTES:
            raise BadData(path, f"it holds more than {_MAX_BYTES} bytes, which no file of this kind does")
    return content.getvalue()


def _parse(path: Path, content: bytes) -> npt.NDArray[np.uint8]:
    if len(content) < 4:
        raise BadData(path, f"it holds {len(content)} bytes, an idx file has at least a 4-byte magic number")
    zero, kind, dimensions = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind not in _TYPES:
        raise BadData(path, f"it is not an idx file: the magic number is 0x{content[:4].hex()}")
    if kind != _UNSIGNED_BYTE:
        raise BadData(path, f"it holds {_TYPES[kind]} values, expected uint8")
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(content) < start:
        raise BadData(path, f"the header announces {dimensions} dimensions in a file of {len(content)} bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected, found = math.prod(shape), len(content) - start
    if found < expected:
        raise BadData(
            path, f"it is truncated: the header says {shape}, {expected} values, but {found} follow"
        )
    if found > expected:
        raise BadData(
            path, f"{found - expected} bytes too many follow the {expected} values that the header says"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _locate(data_set: DataSet, root: Path, stem: str) -> tuple[Path, Path]:
    """The files of images and labels of the part `stem`, from the first folder that has either."""
    folders = [root / folder for folder in data_set.folders]
    for folder in folders:
        found = {}
        for kind in ("images-idx3", "labels-idx1"):
            names = (f"{stem}-{kind}-ubyte.gz", f"{stem}-{kind}-ubyte")
            found[kind] = next((folder / name for name in names if (folder / name).is_file()), None)
        images, labels = found["images-idx3"], found["labels-idx1"]
        if images is not None and labels is not None:
            return images, labels
        if images is not None or labels is not None:
            lacking = "labels-idx1" if labels is None else "images-idx3"
            raise MissingData(
                f"{data_set.title}: {images or labels} is there but not {stem}-{lacking}-ubyte.gz beside it; "
                f"{_command(data_set, root)} downloads the set"
            )
    subfolders = ", ".join(folder for folder in data_set.folders if folder != ".")
    raise MissingData(
        f"{data_set.title} was not found: no {stem}-images-idx3-ubyte(.gz) in {root} or its subfolders "
        f"{subfolders}; {_command(data_set, root)} downloads it"
    )


def _command(data_set: DataSet, root: Path) -> str:
    """What puts the set where it was looked for."""
    return f"`{shlex.join(['lmser', 'data', 'get', data_set.key, '--root', str(root)])}`"


def _is_original(path: Path, content: bytes, data_set: DataSet) -> bool:
    """Whether `content` is the original of this file; an error if it is the original of another one."""
    digest = hashlib.sha256(content).hexdigest()
    wanted = path.name.removesuffix(".gz")
    for other in DATA_SETS.values():
        for file in other.files:
            if file.content_sha256 != digest:
                continue
            name = file.name.removesuffix(".gz")
            if other is not data_set or name != wanted:
                raise BadData(path, f"it is {name} of {other.title}, not {wanted} of {data_set.title}")
            return True
    return False


def load_mnist(root: str | os.PathLike[str], fashion: bool = False, train: bool = True) -> ImageSet:
    """MNIST, or Fashion-MNIST, from its four original files, compressed or not.

    The files are looked for in `root` and its subfolders mnist, MNIST, MNIST/raw (fashion-mnist, fashion,
    FashionMNIST, FashionMNIST/raw), subfolders first because both sets use the same file names. `images` is
    uint8 `(N, 28, 28)`, `labels` int64 `(N,)` in 0..9; N is 60,000, or 10,000 for `train=False`. `verified`
    says that the uncompressed content of both files has the sha256 of the original; files of the right
    structure with other content are accepted and reported as not verified.

    Errors: `MissingData` in one sentence with the folders searched and the command that downloads the set;
    `BadData` for what `read_idx` refuses, images that are not 28x28, labels outside 0..9, two counts, no
    image, or an original file of another part or of the other set.
    """
    data_set = DATA_SETS["fashion-mnist" if fashion else "mnist"]
    folder = check_root("load_mnist", root)
    image_path, label_path = _locate(data_set, folder, "train" if train else "t10k")
    image_content, label_content = _content(image_path), _content(label_path)
    images, labels = _parse(image_path, image_content), _parse(label_path, label_content)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise BadData(image_path, f"expected images of shape (N, 28, 28), got {images.shape}")
    if labels.ndim != 1:
        raise BadData(label_path, f"expected labels of shape (N,), got {labels.shape}")
    if len(images) == 0:
        raise BadData(image_path, "it holds no image")
    if len(images) != len(labels):
        raise BadData(
            label_path, f"it holds {len(labels)} labels, but {image_path.name} holds {len(images)} images"
        )
    if labels.max() > 9:
        raise BadData(label_path, f"labels must lie in 0..9, found {labels.max()}")
    verified = [
        _is_original(image_path, image_content, data_set),
        _is_original(label_path, label_content, data_set),
    ]
    return ImageSet(
        images=torch.from_numpy(images.copy()),  # a copy: the bytes read are not writable, a tensor is
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=data_set.classes,
        name=f"{data_set.title}, {'training' if train else 'test'} part",
        verified=all(verified),
    )
