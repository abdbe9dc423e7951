"""The convolution with what precedes and follows it, in Triton."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.tied_conv.triton_accumulate import accumulate, zeros
from lmser_kernels.tied_conv.triton_epilogue import finish, keep


@triton.jit
def pixel_of(index, height, width):
    """Image, row and column of the pixels counted by `index`."""
    image = index // (height * width)
    rest = index - image * (height * width)
    row = rest // width
    return image, row, rest - row * width


@triton.jit
def indices(tile, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """What tile number `tile` counts; `WIDE` where 32 bits do not hold it."""
    if WIDE:
        return tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    else:
        return tile * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def accumulate_up(
    acc,
    x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    weight, w_k, w_n, w_h, w_w,
    image, row, column, valid,  # (BLOCK_M): the pixels of the result
    channels, height, width,  # of x, after pooling
    cols, n_cols,
    taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
    part, PARTS: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, MEAN: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr,
    FLAT: tl.constexpr, ALIGN: tl.constexpr, K_ALIGN: tl.constexpr, N_ALIGN: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc + conv(pool(source))` at the given pixels and columns; see `accumulate` for what is shared.

    `w_k` is the weight's stride between input channels, `w_n` that between output channels.
    """
    return accumulate(
        acc,
        x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
        weight, w_k, w_n, w_h, w_w,
        image, row * stride_h - padding_h, column * stride_w - padding_w, valid,
        channels, height, width, cols, n_cols, taps_h, taps_w,
        part, 1, PARTS, POOL_H, POOL_W, MEAN, ACT, SLOPE, GATE_SLOPE,
        FLAT, ALIGN, K_ALIGN, N_ALIGN, BLOCK_K, PRECISION,
    )  # fmt: skip


@triton.jit
def up_tile(
    tile, part,
    x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    weight, w_k, w_n, w_h, w_w,
    out, drive, out_n, out_c, out_h, out_w,
    add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
    partial,
    images, channels, height, width, n_cols, out_height, out_width,
    taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
    PARTS: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, MEAN: tl.constexpr,
    SOURCE_ACT: tl.constexpr, SOURCE_SLOPE: tl.constexpr, SOURCE_GATE_SLOPE: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, OUT_ALIGN: tl.constexpr,
    FLAT: tl.constexpr, ALIGN: tl.constexpr, K_ALIGN: tl.constexpr, N_ALIGN: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tile number `tile` of the result, or its part of the sum."""
    tiles_n = tl.cdiv(n_cols, BLOCK_N)
    index = indices(tile // tiles_n, BLOCK_M, WIDE)
    cols = indices(tile % tiles_n, BLOCK_N, WIDE)
    image, row, column = pixel_of(index, out_height, out_width)
    valid = image < images
    acc = accumulate_up(
        zeros(x, BLOCK_M, BLOCK_N),
        x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
        weight, w_k, w_n, w_h, w_w,
        image, row, column, valid, channels, height, width, cols, n_cols,
        taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
        part, PARTS, POOL_H, POOL_W, MEAN, SOURCE_ACT, SOURCE_SLOPE, SOURCE_GATE_SLOPE,
        FLAT, ALIGN, K_ALIGN, N_ALIGN, BLOCK_K, PRECISION,
    )  # fmt: skip
    if PARTS > 1:
        keep(
            acc,
            image,
            row,
            column,
            valid,
            cols,
            n_cols,
            partial,
            part,
            images,
            out_height,
            out_width,
            OUT_ALIGN,
        )
    else:
        finish(
            acc, image, row, column, valid, cols, n_cols,
            out, drive, out_n, out_c, out_h, out_w,
            add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
            out_height, out_width, 1, 1, False, ACT, SLOPE, GATE_SLOPE, OUT_ALIGN,
        )  # fmt: skip


@triton.jit
def conv_up(
    x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    weight, w_k, w_n, w_h, w_w,
    out, drive, out_n, out_c, out_h, out_w,
    add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
    partial,
    images, channels, height, width, n_cols, out_height, out_width,
    taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
    PARTS: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, MEAN: tl.constexpr,
    SOURCE_ACT: tl.constexpr, SOURCE_SLOPE: tl.constexpr, SOURCE_GATE_SLOPE: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, OUT_ALIGN: tl.constexpr,
    FLAT: tl.constexpr, ALIGN: tl.constexpr, K_ALIGN: tl.constexpr, N_ALIGN: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`out = f(conv(pool(source)) + bias + add) · closed`, `drive = conv(pool(source))`; grid (tiles, parts).

    Tiles of one row of pixels follow one another, so that the blocks in flight read the same part of the operand.
    """
    up_tile(
        tl.program_id(0), tl.program_id(1),
        x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
        weight, w_k, w_n, w_h, w_w,
        out, drive, out_n, out_c, out_h, out_w,
        add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
        partial,
        images, channels, height, width, n_cols, out_height, out_width,
        taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
        PARTS, POOL_H, POOL_W, MEAN, SOURCE_ACT, SOURCE_SLOPE, SOURCE_GATE_SLOPE, ACT, SLOPE, GATE_SLOPE, OUT_ALIGN,
        FLAT, ALIGN, K_ALIGN, N_ALIGN, WIDE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
