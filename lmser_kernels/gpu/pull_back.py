"""What flows back through an activation, in one pass over memory, with its sums over pixels.

    pre = grad · f'(z) [· (gate > 0 ? 1 : gate_slope)]        total = pre + plus        sums = Σ pre

The derivative is read off `h = f(z)`. The sums of a bias gradient are partial over blocks of pixels, then added in a
fixed order, so that their bits are the same every time.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmser_kernels.gpu import activation
from lmser_kernels.gpu.elements import read, tile_channels, tile_offsets, tile_pixels
from lmser_kernels.gpu.extents import extents, same_dense
from lmser_kernels.gpu.launch import launch, multiprocessors
from lmser_kernels.gpu.reduce import reduce

_VECTORS = 4  # of a thread and tensor at a time: a few blocks a multiprocessor then keep its memory busy
_MOST_ALONE = 8  # tiles that one program sums: another launch would take longer
_BLOCKS = 4  # of a multiprocessor, where each of them walks over many tiles


@triton.jit
def pull_back_at(
    grad, h, gate, grad_at, h_at, gate_at, mask,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr,
):  # fmt: skip
    """`grad · f'(z) · gate`, where masked out 0."""
    g = read(grad + grad_at, mask)
    if ACT != "identity":
        g = activation.pull_back(g, read(h + h_at, mask), ACT, SLOPE)
    if gate is not None:
        is_open = read(gate + gate_at, mask) > 0
        g = tl.where(is_open, g, g * GATE_SLOPE)
    return g


@triton.jit
def pull_back_dense(
    grad, h, gate, pre, count,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All tensors dense and of one layout, nothing summed: memory order."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    at = base + tl.arange(0, BLOCK)
    if base + BLOCK <= count:
        g = pull_back_at(grad, h, gate, at, at, at, None, ACT, SLOPE, GATE_SLOPE)
        tl.store(pre + at, g.to(pre.dtype.element_ty))
    else:
        g = pull_back_at(grad, h, gate, at, at, at, at < count, ACT, SLOPE, GATE_SLOPE)
        tl.store(pre + at, g.to(pre.dtype.element_ty), mask=at < count)


@triton.jit
def pull_back_tiled(
    grad, h, gate, plus, pre, total, sums, rows, columns, channels,
    grad_n, grad_h, grad_w, grad_c, h_n, h_h, h_w, h_c, gate_n, gate_h, gate_w, gate_c,
    plus_n, plus_h, plus_w, plus_c, pre_n, pre_h, pre_w, pre_c, total_n, total_h, total_w, total_c,
    tiles, all_tiles, splits, channel_blocks,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE_SLOPE: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS_FAST: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Any strides (`gpu.extents`): a program has one of `channel_blocks`, and every `splits`-th of `all_tiles`, of
    which an image has `tiles`. Row `split` of `sums (splits, channels)` takes what it summed."""
    if CHANNELS_FAST:
        channels *= UNIT
    else:
        columns *= UNIT
    pid = tl.program_id(0)
    split = pid // channel_blocks
    c = tile_channels(pid % channel_blocks, BLOCK_C, CHANNELS_FAST)
    if sums is not None:
        ROW: tl.constexpr = BLOCK_Q if CHANNELS_FAST else BLOCK_C
        part = tl.zeros([ROW, BLOCK_Q * BLOCK_C // ROW], dtype=SUM)
    for tile in range(split, all_tiles, splits):
        n, block = tile // tiles, tile % tiles
        mask = (tile_pixels(block, BLOCK_Q, CHANNELS_FAST) < rows * columns) & (c < channels)
        at = tile_offsets(
            n, block, c, grad_n, grad_h, grad_w, grad_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT
        )
        h_at = tile_offsets(n, block, c, h_n, h_h, h_w, h_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT)
        gate_at = tile_offsets(
            n, block, c, gate_n, gate_h, gate_w, gate_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT
        )
        g = pull_back_at(grad, h, gate, at, h_at, gate_at, mask, ACT, SLOPE, GATE_SLOPE)
        if sums is not None:
            part += g
        if pre is not None:
            at = tile_offsets(
                n, block, c, pre_n, pre_h, pre_w, pre_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT
            )
            tl.store(pre + at, g.to(pre.dtype.element_ty), mask=mask)
        if total is not None:
            at = tile_offsets(
                n, block, c, plus_n, plus_h, plus_w, plus_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT
            )
            g += read(plus + at, mask)
            at = tile_offsets(
                n, block, c, total_n, total_h, total_w, total_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT
            )
            tl.store(total + at, g.to(total.dtype.element_ty), mask=mask)
    if sums is not None:
        row = sums + split.to(tl.int64) * channels
        whole = tl.sum(part, axis=0 if CHANNELS_FAST else 1, keep_dims=True)
        tl.store(row + c, whole.to(sums.dtype.element_ty), mask=c < channels)


def pull_back(
    grad: Tensor,
    h: Tensor,
    activation: str,
    slope: float,
    *,
    gate: Tensor | None = None,
    gate_slope: float = 0.0,
    plus: Tensor | None = None,
    pre: Tensor | None = None,
    total: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Write `pre` and `total`, all of them `(N, C, H, W)`, and `bias (C,)`, the sums of `pre`: those that are given.

    `h` is not read where the activation is the identity.
    """
    if bias is None and total is None and pre is not None and same_dense(grad, h, gate, pre):
        block = 128 * _VECTORS * 16 // grad.element_size()
        launch(
            pull_back_dense,
            (triton.cdiv(h.numel(), block),),
            grad=grad,
            h=h,
            gate=gate,
            pre=pre,
            count=h.numel(),
            ACT=activation,
            SLOPE=slope,
            GATE_SLOPE=gate_slope,
            BLOCK=block,
        )
        return
    tensors: dict[str, Any] = {"grad": grad, "h": h, "gate": gate, "plus": plus, "pre": pre, "total": total}
    e = extents(h, tensors)
    # A float64 value takes two registers, and its address two more.
    block_q, block_c = e.tile(grad.element_size(), _VECTORS if grad.element_size() < 8 else _VECTORS // 2)
    tiles, channel_blocks = e.tiles(block_q), triton.cdiv(h.shape[1], block_c)
    all_tiles = e.images * tiles
    # Programs that sum walk over many tiles, so that few sums are left to add.
    most = max(1, _BLOCKS * multiprocessors(grad) // max(1, channel_blocks))
    splits = min(all_tiles, most) if bias is not None else all_tiles
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    sums = None
    if bias is not None and 0 < all_tiles <= _MOST_ALONE:
        splits, sums = 1, bias
    elif bias is not None:
        sums = grad.new_empty((splits, h.shape[1]), dtype=wide)
    launch(
        pull_back_tiled,
        (splits * channel_blocks,),
        **tensors,
        sums=sums,
        **e.arguments(),
        tiles=tiles,
        all_tiles=all_tiles,
        splits=splits,
        channel_blocks=channel_blocks,
        ACT=activation,
        SLOPE=slope,
        GATE_SLOPE=gate_slope,
        BLOCK_Q=block_q,
        BLOCK_C=block_c,
        SUM=tl.float64 if wide == torch.float64 else tl.float32,
    )
    if bias is not None and sums is not None and sums is not bias:
        reduce(sums, bias)
