"""Pixels summed over windows in Triton: average pooling, and the transpose of repeating pixels.

A matrix product that summed a window for every tap would read it as many times, and hold a buffer for each of its
pixels and tensors; read once and written at the windows' own size, it costs a fraction of one such reading.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from lmser_kernels.gpu.activation import pull_back
from lmser_kernels.gpu.elements import read
from lmser_kernels.gpu.launch import launch
from lmser_kernels.gpu.pixel_tiles import pixel_offset, pixel_tiles, tile_of
from lmser_kernels.layout import empty_like_layout
from lmser_kernels.tied_conv.triton_drives import PLAIN, Source

Ints = Sequence[int]

_MOST_UNROLLED = 4  # pixels of a window whose loads are all in flight at once


@triton.jit
def source_value(
    x, x_n, x_h, x_w, x_c, h, h_n, h_h, h_w, h_c, gate, gate_n, gate_h, gate_w, gate_c,
    plus, plus_n, plus_h, plus_w, plus_c, n, row, column, c, mask,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """`pull_back(x, h) · (gate > 0 ? 1 : GATE_SLOPE) + plus` of what is given, widened."""
    value = read(x + pixel_offset(n, row, column, c, x_n, x_h, x_w, x_c, UNIT), mask)
    if h is not None:
        at = pixel_offset(n, row, column, c, h_n, h_h, h_w, h_c, UNIT)
        value = pull_back(value, read(h + at, mask), ACT, SLOPE)
    if gate is not None:
        at = pixel_offset(n, row, column, c, gate_n, gate_h, gate_w, gate_c, UNIT)
        value = tl.where(read(gate + at, mask) > 0, value, value * GATE_SLOPE)
    if plus is not None:
        value += read(plus + pixel_offset(n, row, column, c, plus_n, plus_h, plus_w, plus_c, UNIT), mask)
    return value


@triton.jit
def window_sums(
    x, x_n, x_h, x_w, x_c, h, h_n, h_h, h_w, h_c, gate, gate_n, gate_h, gate_w, gate_c,
    plus, plus_n, plus_h, plus_w, plus_c, out, out_n, out_h, out_w, out_c,
    height, width, channels, tiles, channel_blocks,
    KH: tl.constexpr, KW: tl.constexpr, MEAN: tl.constexpr, UNROLL: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr,
    CHANNELS_FAST: tl.constexpr, UNIT: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`out (·, channels, height, width)`: a program has a tile of pixels and channels of one image."""
    channels *= UNIT
    n, q, c, mask = tile_of(height * width, channels, tiles, channel_blocks, BLOCK_Q, BLOCK_C, CHANNELS_FAST)
    row, column = q // width, q % width
    total = (q * 0 + c * 0).to(tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32)
    if UNROLL:
        for place in tl.static_range(KH * KW):
            total += source_value(
                x, x_n, x_h, x_w, x_c, h, h_n, h_h, h_w, h_c, gate, gate_n, gate_h, gate_w, gate_c,
                plus, plus_n, plus_h, plus_w, plus_c,
                n, row * KH + place // KW, column * KW + place % KW, c, mask, ACT, SLOPE, GATE_SLOPE, UNIT,
            )  # fmt: skip
    else:
        for place in range(KH * KW):
            total += source_value(
                x, x_n, x_h, x_w, x_c, h, h_n, h_h, h_w, h_c, gate, gate_n, gate_h, gate_w, gate_c,
                plus, plus_n, plus_h, plus_w, plus_c,
                n, row * KH + place // KW, column * KW + place % KW, c, mask, ACT, SLOPE, GATE_SLOPE, UNIT,
            )  # fmt: skip
    if MEAN:
        total = total / (KH * KW)
    at = pixel_offset(n, row, column, c, out_n, out_h, out_w, out_c, UNIT)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


def sum_windows(x: Tensor, window: Ints, *, mean: bool, source: Source = PLAIN) -> Tensor:
    """Sums of `source` over windows next to each other, or their means: `(N, C, H // kh, W // kw)`, lying like `x`.

    A window of one pixel, with nothing to be made of it, is `x` itself.
    """
    if window[0] * window[1] == 1 and source is PLAIN:
        return x
    height, width = x.shape[2] // window[0], x.shape[3] // window[1]
    out = empty_like_layout(x, (x.shape[0], x.shape[1], height, width))
    h = None if source.activation == "identity" else source.h
    tensors: dict[str, Tensor | None] = {"x": x, "h": h, "gate": source.gate, "plus": source.plus, "out": out}
    launch(
        window_sums,
        **pixel_tiles(out, tensors),
        height=height,
        width=width,
        KH=window[0],
        KW=window[1],
        MEAN=mean,
        UNROLL=window[0] * window[1] <= _MOST_UNROLLED,
        ACT=source.activation,
        SLOPE=source.slope,
        GATE_SLOPE=source.gate_slope,
    )
    return out
