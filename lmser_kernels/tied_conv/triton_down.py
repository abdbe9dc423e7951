"""The transposed convolution with what precedes and follows it, in Triton: sub-pixel phases, no zeros multiplied.

Output rows `stride · q + r` of one remainder `r`, a phase, use kernel rows `i ≡ r + padding (mod stride)`, each of
which meets the input row `q + (r + padding) // stride - t` with `i = first + stride · t`. So a phase is a convolution
of its own, whose taps lie next to each other in the input.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.tied_conv.triton_accumulate import accumulate, zeros
from lmser_kernels.tied_conv.triton_epilogue import finish, keep
from lmser_kernels.tied_conv.triton_up import indices, pixel_of


@triton.jit
def accumulate_down(
    acc,
    z, z_n, z_h, z_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    weight, w_k, w_n, w_h, w_w,
    image, row, column, valid,  # (BLOCK_M): the pixels of the phase, counted within it
    channels, height, width,  # of z, after pooling
    cols, n_cols,
    taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
    phase_h, phase_w,  # 0 at stride 1
    part, PARTS: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, MEAN: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr,
    FLAT: tl.constexpr, ALIGN: tl.constexpr, K_ALIGN: tl.constexpr, N_ALIGN: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc + convᵀ(source)` at the given pixels of a phase and columns; see `accumulate` for what is shared.

    `w_k` is the weight's stride between its output channels, which are summed here, `w_n` that between its input
    channels. `taps_h x taps_w` is the whole kernel, of which the phase has its share, perhaps nothing.
    """
    first_h = (phase_h + padding_h) % stride_h
    first_w = (phase_w + padding_w) % stride_w
    own_h = tl.maximum(taps_h - first_h + stride_h - 1, 0) // stride_h
    own_w = tl.maximum(taps_w - first_w + stride_w - 1, 0) // stride_w
    return accumulate(
        acc,
        z, z_n, z_h, z_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
        weight + (first_h * w_h + first_w * w_w), w_k, w_n, stride_h * w_h, stride_w * w_w,
        image, row + (phase_h + padding_h) // stride_h, column + (phase_w + padding_w) // stride_w, valid,
        channels, height, width, cols, n_cols, own_h, own_w,
        part, -1, PARTS, POOL_H, POOL_W, MEAN, ACT, SLOPE, GATE_SLOPE,
        FLAT, ALIGN, K_ALIGN, N_ALIGN, BLOCK_K, PRECISION,
    )  # fmt: skip


@triton.jit
def down_tile(
    tile, phase, part,
    z, z_n, z_h, z_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    weight, w_k, w_n, w_h, w_w,
    out, drive, out_n, out_c, out_h, out_w,
    add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
    partial,
    images, channels, height, width, n_cols, inner_height, inner_width, out_height, out_width,
    taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
    PARTS: tl.constexpr, UP_H: tl.constexpr, UP_W: tl.constexpr, SPREAD: tl.constexpr,
    SOURCE_ACT: tl.constexpr, SOURCE_SLOPE: tl.constexpr, SOURCE_GATE_SLOPE: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, OUT_ALIGN: tl.constexpr,
    FLAT: tl.constexpr, ALIGN: tl.constexpr, K_ALIGN: tl.constexpr, N_ALIGN: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tile number `tile` of phase number `phase`, or its part of the sum.

    The transposed convolution has `inner_height x inner_width` pixels; where the result repeated from them falls
    short of `out_height x out_width`, it goes on with a sum of 0.
    """
    tiles_n = tl.cdiv(n_cols, BLOCK_N)
    index = indices(tile // tiles_n, BLOCK_M, WIDE)
    cols = indices(tile % tiles_n, BLOCK_N, WIDE)
    covering_h = tl.cdiv(out_height, UP_H)
    covering_w = tl.cdiv(out_width, UP_W)
    phase_h = phase // stride_w
    phase_w = phase % stride_w
    image, row, column = pixel_of(index, tl.cdiv(covering_h, stride_h), tl.cdiv(covering_w, stride_w))
    inner_row = row * stride_h + phase_h
    inner_column = column * stride_w + phase_w
    valid = image < images
    acc = accumulate_down(
        zeros(z, BLOCK_M, BLOCK_N),
        z, z_n, z_h, z_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
        weight, w_k, w_n, w_h, w_w,
        image, row, column, valid & (inner_row < inner_height) & (inner_column < inner_width),
        channels, height, width, cols, n_cols,
        taps_h, taps_w, stride_h, stride_w, padding_h, padding_w, phase_h, phase_w,
        part, PARTS, 1, 1, False, SOURCE_ACT, SOURCE_SLOPE, SOURCE_GATE_SLOPE,
        FLAT, ALIGN, K_ALIGN, N_ALIGN, BLOCK_K, PRECISION,
    )  # fmt: skip
    if PARTS > 1:
        keep(
            acc, image, inner_row, inner_column, valid, cols, n_cols,
            partial, part, images, inner_height, inner_width, OUT_ALIGN,
        )  # fmt: skip
    else:
        finish(
            acc, image, inner_row, inner_column, valid, cols, n_cols,
            out, drive, out_n, out_c, out_h, out_w,
            add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
            out_height, out_width, UP_H, UP_W, SPREAD, ACT, SLOPE, GATE_SLOPE, OUT_ALIGN,
        )  # fmt: skip


@triton.jit
def conv_down(
    z, z_n, z_h, z_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    weight, w_k, w_n, w_h, w_w,
    out, drive, out_n, out_c, out_h, out_w,
    add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
    partial, tiles,
    images, channels, height, width, n_cols, inner_height, inner_width, out_height, out_width,
    taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
    PARTS: tl.constexpr, UP_H: tl.constexpr, UP_W: tl.constexpr, SPREAD: tl.constexpr,
    SOURCE_ACT: tl.constexpr, SOURCE_SLOPE: tl.constexpr, SOURCE_GATE_SLOPE: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, OUT_ALIGN: tl.constexpr,
    FLAT: tl.constexpr, ALIGN: tl.constexpr, K_ALIGN: tl.constexpr, N_ALIGN: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`out = f(up(convᵀ(source)) + bias + add) · closed`, `drive = up(convᵀ(source))`; grid (tiles x phases, parts)."""
    # A grid's second axis ends at 65535, which stride² phases may pass.
    down_tile(
        tl.program_id(0) % tiles, tl.program_id(0) // tiles, tl.program_id(1),
        z, z_n, z_h, z_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
        weight, w_k, w_n, w_h, w_w,
        out, drive, out_n, out_c, out_h, out_w,
        add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
        partial,
        images, channels, height, width, n_cols, inner_height, inner_width, out_height, out_width,
        taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
        PARTS, UP_H, UP_W, SPREAD, SOURCE_ACT, SOURCE_SLOPE, SOURCE_GATE_SLOPE, ACT, SLOPE, GATE_SLOPE, OUT_ALIGN,
        FLAT, ALIGN, K_ALIGN, N_ALIGN, WIDE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
