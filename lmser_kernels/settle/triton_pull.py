"""The way back through a neuron update in Triton: the drives' gradients carried to a state, and through `f'`.

    g = conv(below, W_aboveᵀ) + spread(convᵀ(above, W_below)) + add     what reaches the state h
    a = f'(output) ((1 - hold) g + inject)                              what reaches the sum that h was made of

`below` and `above` are gradients of drives that were computed from h: that of the layer below, summed over windows (it
was repeated over them), and that of the layer above, shared out over the windows that were averaged. This is the step
of the backward through sweeps, and, swept until it rests, the adjoint of a fixed point.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.gpu.activation import pull_back
from lmser_kernels.settle.triton_tile import (
    add_drive,
    no_magnitudes,
    places,
    raise_to,
    row_magnitudes,
    windows,
)
from lmser_kernels.tied_conv.triton_accumulate import zeros


# Of a scalar's address nothing is to be gained: it would be compiled for each alignment.
@triton.jit(
    do_not_specialize_on_alignment=[
        "change",
        "largest",
        "change_before",
        "largest_before",
        "limit",
        "all_held",
    ]
)
def pull_kernel(
    result, below, w_below, above, w_above, add, hold, inject, output,
    up_kept, down_kept, up_out, down_out,  # what was carried before, to be used again, as in the update
    extra, total, pooled,  # total = a + extra; pooled: a, or with POOL_TOTAL total, summed over windows
    evidence_sum, external_sum, bias_sum,  # += hold g; += a; += sums of a, a row for every tile
    previous, change, largest, change_before, largest_before, limit, all_held,
    images, height, width, channels,  # of the layer, in windows
    below_h, below_w, below_c, above_h, above_w, above_c,
    PAD_UP_H: tl.constexpr, PAD_UP_W: tl.constexpr, PAD_DOWN_H: tl.constexpr, PAD_DOWN_W: tl.constexpr,
    KH_UP: tl.constexpr, KW_UP: tl.constexpr, KH_DOWN: tl.constexpr, KW_DOWN: tl.constexpr,
    WH: tl.constexpr, WW: tl.constexpr,
    FLAT_UP: tl.constexpr, FLAT_DOWN: tl.constexpr, ALIGN_UP: tl.constexpr, ALIGN_DOWN: tl.constexpr, ALIGN: tl.constexpr,
    POOL_TOTAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Everything is None that is not there; of `result` and `evidence_sum` at least one is given.

    `all_held`: nothing passes a wholly held layer, and no drive is computed. A solve for which
    `change_before / largest_before < limit` is over.
    """
    tiles_n = tl.cdiv(channels, BLOCK_N)
    tile = tl.program_id(0) // tiles_n
    cols = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if change_before is not None:
        largest_then = tl.load(largest_before).to(tl.float64)
        # Also where all is 0; a NaN goes on.
        if (largest_then == 0) | (tl.load(change_before).to(tl.float64) / largest_then < tl.load(limit)):
            return
    first, image, w_row, w_column, valid = windows(tile, images, height, width, BLOCK_M)
    w_base = first * height * width * channels
    base = w_base * (WH * WW)
    in_layer = (cols < channels)[None, :]
    mask = valid[:, None] & in_layer
    taps_up = KH_UP
    taps_down = KH_DOWN
    if all_held is not None:
        passes = tl.where(tl.load(all_held) != 0, 0, 1)
        taps_up = KH_UP * passes
        taps_down = KH_DOWN * passes

    like = evidence_sum if result is None else result
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
    down = down / (WH * WW)
    sums = zeros(like, BLOCK_M, BLOCK_N)
    of_tile = tl.sum(sums, axis=0)
    moved = no_magnitudes(like, BLOCK_M)
    size = no_magnitudes(like, BLOCK_M)
    for pixel in tl.range(0, WH * WW, disable_licm=True):
        row = w_row * WH + pixel // WW
        column = w_column * WW + pixel % WW
        at = places(image - first, row, column, cols, height * WH, width * WW, channels, ALIGN)
        g = down
        if up_out is not None:  # kept by itself
            g = zeros(like, BLOCK_M, BLOCK_N)
        if w_below is not None:
            g = add_drive(
                g, below, w_below, image, row - PAD_UP_H, column - PAD_UP_W, valid, below_h, below_w, below_c,
                cols, channels, taps_up, KH_UP, KW_UP, 1, FLAT_UP, ALIGN_UP, BLOCK_K, PRECISION,
            )  # fmt: skip
        elif up_kept is not None:
            g += tl.load(up_kept + base + at, mask=mask, other=0.0)
        if up_out is not None:
            tl.store(up_out + base + at, g, mask=mask)
            g += down
        if add is not None:
            g += tl.load(add + base + at, mask=mask, other=0.0)
        if hold is not None:
            share = tl.load(hold + base + at, mask=mask, other=0.0)
            if evidence_sum is not None:
                so_far = tl.load(evidence_sum + base + at, mask=mask, other=0.0)
                tl.store(evidence_sum + base + at, so_far + tl.where(share == 0, 0.0, share * g), mask=mask)
            g = tl.where(share == 1, 0.0, g * (1.0 - share))
        if inject is not None:
            g += tl.load(inject + base + at, mask=mask, other=0.0)
        if output is not None:
            h = tl.load(output + base + at, mask=mask, other=0.0).to(g.dtype)
            g = pull_back(g, h, ACT, SLOPE)
        if change is not None:
            before = tl.load(previous + base + at, mask=mask, other=0.0)
            moved = tl.maximum(moved, row_magnitudes(g - before, mask))
            size = tl.maximum(size, row_magnitudes(g, mask))
            tl.debug_barrier()  # `previous` may be `result`: see the update
        if result is not None:
            tl.store(result + base + at, g, mask=mask)
        if external_sum is not None:
            so_far = tl.load(external_sum + base + at, mask=mask, other=0.0)
            tl.store(external_sum + base + at, so_far + g, mask=mask)
        if bias_sum is not None:
            of_tile += tl.sum(tl.where(mask, g, 0.0), axis=0)
        if pooled is not None and not POOL_TOTAL:
            sums += g
        if total is not None:
            g += tl.load(extra + base + at, mask=mask, other=0.0)
            tl.store(total + base + at, g, mask=mask)
        if pooled is not None and POOL_TOTAL:
            sums += g
    if change is not None:
        raise_to(change, moved, image, valid, BLOCK_M, False)
        raise_to(largest, size, image, valid, BLOCK_M, False)
    if bias_sum is not None:
        so_far = bias_sum + tile.to(tl.int64) * channels + cols
        tl.store(so_far, tl.load(so_far, mask=cols < channels, other=0.0) + of_tile, mask=cols < channels)
    if pooled is not None:
        tl.store(pooled + w_base + w_at, sums, mask=mask)
