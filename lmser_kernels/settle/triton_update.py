"""The neuron update in Triton: both drives into one accumulator, and all that follows before the result is written.

    z = conv(below, W_below) + up(convᵀ(above, W_above)) + bias + add        v = f(z)
    h = evidence where it holds, a mixture where it holds in part, else v    change = max |h - previous|

A drive that an earlier update computed is read instead, one that a later update uses again is written beside; the one
from above at the resolution of the layer above, as it was before it is spread over windows. Where the edge above pools,
the mean over each window is written as well: the layer above reads that, nine taps of a quarter of the bytes each
instead of nine times the whole state.

Whether a solve still runs is read from memory: `stop` is what the sweep before this one changed by. A sweep after the
last leaves its own change 0, so that every further one stops as well.
"""

# mypy: allow-untyped-defs
# ruff: noqa: SIM102  (the outer condition is the compiler's, the inner one the kernel's)

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.gpu.activation import activate
from lmser_kernels.settle.triton_tile import (
    add_drive,
    no_magnitudes,
    places,
    raise_to,
    row_magnitudes,
    windows,
)
from lmser_kernels.tied_conv.triton_accumulate import zeros


@triton.jit
def held(v, evidence, hold):
    """hold 1: evidence; 0: the value itself; between: their mixture."""
    mixed = hold * evidence + (1.0 - hold) * v
    return tl.where(hold == 1, evidence, tl.where(hold == 0, v, mixed))


# Of a scalar's address nothing is to be gained: it would be compiled for each alignment.
@triton.jit(do_not_specialize_on_alignment=["change", "stop", "limit", "all_held", "skip"])
def update_kernel(
    h, below, w_below, above, w_above, bias, add,
    up_kept, down_kept, up_out, down_out,  # drives computed before, to be used again
    evidence, hold, value, value_before, previous, rounded, pooled,
    change, stop, limit, all_held, skip,
    images, height, width, channels,  # of the layer, in windows
    below_h, below_w, below_c, above_h, above_w, above_c,
    PAD_UP_H: tl.constexpr, PAD_UP_W: tl.constexpr, PAD_DOWN_H: tl.constexpr, PAD_DOWN_W: tl.constexpr,
    KH_UP: tl.constexpr, KW_UP: tl.constexpr, KH_DOWN: tl.constexpr, KW_DOWN: tl.constexpr,
    WH: tl.constexpr, WW: tl.constexpr,
    FLAT_UP: tl.constexpr, FLAT_DOWN: tl.constexpr, ALIGN_UP: tl.constexpr, ALIGN_DOWN: tl.constexpr, ALIGN: tl.constexpr,
    PER_SAMPLE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Everything is None that is not there.

    Of `h` and `value` (before evidence) at least one is given. `skip`: nothing is done where it says so, that is where
    a wholly held layer would only become what it is; `all_held`: the layer below is one, whose drive is taken from
    `up_kept` if so. `value_before`: what a sample at rest shows again.
    """
    tiles_n = tl.cdiv(channels, BLOCK_N)
    tile = tl.program_id(0) // tiles_n
    cols = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if skip is not None:
        if tl.load(skip) != 0:
            return
    if stop is not None and not PER_SAMPLE:
        if tl.load(stop).to(tl.float64) < tl.load(limit):
            return
    first, image, w_row, w_column, valid = windows(tile, images, height, width, BLOCK_M)
    w_base = first * height * width * channels
    base = w_base * (WH * WW)
    runs = valid
    taps_up = KH_UP
    taps_down = KH_DOWN
    if stop is not None and PER_SAMPLE:
        runs = valid & ~(tl.load(stop + image, mask=valid, other=0.0).to(tl.float64) < tl.load(limit))
        any_runs = tl.max(runs.to(tl.int32), axis=0)
        if value_before is None:
            if any_runs == 0:
                return
        taps_up = KH_UP * any_runs
        taps_down = KH_DOWN * any_runs
    if w_below is not None and up_kept is not None:
        is_held = tl.load(all_held) != 0
        taps_up = tl.where(is_held, 0, taps_up)
    in_layer = (cols < channels)[None, :]
    mask = runs[:, None] & in_layer
    like = value if h is None else h

    down = zeros(like, BLOCK_M, BLOCK_N)
    w_at = places(image - first, w_row, w_column, cols, height, width, channels, ALIGN)
    if w_above is not None:
        down = add_drive(
            down, above, w_above, image, w_row + PAD_DOWN_H, w_column + PAD_DOWN_W, valid, above_h, above_w, above_c,
            cols, channels, taps_down, KH_DOWN, KW_DOWN, -1, FLAT_DOWN, ALIGN_DOWN, BLOCK_K, PRECISION,
        )  # fmt: skip
        if down_out is not None:
            tl.store(down_out + w_base + w_at, down, mask=mask)
    elif down_kept is not None:
        down += tl.load(down_kept + w_base + w_at, mask=mask, other=0.0)
    if bias is not None and up_out is None:
        down += tl.load(bias + cols, mask=cols < channels, other=0.0)[None, :]

    sums = zeros(like, BLOCK_M, BLOCK_N)
    moved = no_magnitudes(like, BLOCK_M)
    for pixel in tl.range(0, WH * WW, disable_licm=True):
        row = w_row * WH + pixel // WW
        column = w_column * WW + pixel % WW
        at = places(image - first, row, column, cols, height * WH, width * WW, channels, ALIGN)
        acc = down
        if up_out is not None:  # kept by itself
            acc = zeros(like, BLOCK_M, BLOCK_N)
        if w_below is not None:
            if up_kept is not None:
                acc += tl.load(up_kept + base + at, mask=mask & is_held, other=0.0)
            acc = add_drive(
                acc, below, w_below, image, row - PAD_UP_H, column - PAD_UP_W, valid, below_h, below_w, below_c,
                cols, channels, taps_up, KH_UP, KW_UP, 1, FLAT_UP, ALIGN_UP, BLOCK_K, PRECISION,
            )  # fmt: skip
        elif up_kept is not None:
            acc += tl.load(up_kept + base + at, mask=mask, other=0.0)
        if up_out is not None:
            tl.store(up_out + base + at, acc, mask=mask)
            acc += down
            if bias is not None:
                acc += tl.load(bias + cols, mask=cols < channels, other=0.0)[None, :]
        if add is not None:
            acc += tl.load(add + base + at, mask=mask, other=0.0)
        v = activate(acc, ACT, SLOPE)
        if value is not None:
            if value_before is not None:
                rests = valid[:, None] & in_layer & ~mask
                tl.store(
                    value + base + at, tl.load(value_before + base + at, mask=rests, other=0.0), mask=rests
                )
            tl.store(value + base + at, v, mask=mask)
        if evidence is not None:
            v = held(
                v,
                tl.load(evidence + base + at, mask=mask, other=0.0),
                tl.load(hold + base + at, mask=mask, other=0.0),
            )
        if change is not None:
            before = tl.load(previous + base + at, mask=mask, other=0.0)
            moved = tl.maximum(moved, row_magnitudes(v - before, mask))
            # `previous` may be `h`, and a value be read by another thread than the one that writes it.
            tl.debug_barrier()
        if h is not None:
            tl.store(h + base + at, v, mask=mask)
        if rounded is not None:
            tl.store(rounded + base + at, v.to(rounded.dtype.element_ty), mask=mask)
        if pooled is not None:
            sums += v
    if change is not None:
        raise_to(change, moved, image, runs, BLOCK_M, PER_SAMPLE)
    if pooled is not None:
        tl.store(pooled + w_base + w_at, sums / (WH * WW), mask=mask)
