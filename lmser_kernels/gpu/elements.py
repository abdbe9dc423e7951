"""How elementwise kernels find their elements: device functions for dense memory order and for tiles of any strides."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(x):
    """`x` as sums are formed: float32, or float64 as it is."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def read(pointers, mask):
    """What lies there, widened; 0 where masked out."""
    if mask is None:
        return widen(tl.load(pointers))
    else:
        return widen(tl.load(pointers, mask=mask, other=0.0))


@triton.jit
def channel_of(base, g, inner, period):
    """Of element groups `base + g`, `inner` of them to a channel and `period` channels to an image: the channel.

    `base` is one int64 for the whole block, so that what is divided element by element is 32 bits wide.
    """
    return ((base // inner % period).to(tl.int32) + ((base % inner).to(tl.int32) + g) // inner) % period


@triton.jit
def tile_channels(block, BLOCK_C: tl.constexpr, CHANNELS_FAST: tl.constexpr):
    """The channels of a tile, along its last axis where neighbouring threads shall take neighbouring channels."""
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    if CHANNELS_FAST:
        return c[None, :]
    else:
        return c[:, None]


@triton.jit
def tile_pixels(block, BLOCK_Q: tl.constexpr, CHANNELS_FAST: tl.constexpr):
    """The pixels of a tile, along the axis that `tile_channels` leaves."""
    q = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    if CHANNELS_FAST:
        return q[:, None]
    else:
        return q[None, :]


@triton.jit
def tile_offsets(
    n, block, c, stride_n, stride_h, stride_w, stride_c, columns,
    BLOCK_Q: tl.constexpr, ROWS: tl.constexpr, CHANNELS_FAST: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Offsets of channels `c` of pixels `[block · BLOCK_Q, ...)` of image `n`, strides divided by UNIT as in
    `gpu.extents`."""
    if CHANNELS_FAST:
        image = n.to(tl.int64) * stride_n * UNIT
        channel = c.to(tl.int64) * stride_c
        step_h, step_w = stride_h * UNIT, stride_w * UNIT
    else:
        image = n.to(tl.int64) * stride_n * UNIT
        channel = c.to(tl.int64) * stride_c * UNIT
        step_h, step_w = stride_h, stride_w
    if ROWS:
        q = tile_pixels(block, BLOCK_Q, CHANNELS_FAST)
        pixel = (q // columns).to(tl.int64) * step_h + (q % columns).to(tl.int64) * step_w
        return image + pixel + channel
    else:
        # Images may be merged into the columns, so that only what is inside the block fits 32 bits for certain.
        first = block.to(tl.int64) * BLOCK_Q * step_w
        return image + first + tile_pixels(0, BLOCK_Q, CHANNELS_FAST).to(tl.int64) * step_w + channel
