"""What follows a sum while it is in registers: repeating pixels, bias, add, activation, gate, and the store."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.gpu.activation import activate
from lmser_kernels.tied_conv.triton_accumulate import aligned, offsets, widen, zeros


@triton.jit
def joined_at(out_at, image, row, column, cols, s_n, s_c, s_h, s_w, ALIGN: tl.constexpr):
    """Where the values lie in a tensor of strides `s`; None says that they are those of `out`."""
    if s_n is None:
        return out_at
    else:
        return offsets(image, row, column, (cols * s_c)[None, :], s_n, s_h, s_w, ALIGN)


@triton.jit
def finish(
    acc,  # (BLOCK_M, BLOCK_N)
    image, row, column, valid,  # (BLOCK_M): its pixels, before they are repeated
    cols, n_cols,
    out, drive, out_n, out_c, out_h, out_w,  # `drive`, or None, lies like `out`
    add, add_n, add_c, add_h, add_w, gate, gate_n, gate_c, gate_h, gate_w, bias, bias_c,
    height, width,  # of the result
    UP_H: tl.constexpr, UP_W: tl.constexpr, SPREAD: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, OUT_ALIGN: tl.constexpr,
):  # fmt: skip
    """`out = f(up(acc) + bias + add) · (gate > 0 ? 1 : GATE_SLOPE)` and `drive = up(acc)`.

    `up` repeats each pixel `UP_H x UP_W` times, with `SPREAD` divided by how many that makes. `OUT_ALIGN` divides the
    number of columns and every stride but those between channels. Strides that are None are those of `out`.
    """
    in_cols = cols < aligned(n_cols, OUT_ALIGN)
    if SPREAD and UP_H * UP_W > 1:
        acc = acc / (UP_H * UP_W)
    joined = acc
    if bias is not None:
        joined += widen(tl.load(bias + cols * bias_c, mask=in_cols, other=0.0))[None, :]
    image = image[:, None]
    for place in range(UP_H * UP_W):
        r = row * UP_H + place // UP_W
        c = column * UP_W + place % UP_W
        mask = (valid & (r < height) & (c < width))[:, None] & in_cols[None, :]
        r = r[:, None]
        c = c[:, None]
        out_at = offsets(image, r, c, (cols * out_c)[None, :], out_n, out_h, out_w, OUT_ALIGN)
        if drive is not None:
            tl.store(drive + out_at, acc.to(drive.dtype.element_ty), mask=mask)
        z = joined
        if add is not None:
            add_at = joined_at(out_at, image, r, c, cols, add_n, add_c, add_h, add_w, OUT_ALIGN)
            z += widen(tl.load(add + add_at, mask=mask, other=0.0))
        z = activate(z, ACT, SLOPE)
        if gate is not None:
            gate_at = joined_at(out_at, image, r, c, cols, gate_n, gate_c, gate_h, gate_w, OUT_ALIGN)
            is_open = tl.load(gate + gate_at, mask=mask, other=0.0) > 0
            z = tl.where(is_open, z, z * GATE_SLOPE)
        tl.store(out + out_at, z.to(out.dtype.element_ty), mask=mask)


@triton.jit
def keep(
    acc, image, row, column, valid, cols, n_cols, partial, part, images, height, width, OUT_ALIGN: tl.constexpr,
):  # fmt: skip
    """`acc` as part number `part` in the workspace `partial (parts, images, height, width, n_cols)`."""
    at = ((part.to(tl.int64) * images + image) * height + row) * width + column
    n_cols = aligned(n_cols, OUT_ALIGN)
    mask = (valid & (row < height) & (column < width))[:, None] & (cols < n_cols)[None, :]
    tl.store(partial + at[:, None] * n_cols + cols[None, :], acc, mask=mask)


@triton.jit
def sum_and_finish(
    partial, partial_part, partial_n, partial_c, partial_h, partial_w,
    out, drive, out_n, out_c, out_h, out_w,
    add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
    pixels, rows, columns, n_cols, inner_height, inner_width, height, width,
    PARTS: tl.constexpr, PARTIAL_ALIGN: tl.constexpr,
    UP_H: tl.constexpr, UP_W: tl.constexpr, SPREAD: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, OUT_ALIGN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The epilogue by itself, of a sum that lies in memory in `PARTS` pieces, added in their order.

    `rows x columns` pixels cover the result; of those, `inner_height x inner_width` have a sum, the others none. `WIDE`
    where 32 bits do not hold the places within an image.
    """
    tiles_n = tl.cdiv(n_cols, BLOCK_N)
    pid = tl.program_id(0)
    pixel = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image = pixel // (rows * columns)
    row = pixel // columns % rows
    column = pixel % columns
    if WIDE:
        cols = cols.to(tl.int64)
    else:
        row = row.to(tl.int32)
        column = column.to(tl.int32)
    valid = pixel < pixels
    summed = valid & (row < inner_height) & (column < inner_width)
    at = offsets(
        image[:, None], row[:, None], column[:, None], (cols * partial_c)[None, :],
        partial_n, partial_h, partial_w, PARTIAL_ALIGN,
    )  # fmt: skip
    mask = summed[:, None] & (cols < aligned(n_cols, PARTIAL_ALIGN))[None, :]
    acc = zeros(partial, BLOCK_M, BLOCK_N)
    for part in range(PARTS):
        piece = partial + tl.cast(part, tl.int64) * aligned(partial_part, PARTIAL_ALIGN)
        acc += widen(tl.load(piece + at, mask=mask, other=0.0))
    finish(
        acc, image, row, column, valid, cols, n_cols,
        out, drive, out_n, out_c, out_h, out_w,
        add, add_n, add_c, add_h, add_w, closed, closed_n, closed_c, closed_h, closed_w, bias, bias_c,
        height, width, UP_H, UP_W, SPREAD, ACT, SLOPE, GATE_SLOPE, OUT_ALIGN,
    )  # fmt: skip
