"""Triton device functions of a tile of one layer: which windows its rows are, a drive, how far it moved.

States are dense and channels-last. Where the edge above a layer pools, a row of a tile is a window, and the tile's
program goes through the window's pixels: what comes from above is computed once for a window, and what goes up from it
is a sum over the program's own results.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.tied_conv.triton_accumulate import accumulate, aligned


@triton.jit
def windows(tile, images, height, width, ROWS: tl.constexpr):
    """(first image, image, row, column, whether there is one) of the windows of a tile; sizes count windows."""
    area = height * width
    start = tile.to(tl.int64) * ROWS
    first = start // area
    window = (start - first * area).to(tl.int32) + tl.arange(0, ROWS)
    image = window // area
    window = window % area
    image += first
    return first, image, window // width, window % width, image < images


@triton.jit
def places(image, row, column, cols, height, width, channels, ALIGN: tl.constexpr):
    """Where the values of a tile lie, counted from its first image: batches may be large, images are not."""
    at = (image.to(tl.int32) * height + row) * width + column
    return at[:, None] * aligned(channels, ALIGN) + cols[None, :]


@triton.jit
def add_drive(
    acc, state, weight, image, row, column, valid, height, width, channels, cols, n_cols, taps_h,
    KH: tl.constexpr, KW: tl.constexpr, STEP: tl.constexpr, FLAT: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc` plus the drive from a neighbour's `state`; `taps_h` is `KH`, or 0 for nothing.

    The weight is packed as (column, tap, channel): the summed index lies densely, as the matrix units want it.
    """
    return accumulate(
        acc, state, height * width * channels, width * channels, channels,
        None, 0, 0, 0, None, 0, 0, 0, None, 0, 0, 0,
        weight, 1, KH * KW * channels, KW * channels, channels,
        image, row, column, valid, channels, height, width, cols, n_cols, taps_h, KW, 0,
        STEP, 1, 1, 1, False, "identity", 0.0, 0.0, FLAT, ALIGN, 1, ALIGN, BLOCK_K, PRECISION,
    )  # fmt: skip


@triton.jit
def row_magnitudes(value, mask):
    """The largest |value| of each row as an integer that orders as magnitudes do, NaN above everything."""
    if value.dtype == tl.float64:
        bits = value.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(tl.where(mask, bits, 0), axis=1)


@triton.jit
def no_magnitudes(like, ROWS: tl.constexpr):
    if like.dtype.element_ty == tl.float64:
        return tl.zeros((ROWS,), tl.int64)
    else:
        return tl.zeros((ROWS,), tl.int32)


@triton.jit
def raise_to(slots, magnitudes, image, valid, ROWS: tl.constexpr, PER_SAMPLE: tl.constexpr):
    """The largest of a tile's magnitudes into its slot, or into that of each image.

    Maxima of integers come out the same in whatever order they are taken.
    """
    if PER_SAMPLE:
        tl.atomic_max(slots + image, magnitudes, mask=valid, sem="relaxed")
    else:
        # Of two dimensions: Triton 3.6 does not compile a vector's maximum here for Blackwell.
        row = tl.reshape(magnitudes, (1, ROWS))
        tl.atomic_max(slots + tl.arange(0, 1), tl.max(row, axis=1), sem="relaxed")
