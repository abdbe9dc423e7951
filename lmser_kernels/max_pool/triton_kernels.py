"""Max pooling in Triton, and the two linear maps that it is once its winners are known.

`big (N, C, H, W)` is before the pool, `small (N, C, H', W')` after it, both of any strides; the winners' places in
their windows are dense uint8 `(N, H', W', C)`. A program has a tile of one image (`gpu.pixel_tiles`).
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.gpu.activation import activate, pull_back
from lmser_kernels.gpu.elements import read
from lmser_kernels.gpu.pixel_tiles import pixel_offset, tile_of


@triton.jit
def pool_step(
    best, place, big, n, y0, x0, c, height, width, big_n, big_h, big_w, big_c, mask, i, j,
    KW: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Place (i, j) of every window against the best so far: a NaN wins, the last of several; of equal ones the
    first."""
    y, x = y0 + i, x0 + j
    there = mask & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    v = read(big + pixel_offset(n, y, x, c, big_n, big_h, big_w, big_c, UNIT), there)
    wins = there & ((v > best) | (v != v))
    return tl.where(wins, v, best), tl.where(wins, i * KW + j, place)


@triton.jit
def max_pool(
    big, small, places, height, width, small_height, small_width, channels,
    big_n, big_h, big_w, big_c, small_n, small_h, small_w, small_c, tiles, channel_blocks,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, CHANNELS_FAST: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """`small = f(max of the windows of big)`, and the places."""
    channels *= UNIT
    n, q, c, mask = tile_of(
        small_height * small_width, channels, tiles, channel_blocks, BLOCK_Q, BLOCK_C, CHANNELS_FAST
    )
    y0, x0 = q // small_width * SH - PH, q % small_width * SW - PW
    none = q * 0 + c * 0
    best = none.to(tl.float64 if big.dtype.element_ty == tl.float64 else tl.float32) - float("inf")
    place = none + tl.maximum(-y0, 0) * KW + tl.maximum(-x0, 0)
    if UNROLL:
        for i in tl.static_range(KH):
            for j in tl.static_range(KW):
                best, place = pool_step(
                    best,
                    place,
                    big,
                    n,
                    y0,
                    x0,
                    c,
                    height,
                    width,
                    big_n,
                    big_h,
                    big_w,
                    big_c,
                    mask,
                    i,
                    j,
                    KW,
                    UNIT,
                )
    else:
        for i in range(KH):
            for j in range(KW):
                best, place = pool_step(
                    best,
                    place,
                    big,
                    n,
                    y0,
                    x0,
                    c,
                    height,
                    width,
                    big_n,
                    big_h,
                    big_w,
                    big_c,
                    mask,
                    i,
                    j,
                    KW,
                    UNIT,
                )
    at = pixel_offset(n, q // small_width, q % small_width, c, small_n, small_h, small_w, small_c, UNIT)
    tl.store(small + at, activate(best, ACT, SLOPE).to(small.dtype.element_ty), mask=mask)
    at = (n * small_height * small_width + q) * channels + c
    tl.store(places + at, place.to(tl.uint8), mask=mask)


@triton.jit
def unpool_step(
    total, small, places, h, n, y, x, c, small_height, small_width, channels,
    small_n, small_h, small_w, small_c, h_n, h_h, h_w, h_c, mask, a, b,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The window that starts `a` and `b` strides before the last that reaches each pixel (y, x), padding included."""
    r, s = y // SH - a, x // SW - b
    i, j = y - r * SH, x - s * SW
    there = mask & (r >= 0) & (r < small_height) & (s >= 0) & (s < small_width) & (i < KH) & (j < KW)
    at = ((n * small_height + r) * small_width + s) * channels + c
    place = tl.load(places + at, mask=there, other=255).to(tl.int32)
    v = read(small + pixel_offset(n, r, s, c, small_n, small_h, small_w, small_c, UNIT), there)
    if ACT != "identity":
        v = pull_back(v, read(h + pixel_offset(n, r, s, c, h_n, h_h, h_w, h_c, UNIT), there), ACT, SLOPE)
    return total + tl.where(there & (place == i * KW + j), v, 0.0)


@triton.jit
def max_unpool(
    big, small, places, h, height, width, small_height, small_width, channels,
    big_n, big_h, big_w, big_c, small_n, small_h, small_w, small_c, h_n, h_h, h_w, h_c, tiles, channel_blocks,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, CHANNELS_FAST: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """`big`: each value of `small [· f'(h)]` where its winner was, added in the windows' order; zero elsewhere."""
    channels *= UNIT
    n, q, c, mask = tile_of(height * width, channels, tiles, channel_blocks, BLOCK_Q, BLOCK_C, CHANNELS_FAST)
    y, x = q // width + PH, q % width + PW
    total = (q * 0 + c * 0).to(tl.float64 if big.dtype.element_ty == tl.float64 else tl.float32)
    DOWN: tl.constexpr = (KH + SH - 1) // SH
    ACROSS: tl.constexpr = (KW + SW - 1) // SW
    if UNROLL:
        for a in tl.static_range(DOWN):
            for b in tl.static_range(ACROSS):
                total = unpool_step(
                    total, small, places, h, n, y, x, c, small_height, small_width, channels,
                    small_n, small_h, small_w, small_c, h_n, h_h, h_w, h_c, mask, DOWN - 1 - a, ACROSS - 1 - b,
                    KH, KW, SH, SW, ACT, SLOPE, UNIT,
                )  # fmt: skip
    else:
        for a in range(DOWN):
            for b in range(ACROSS):
                total = unpool_step(
                    total, small, places, h, n, y, x, c, small_height, small_width, channels,
                    small_n, small_h, small_w, small_c, h_n, h_h, h_w, h_c, mask, DOWN - 1 - a, ACROSS - 1 - b,
                    KH, KW, SH, SW, ACT, SLOPE, UNIT,
                )  # fmt: skip
    at = pixel_offset(n, q // width, q % width, c, big_n, big_h, big_w, big_c, UNIT)
    tl.store(big + at, total.to(big.dtype.element_ty), mask=mask)


@triton.jit
def max_select(
    big, small, places, h, height, width, small_height, small_width, channels,
    big_n, big_h, big_w, big_c, small_n, small_h, small_w, small_c, h_n, h_h, h_w, h_c, tiles, channel_blocks,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, CHANNELS_FAST: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`small`: the value of `big` at each winner's place, zero where that is nowhere `[· f'(h)]`."""
    channels *= UNIT
    n, q, c, mask = tile_of(
        small_height * small_width, channels, tiles, channel_blocks, BLOCK_Q, BLOCK_C, CHANNELS_FAST
    )
    r, s = q // small_width, q % small_width
    at = (n * small_height * small_width + q) * channels + c
    place = tl.load(places + at, mask=mask, other=255).to(tl.int32)
    y, x = r * SH - PH + place // KW, s * SW - PW + place % KW
    there = mask & (place < KH * KW) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    v = read(big + pixel_offset(n, y, x, c, big_n, big_h, big_w, big_c, UNIT), there)
    if ACT != "identity":
        v = pull_back(v, read(h + pixel_offset(n, r, s, c, h_n, h_h, h_w, h_c, UNIT), mask), ACT, SLOPE)
    at = pixel_offset(n, r, s, c, small_n, small_h, small_w, small_c, UNIT)
    tl.store(small + at, v.to(small.dtype.element_ty), mask=mask)
