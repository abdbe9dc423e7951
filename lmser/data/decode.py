"""JPEG and PNG files to tensors, in parallel threads: pillow decodes without the interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmser._extras import require
from lmser.data.integrity import BadData

__all__ = ["decode", "decode_all", "decode_square", "decode_squares", "fill"]

_FORMATS = ("JPEG", "PNG")


def decode(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Tensor:
    """One JPEG or PNG file as uint8 `(3, H, W)`, RGB. Grey and palette images are expanded.

    `size` is the `(H, W)` that the image must have, compared with the header before any pixel is decoded.

    Errors: ImportError naming the extra without pillow; FileNotFoundError; `BadData` naming the file if it is
    not a JPEG or PNG image, is truncated or corrupt, or has another size.
    """
    return _decode(require("PIL.Image"), Path(path), size)


@contextmanager
def _opened(pillow: Any, path: Path, size: tuple[int, int] | None) -> Iterator[Any]:
    """A pillow image whose header was read and compared with `size`; what goes wrong with it is a `BadData`."""
    with open(path, "rb") as file:
        try:
            with pillow.open(file, formats=_FORMATS) as image:
                found = (image.height, image.width)
                if size is not None and found != tuple(size):
                    raise BadData(
                        path,
                        f"the image is {found[0]}x{found[1]}, expected {size[0]}x{size[1]} (height x width)",
                    )
                yield image
        except pillow.UnidentifiedImageError as error:
            raise BadData(path, "it is not a JPEG or PNG image") from error
        except (OSError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:
            # OSError and SyntaxError are what pillow raises for truncated and for malformed files.
            raise BadData(path, f"the image cannot be decoded ({error})") from error


def _tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _decode(pillow: Any, path: Path, size: tuple[int, int] | None) -> Tensor:
    with _opened(pillow, path, size) as image:
        return _tensor(image.convert("RGB"))


def decode_square(
    path: str | os.PathLike[str], side: int, crop: int | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """The middle square of one JPEG or PNG file, reduced to uint8 `(3, side, side)`, RGB.

    The square is `crop` pixels wide, by default as wide as the shorter side. It is reduced with pillow's
    Lanczos filter, which widens with the reduction and so does not alias; a square of `side` pixels is left
    as it is, a smaller one is refused, not enlarged. `size` is the `(H, W)` that the image must have.

    Errors: as `decode`; `BadData` for an image too small for `crop` or for `side`.
    """
    return _decode_square(require("PIL.Image"), Path(path), side, crop, size)


def _decode_square(
    pillow: Any, path: Path, side: int, crop: int | None, size: tuple[int, int] | None
) -> Tensor:
    with _opened(pillow, path, size) as image:
        width, height = image.size
        middle = min(width, height) if crop is None else crop
        if middle > min(width, height):
            raise BadData(path, f"the image is {height}x{width}, too small for a crop of {middle}x{middle}")
        if middle < side:
            raise BadData(
                path, f"its middle square is {middle}x{middle} and would have to be enlarged to {side}x{side}"
            )
        left, top = (width - middle) // 2, (height - middle) // 2
        colours = image.convert("RGB").crop((left, top, left + middle, top + middle))
        return _tensor(colours.resize((side, side), pillow.Resampling.LANCZOS) if middle != side else colours)


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
    pillow = require("PIL.Image")
    first = _decode(pillow, Path(paths[0]), size)
    expected = (first.shape[1], first.shape[2])
    images = torch.empty((len(paths), *first.shape), dtype=torch.uint8)
    fill(images, lambda index: _decode(pillow, Path(paths[index]), expected), workers, "decode_all")
    return images


def decode_squares(
    paths: Sequence[str | os.PathLike[str]],
    side: int,
    crop: int | None = None,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
) -> Tensor:
    """The middle squares of files as `decode_square` gives them, uint8 `(N, 3, side, side)`, in the order of
    `paths`.

    `workers` and errors: as `decode_all` and `decode_square`; the result does not depend on `workers`.
    """
    if not paths:
        raise ValueError("decode_squares: paths is empty")
    pillow = require("PIL.Image")
    images = torch.empty((len(paths), 3, side, side), dtype=torch.uint8)

    def one(index: int) -> Tensor:
        return _decode_square(pillow, Path(paths[index]), side, crop, size)

    fill(images, one, workers, "decode_squares")
    return images


def fill(images: Tensor, one: Callable[[int], Tensor], workers: int | None, function: str) -> None:
    """`images[i] = one(i)` for every i, in `workers` threads (default: one per processor, at most 8).

    Errors: what `one` raises for the first i for which it does; ValueError naming `function` for `workers`
    below 1.
    """
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    if workers < 1:
        raise ValueError(f"{function}: workers must be at least 1, got {workers}")

    def fill_one(index: int) -> None:
        images[index] = one(index)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in pool.map(fill_one, range(len(images))):
                pass
        except BaseException:
            # A bad file, or Ctrl-C, is not followed by thousands of others.
            pool.shutdown(cancel_futures=True)
            raise
