"""Max pooling and the linear maps back through its winners in Triton, by the operators' own schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu.launch import launch
from lmser_kernels.gpu.pixel_tiles import pixel_tiles
from lmser_kernels.layout import empty_like_layout
from lmser_kernels.max_pool.triton_kernels import max_pool, max_select, max_unpool

Ints = Sequence[int]

_MOST_UNROLLED = 16  # places of a window whose loads are all in flight at once
_MOST_REACH = 4  # windows that reach a pixel, likewise: each is two loads, or three


def max_pool2d_act(
    x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, activation: str, slope: float
) -> tuple[Tensor, Tensor]:
    """`(f(max_pool(x)), places)`."""
    n, c, height, width = x.shape
    size = _pooled(x, kernel_size, stride, padding)
    h = empty_like_layout(x, (n, c, *size))
    places = x.new_empty((n, *size, c), dtype=torch.uint8)
    launch(
        max_pool,
        **pixel_tiles(h, {"big": x, "small": h}),
        places=places,
        height=height,
        width=width,
        small_height=size[0],
        small_width=size[1],
        **_windows(kernel_size, stride, padding),
        ACT=activation,
        SLOPE=slope,
        UNROLL=kernel_size[0] * kernel_size[1] <= _MOST_UNROLLED,
    )
    return h, places


def max_unpool2d(
    z: Tensor,
    places: Tensor,
    h: Tensor | None,
    output_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    activation: str,
    slope: float,
) -> Tensor:
    """`Sᵀ (z · f'(h))`: each value at its winner's place."""
    _, _, small_height, small_width = z.shape
    size = (z.shape[0], z.shape[1], output_size[0], output_size[1])
    if small_height * small_width == 1 and z.numel():
        # Of a map of one pixel the layout cannot be told: the places' own.
        u = torch.empty(size, dtype=z.dtype, device=z.device, memory_format=torch.channels_last)
    else:
        u = empty_like_layout(z, size)
    reach = triton.cdiv(kernel_size[0], stride[0]) * triton.cdiv(kernel_size[1], stride[1])
    launch(
        max_unpool,
        **pixel_tiles(u, {"big": u, "small": z, "h": _output(h, activation)}),
        places=places.contiguous(),
        height=output_size[0],
        width=output_size[1],
        small_height=small_height,
        small_width=small_width,
        **_windows(kernel_size, stride, padding),
        ACT=activation,
        SLOPE=slope,
        UNROLL=reach <= _MOST_REACH,
    )
    return u


def max_select2d(
    x: Tensor,
    places: Tensor,
    h: Tensor | None,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    activation: str,
    slope: float,
) -> Tensor:
    """`f'(h) · S x`: the value at each winner's place."""
    n, c, height, width = x.shape
    size = _pooled(x, kernel_size, stride, padding)
    v = empty_like_layout(x, (n, c, *size))
    launch(
        max_select,
        **pixel_tiles(v, {"big": x, "small": v, "h": _output(h, activation)}),
        places=places.contiguous(),
        height=height,
        width=width,
        small_height=size[0],
        small_width=size[1],
        **_windows(kernel_size, stride, padding),
        ACT=activation,
        SLOPE=slope,
    )
    return v


def _pooled(x: Tensor, kernel: Ints, stride: Ints, padding: Ints) -> tuple[int, int]:
    return (
        (x.shape[2] + 2 * padding[0] - kernel[0]) // stride[0] + 1,
        (x.shape[3] + 2 * padding[1] - kernel[1]) // stride[1] + 1,
    )


def _output(h: Tensor | None, activation: str) -> Tensor | None:
    """`h` where `f'` is read from it."""
    if activation == "identity":
        return None
    if h is None:
        raise ValueError(f"h must be the pool's output where the activation is {activation}; got None")
    return h


def _windows(kernel: Ints, stride: Ints, padding: Ints) -> dict[str, Any]:
    names = ("KH", "KW", "SH", "SW", "PH", "PW")
    return dict(zip(names, (*kernel, *stride, *padding), strict=True))
