"""A tensor walked over pixel by pixel where other tensors are read at other pixels: tiles of pixels and channels.

A program has one tile of one image. Where neighbouring channels lie side by side, strides are given divided by UNIT
elements, one vector of a thread, and multiplied again in the kernel, so that the compiler sees the vectors.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from lmser_kernels.gpu.elements import tile_channels, tile_pixels
from lmser_kernels.layout import is_channels_last

_VALUES = 1024  # of a tile: 8 to each of 128 threads, and as many at each other pixel that is read


@triton.jit
def tile_of(
    pixels, channels, tiles, channel_blocks,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS_FAST: tl.constexpr,
):  # fmt: skip
    """This program's image, pixels and channels, and which of them there are."""
    pid = tl.program_id(0)
    tile = pid // channel_blocks
    q = tile_pixels(tile % tiles, BLOCK_Q, CHANNELS_FAST)
    c = tile_channels(pid % channel_blocks, BLOCK_C, CHANNELS_FAST)
    return (tile // tiles).to(tl.int64), q, c, (q < pixels) & (c < channels)


@triton.jit
def pixel_offset(n, y, x, c, stride_n, stride_h, stride_w, stride_c, UNIT: tl.constexpr):
    """Where channels `c` of pixels (y, x) of image `n`, an int64, lie."""
    pixel = y.to(tl.int64) * (stride_h * UNIT) + x.to(tl.int64) * (stride_w * UNIT)
    return n * stride_n * UNIT + pixel + c.to(tl.int64) * stride_c


def pixel_tiles(result: Tensor, tensors: dict[str, Tensor | None]) -> dict[str, Any]:
    """The grid over `result` in tiles, and what the kernels ask to find themselves and `tensors` in it."""
    images, channels, height, width = result.shape
    channels_fast = is_channels_last(result) or height * width == 1
    pixels = height * width
    unit = _unit(channels, [t for t in tensors.values() if t is not None]) if channels_fast else 1
    # Values that are no vectors have an address each, in registers.
    values = _VALUES if unit > 1 else _VALUES // 2
    if channels_fast:
        block_c = min(triton.next_power_of_2(max(1, channels)), 128)
        block_q = min(values // block_c, triton.next_power_of_2(max(1, pixels)))
    else:
        block_q = min(triton.next_power_of_2(max(1, pixels)), 128)
        block_c = min(values // block_q, triton.next_power_of_2(max(1, channels)))
    tiles, channel_blocks = triton.cdiv(pixels, block_q), triton.cdiv(channels, block_c)
    arguments: dict[str, Any] = {"grid": (images * tiles * channel_blocks,), **tensors}
    for name, t in tensors.items():
        n, c, h, w = (0, 0, 0, 0) if t is None else t.stride()
        strides = (n // unit, h // unit, w // unit, c)
        arguments |= {f"{name}_{axis}": stride for axis, stride in zip("nhwc", strides, strict=True)}
    return arguments | {
        "channels": channels // unit,
        "tiles": tiles,
        "channel_blocks": channel_blocks,
        "CHANNELS_FAST": channels_fast,
        "UNIT": unit,
        "BLOCK_Q": block_q,
        "BLOCK_C": block_c,
    }


def _unit(channels: int, tensors: list[Tensor]) -> int:
    """How many neighbouring channels are one vector of a thread in all of them."""
    unit = 16 // tensors[0].element_size()
    if any(t.stride(1) != 1 for t in tensors):
        return 1
    numbers = [channels, *(t.stride(axis) for t in tensors for axis in (0, 2, 3) if t.shape[axis] > 1)]
    while any(number % unit for number in numbers):
        unit //= 2
    return unit
