"""The sizes and strides that elementwise kernels walk over: as few axes as the memory of all their tensors has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from lmser_kernels.layout import is_channels_last

_VECTOR_BYTES = 16  # the widest load and store of one thread


@dataclass(frozen=True)
class Extents:
    """Images, rows, columns and channels, and the strides of each tensor along them.

    Axes that follow on from one another in every tensor are one: rows become columns, and images too. Along the
    fastest axis everything is divisible by `unit` elements, one vector of a thread, and given divided by it: a
    kernel that multiplies by `unit` again shows the compiler vectors.
    """

    images: int
    rows: int
    columns: int
    channels: int
    channels_fast: bool
    unit: int
    strides: Mapping[str, tuple[int, int, int, int]]

    def arguments(self) -> dict[str, int | bool]:
        """The kernels' parameters: `rows`, `columns`, `channels`, `<tensor>_n`, `_h`, `_w`, `_c`, and constants."""
        named = {
            f"{name}_{axis}": stride
            for name, strides in self.strides.items()
            for axis, stride in zip("nhwc", strides, strict=True)
        }
        sizes = {"rows": self.rows, "columns": self.columns, "channels": self.channels}
        constants = {"ROWS": self.rows > 1, "CHANNELS_FAST": self.channels_fast, "UNIT": self.unit}
        return {**sizes, **named, **constants}

    def tile(self, itemsize: int, vectors: int) -> tuple[int, int]:
        """Columns and channels of a tile of which each of 128 threads holds `vectors` vectors, or as many single
        values twice over where there are no vectors: each of those has an address of its own in a register."""
        values = 128 * vectors * (_VECTOR_BYTES // itemsize if self.unit > 1 else 2)
        columns, channels = max(1, self.columns), max(1, self.channels)
        if self.channels_fast:
            channels *= self.unit
            block_c = min(triton.next_power_of_2(channels), 128)
            return min(values // block_c, triton.next_power_of_2(columns)), block_c
        columns *= self.unit if self.rows == 1 else 1
        block_q = min(triton.next_power_of_2(columns * max(1, self.rows)), 512)
        return block_q, min(max(1, values // block_q), triton.next_power_of_2(channels))

    def tiles(self, block_q: int) -> int:
        """Tiles of `block_q` pixels in an image."""
        in_unit = self.unit if not self.channels_fast and self.rows == 1 else 1
        return triton.cdiv(self.rows * self.columns * in_unit, block_q)

    def channel_count(self) -> int:
        return self.channels * self.unit if self.channels_fast else self.channels


def extents(like: Tensor, tensors: Mapping[str, Tensor | None]) -> Extents:
    """Those of `tensors`, all of the shape `(N, C, H, W)` of `like`, one of them; its layout is walked along."""
    n, c, h, w = like.shape
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    images, rows, columns = n, h, w
    strides = {name: (t.stride(0), t.stride(2), t.stride(3), t.stride(1)) for name, t in given.items()}
    if all(rows == 1 or columns == 1 or sh == columns * sw for _, sh, sw, _ in strides.values()):
        if columns == 1:
            strides = {name: (sn, 0, sh, sc) for name, (sn, sh, _, sc) in strides.items()}
        rows, columns = 1, rows * columns
        # Kernels count the pixels of an image in 32 bits.
        few = images * columns < 2**31 - 2**10
        if few and all(
            images == 1 or columns == 1 or sn == columns * sw for sn, _, sw, _ in strides.values()
        ):
            if columns == 1:
                strides = {name: (0, 0, sn, sc) for name, (sn, _, _, sc) in strides.items()}
            images, columns = 1, images * columns
    channels_fast = is_channels_last(like) or h * w == 1
    unit = _VECTOR_BYTES // max(t.element_size() for t in given.values())
    while unit > 1 and not _divides(unit, (images, rows, columns, c), channels_fast, strides):
        unit //= 2
    if unit > 1:
        if channels_fast:
            c //= unit
            strides = {
                name: (sn // unit, sh // unit, sw // unit, sc) for name, (sn, sh, sw, sc) in strides.items()
            }
        else:
            columns //= unit
            strides = {name: (sn // unit, sh, sw, sc // unit) for name, (sn, sh, sw, sc) in strides.items()}
    strides |= {name: (0, 0, 0, 0) for name in tensors if name not in given}
    return Extents(images, rows, columns, c, channels_fast, unit, strides)


def _divides(
    unit: int,
    sizes: tuple[int, int, int, int],
    channels_fast: bool,
    strides: Mapping[str, tuple[int, int, int, int]],
) -> bool:
    images, rows, columns, channels = sizes
    if channels_fast:
        numbers = [channels]
        for sn, sh, sw, sc in strides.values():
            if sc != 1:
                return False
            numbers += _used((images, sn), (rows, sh), (columns, sw))
    else:
        if rows > 1:
            return False
        numbers = [columns]
        for sn, _, sw, sc in strides.values():
            if sw != 1:
                return False
            numbers += _used((images, sn), (channels, sc))
    return all(number % unit == 0 for number in numbers)


def _used(*axes: tuple[int, int]) -> Iterator[int]:
    """Strides of the axes that are longer than one."""
    return (stride for size, stride in axes if size > 1)


def same_dense(*tensors: Tensor | None) -> bool:
    """Whether all that are given fill their memory in one and the same order."""
    given = [t for t in tensors if t is not None]
    return all(t.is_contiguous() for t in given) or all(
        t.is_contiguous(memory_format=torch.channels_last) for t in given
    )
