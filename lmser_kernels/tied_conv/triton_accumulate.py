"""The implicit matrix product that both directions of a tied convolution are, as Triton device functions.

A row of the product is an output pixel, a column an output channel, and the sum runs over taps and summed channels:

    acc[pixel, column] += Σ_tap Σ_channel operand[image, row ± tap_h, column ± tap_w, channel] W[tap, channel, column]

Forwards (`STEP` 1) the taps of a convolution, backwards (`STEP` -1) those of one sub-pixel phase of its transpose,
which are `stride` apart in the kernel and next to each other in the operand. Either way nothing that is multiplied is
a zero put between pixels.

The sum is cut into steps of `BLOCK_K`. With many channels (`FLAT` 0) a step lies within one tap, so that a row of
the operand's tile is one piece of memory and its mask one value. With few, or with a number that would leave much of
the steps empty, taps and channels are counted through (`FLAT` is then the number of channels, which makes the
divisions cheap): a 3 x 3 kernel of one channel is one step of 9.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.gpu.activation import pull_back

UNROLLED = tl.constexpr(9)  # pixels of a window up to which they are loaded together


@triton.jit
def aligned(value, ALIGN: tl.constexpr):
    """`value`, which the compiler then knows to be a multiple of `ALIGN`: it decides how wide loads are."""
    if ALIGN == 1:
        return value
    else:
        return value // ALIGN * ALIGN


@triton.jit
def zeros(like, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """An accumulator: float64 for float64, else float32."""
    if like.dtype.element_ty == tl.float64:
        return tl.zeros((ROWS, COLUMNS), tl.float64)
    else:
        return tl.zeros((ROWS, COLUMNS), tl.float32)


@triton.jit
def widen(value):
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def operand_value(
    x, x_at, h, h_at, gate, gate_at, plus, plus_at, mask,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr,
):  # fmt: skip
    """`pull_back(x, h) · (gate > 0 ? 1 : GATE_SLOPE) + plus` of what is given (None is not), 0 outside the mask.

    `*_at` are offsets from the tensors' first elements. The result is in the type of sums.
    """
    value = widen(tl.load(x + x_at, mask=mask, other=0.0))
    if h is not None:
        value = pull_back(value, widen(tl.load(h + h_at, mask=mask, other=0.0)), ACT, SLOPE)
    if gate is not None:
        is_open = tl.load(gate + gate_at, mask=mask, other=0.0) > 0
        value = tl.where(is_open, value, value * GATE_SLOPE)
    if plus is not None:
        value += widen(tl.load(plus + plus_at, mask=mask, other=0.0))
    return value


@triton.jit
def offsets(image, row, column, channel, s_n, s_h, s_w, ALIGN: tl.constexpr):
    """Where the values of a tile lie; rows and channels come as columns and rows of it. Images may lie far apart."""
    inner = row * aligned(s_h, ALIGN) + column * aligned(s_w, ALIGN) + channel
    return image.to(tl.int64) * aligned(s_n, ALIGN) + inner


@triton.jit
def beside(at, image, row, column, channel, s_n, s_h, s_w, ALIGN: tl.constexpr):
    """Where the values lie in a tensor of strides `s`; None says that they are those of the tensor where it is `at`."""
    if s_n is None:
        return at
    else:
        return offsets(image, row, column, channel, s_n, s_h, s_w, ALIGN)


@triton.jit
def operand_pixel(
    x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    image, row, column, channel, mask,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """`operand_value` at one pixel of each row."""
    at = offsets(image, row, column, channel, x_n, x_h, x_w, ALIGN)
    return operand_value(
        x, at, h, beside(at, image, row, column, channel, h_n, h_h, h_w, ALIGN),
        gate, beside(at, image, row, column, channel, gate_n, gate_h, gate_w, ALIGN),
        plus, beside(at, image, row, column, channel, plus_n, plus_h, plus_w, ALIGN),
        mask, ACT, SLOPE, GATE_SLOPE,
    )  # fmt: skip


@triton.jit
def operand_tile(
    x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    image, row, column, channel, mask,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, MEAN: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """One tile of the operand in the type of its memory: as it lies there, or what the source makes of it.

    The value at (row, column) is the sum over a window of `POOL_H x POOL_W`, or with `MEAN` the mean. Only what is
    calculated is rounded back, so that half precision goes to the matrix unit as it was read.
    """
    PLAIN: tl.constexpr = (h is None) and (gate is None) and (plus is None)
    if PLAIN and POOL_H * POOL_W == 1:
        return tl.load(x + offsets(image, row, column, channel, x_n, x_h, x_w, ALIGN), mask=mask, other=0.0)
    else:
        first = row * POOL_H
        left = column * POOL_W
        # A large window is a loop, a small one is unrolled.
        INNER: tl.constexpr = POOL_H * POOL_W if POOL_H * POOL_W <= UNROLLED else 1
        total = operand_pixel(
            x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
            image, first, left, channel, mask, ACT, SLOPE, GATE_SLOPE, ALIGN,
        )  # fmt: skip
        for place in tl.static_range(1, INNER):
            total += operand_pixel(
                x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
                image, first + place // POOL_W, left + place % POOL_W, channel, mask, ACT, SLOPE, GATE_SLOPE, ALIGN,
            )  # fmt: skip
        if INNER < POOL_H * POOL_W:
            for place in range(1, POOL_H * POOL_W):
                total += operand_pixel(
                    x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
                    image, first + place // POOL_W, left + place % POOL_W, channel, mask, ACT, SLOPE, GATE_SLOPE, ALIGN,
                )  # fmt: skip
        if MEAN and POOL_H * POOL_W > 1:
            total = total / (POOL_H * POOL_W)
        return total.to(x.dtype.element_ty)


@triton.jit
def accumulate(
    acc,  # (BLOCK_M, BLOCK_N)
    x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
    weight, w_k, w_n, w_h, w_w,  # at its first tap; between summed channels, columns, taps
    image, row, column, valid,  # (BLOCK_M): the operand's pixel under the first tap
    channels, height, width,  # of the operand, after pooling
    cols, n_cols,  # (BLOCK_N), and how many there are
    taps_h, taps_w,
    part,  # which of PARTS equal pieces of the sum
    STEP: tl.constexpr, PARTS: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, MEAN: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr,
    FLAT: tl.constexpr, ALIGN: tl.constexpr, K_ALIGN: tl.constexpr, N_ALIGN: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc` plus the sum at the head of this file; the operand lies channels-last, the weight anywhere.

    Strides of `h`, `gate` and `plus` that are None are those of `x`.

    `ALIGN` divides the operand's strides and its number of channels, `K_ALIGN` and `N_ALIGN` the weight's strides
    `w_k` and `w_n`, and the larger of these two `w_h` and `w_w`; where `K_ALIGN` is that, it divides `n_cols` as well.
    """
    # Columns that lie side by side are loaded together: `K_ALIGN` divides their number then.
    COLUMN_ALIGN: tl.constexpr = K_ALIGN if K_ALIGN > N_ALIGN else 1
    TAP_ALIGN: tl.constexpr = K_ALIGN if K_ALIGN > N_ALIGN else N_ALIGN
    lanes = tl.arange(0, BLOCK_K)
    channels = aligned(channels, ALIGN)
    taps = taps_h * taps_w
    across = tl.maximum(taps_w, 1)  # a pipeline calculates ahead, of a phase without taps too
    blocks = tl.cdiv(channels, BLOCK_K)
    steps = tl.cdiv(taps * FLAT, BLOCK_K) if FLAT > 0 else taps * blocks
    if PARTS > 1:
        first = steps * part // PARTS
        last = steps * (part + 1) // PARTS
    else:
        first = 0
        last = steps
    in_columns = (cols < aligned(n_cols, COLUMN_ALIGN))[None, :]
    columns = cols[None, :] * aligned(w_n, N_ALIGN)
    w_k = aligned(w_k, K_ALIGN)
    w_h = aligned(w_h, TAP_ALIGN)
    w_w = aligned(w_w, TAP_ALIGN)
    # Where all that is read lies alike, a tap is the same distance away from every pixel.
    ALIKE: tl.constexpr = (
        (h is None or h_n is None) and (gate is None or gate_n is None) and (plus is None or plus_n is None)
    )
    LINEAR: tl.constexpr = ALIKE and POOL_H * POOL_W == 1
    PLAIN: tl.constexpr = (h is None) and (gate is None) and (plus is None)
    under_first = offsets(image, row, column, 0, x_n, x_h, x_w, ALIGN)[:, None]
    for step in range(first, last):
        if FLAT > 0:
            index = step * BLOCK_K + lanes
            tap = index // FLAT
            channel = index % FLAT
            tap_h = tap // across
            tap_w = tap % across
            summed = tap < taps
            r = row[:, None] + STEP * tap_h[None, :]
            c = column[:, None] + STEP * tap_w[None, :]
            w_at = (tap_h * w_h + tap_w * w_w + channel * w_k)[:, None]
        else:
            tap = step // blocks
            channel = (step - tap * blocks) * BLOCK_K + lanes
            tap_h = tap // across
            tap_w = tap - tap_h * across
            summed = channel < channels
            r = (row + STEP * tap_h)[:, None]
            c = (column + STEP * tap_w)[:, None]
            w_at = (channel * w_k)[:, None] + (tap_h * w_h + tap_w * w_w)
        mask = valid[:, None] & (r >= 0) & (r < height) & (c >= 0) & (c < width) & summed[None, :]
        if LINEAR:
            if row.dtype == tl.int64:
                tap_h = tap_h.to(tl.int64)
                tap_w = tap_w.to(tl.int64)
            away = STEP * (tap_h * aligned(x_h, ALIGN) + tap_w * aligned(x_w, ALIGN)) + channel
            at = under_first + away[None, :]
            if PLAIN:
                a = tl.load(x + at, mask=mask, other=0.0)
            else:
                a = operand_value(x, at, h, at, gate, at, plus, at, mask, ACT, SLOPE, GATE_SLOPE)
                a = a.to(x.dtype.element_ty)
        else:
            a = operand_tile(
                x, x_n, x_h, x_w, h, h_n, h_h, h_w, gate, gate_n, gate_h, gate_w, plus, plus_n, plus_h, plus_w,
                image[:, None], r, c, channel[None, :], mask,
                POOL_H, POOL_W, MEAN, ACT, SLOPE, GATE_SLOPE, ALIGN,
            )  # fmt: skip
        b = tl.load(weight + w_at + columns, mask=summed[:, None] & in_columns, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc
