"""`h = f(y + u + bias)` in Triton: one pass over memory, whatever the layouts."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.gpu.activation import activate
from lmser_kernels.gpu.elements import channel_of, read, tile_channels, tile_offsets, tile_pixels


@triton.jit
def add_act_step(y, u, h, b, at, mask, ACT: tl.constexpr, SLOPE: tl.constexpr):
    z = read(y + at, mask)
    if u is not None:
        z += read(u + at, mask)
    if b is not None:
        z += b
    tl.store(h + at, activate(z, ACT, SLOPE).to(h.dtype.element_ty), mask=mask)


@triton.jit
def add_act_dense(
    y, u, bias, h, groups, inner, period, bias_stride,
    ACT: tl.constexpr, SLOPE: tl.constexpr, CHANNELS_FAST: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All tensors dense and of one layout: memory order, in `groups` of V values that one thread takes at once.

    A group lies in V channels of one pixel (CHANNELS_FAST) or in one channel, `inner` groups of it, `period` to an
    image.
    """
    base = tl.program_id(0).to(tl.int64) * BLOCK
    g = tl.arange(0, BLOCK)
    v = tl.arange(0, V)
    at = (base + g)[:, None] * V + v[None, :]
    b = None
    if bias is not None:
        channel = channel_of(base, g, inner, period)[:, None]
        if CHANNELS_FAST:
            channel = channel * V + v[None, :]
        b = read(bias + channel * bias_stride, None)
    if base + BLOCK <= groups:
        add_act_step(y, u, h, b, at, None, ACT, SLOPE)
    else:
        add_act_step(y, u, h, b, at, (base + g < groups)[:, None], ACT, SLOPE)


@triton.jit
def add_act_tiled(
    y, u, bias, h, rows, columns, channels,
    y_n, y_h, y_w, y_c, u_n, u_h, u_w, u_c, h_n, h_h, h_w, h_c,
    bias_stride, tiles, channel_blocks,
    ACT: tl.constexpr, SLOPE: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS_FAST: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Any strides (`gpu.extents`): a program has a tile of pixels and channels of one image, `tiles` to an image."""
    if CHANNELS_FAST:
        channels *= UNIT
    else:
        columns *= UNIT
    pid = tl.program_id(0)
    tile = pid // channel_blocks
    n, block = tile // tiles, tile % tiles
    c = tile_channels(pid % channel_blocks, BLOCK_C, CHANNELS_FAST)
    mask = (tile_pixels(block, BLOCK_Q, CHANNELS_FAST) < rows * columns) & (c < channels)
    at = tile_offsets(n, block, c, y_n, y_h, y_w, y_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT)
    z = read(y + at, mask)
    if u is not None:
        at = tile_offsets(n, block, c, u_n, u_h, u_w, u_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT)
        z += read(u + at, mask)
    if bias is not None:
        z += read(bias + c * bias_stride, c < channels)
    at = tile_offsets(n, block, c, h_n, h_h, h_w, h_c, columns, BLOCK_Q, ROWS, CHANNELS_FAST, UNIT)
    tl.store(h + at, activate(z, ACT, SLOPE).to(h.dtype.element_ty), mask=mask)
