"""JPEG and PNG files to tensors, in parallel threads: pillow decodes without the interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmser._extras import require
from lmser.data.integrity import BadData

__all__ = ["decode", "decode_all"]

_FORMATS = ("JPEG", "PNG")


def decode(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Tensor:
    """One JPEG or PNG file as uint8 `(3, H, W)`, RGB. Grey and palette images are expanded.

    `size` is the `(H, W)` that the image must have, compared with the header before any pixel is decoded.

    Errors: ImportError naming the extra without pillow; FileNotFoundError; `BadData` naming the file if it is
    not a JPEG or PNG image, is truncated or corrupt, or has another size.
    """
    return _decode(require("PIL.Image"), Path(path), size)


def _decode(pillow: Any, path: Path, size: tuple[int, int] | None) -> Tensor:
    with open(path, "rb") as file:
        try:
            with pillow.open(file, formats=_FORMATS) as image:
                found = (image.height, image.width)
                if size is not None and found != tuple(size):
                    raise BadData(
                        path,
                        f"the image is {found[0]}x{found[1]}, expected {size[0]}x{size[1]} (height x width)",
                    )
                pixels = np.array(image.convert("RGB"))
        except pillow.UnidentifiedImageError as error:
            raise BadData(path, "it is not a JPEG or PNG image") from error
        except (OSError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:
            # OSError and SyntaxError are what pillow raises for truncated and for malformed files.
            raise BadData(path, f"the image cannot be decoded ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def decode_all(
    paths: Sequence[str | os.PathLike[str]], size: tuple[int, int] | None = None, workers: int | None = None
) -> Tensor:
    """Files of one size as uint8 `(N, 3, H, W)`, in the order of `paths`.

    `size` defaults to that of the first file. `workers` threads decode (default: one per processor, at most
    8); the result does not depend on their number. Errors: as `decode`, for the first bad file in the order
    of `paths`; ValueError for no path or `workers` below 1.
    """
    if not paths:
        raise ValueError("decode_all: paths is empty")
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    if workers < 1:
        raise ValueError(f"decode_all: workers must be at least 1, got {workers}")
    pillow = require("PIL.Image")
    first = _decode(pillow, Path(paths[0]), size)
    expected = (first.shape[1], first.shape[2])
    images = torch.empty((len(paths), *first.shape), dtype=torch.uint8)

    def fill(index: int) -> None:
        images[index] = _decode(pillow, Path(paths[index]), expected)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in pool.map(fill, range(len(paths))):
                pass
        except BaseException:
            # A bad file, or Ctrl-C, is not followed by thousands of others.
            pool.shutdown(cancel_futures=True)
            raise
    return images
