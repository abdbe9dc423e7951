"""`add_act` and its backward pass in Triton, by the operators' own schemas."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from lmser_kernels.add_act.triton_kernels import add_act_dense, add_act_tiled
from lmser_kernels.gpu import pull_back
from lmser_kernels.gpu.extents import extents, same_dense
from lmser_kernels.gpu.launch import launch
from lmser_kernels.layout import empty_like_layout

_VECTORS = 4  # of 16 bytes, of a thread and tensor at a time


def add_act(y: Tensor, u: Tensor | None, bias: Tensor | None, activation: str, slope: float) -> Tensor:
    """`f(y + u + bias)`."""
    h = empty_like_layout(y, y.shape)
    bias_stride = 0 if bias is None else bias.stride(0)
    constants: dict[str, Any] = {"ACT": activation, "SLOPE": slope}
    if same_dense(y, u, h):
        _, c, height, width = y.shape
        pixels = height * width
        channels_fast = pixels == 1 or not y.is_contiguous()
        # Where a bias is added, the values of a group have neighbouring channels, or the same.
        whole = y.numel() if bias is None else c if channels_fast else pixels
        v = 16 // y.element_size()
        while v > 1 and whole % v != 0:
            v //= 2
        block = 128 * _VECTORS * 16 // y.element_size() // v
        groups = y.numel() // v
        launch(
            add_act_dense,
            (triton.cdiv(groups, block),),
            y=y,
            u=u,
            bias=bias,
            h=h,
            groups=groups,
            inner=1 if channels_fast else max(1, pixels // v),
            period=max(1, c // v if channels_fast else c),
            bias_stride=bias_stride,
            CHANNELS_FAST=channels_fast,
            V=v,
            BLOCK=block,
            **constants,
        )
        return h
    tensors: dict[str, Any] = {"y": y, "u": u, "h": h}
    e = extents(h, tensors)
    block_q, block_c = e.tile(y.element_size(), _VECTORS)
    tiles, channel_blocks = e.tiles(block_q), triton.cdiv(y.shape[1], block_c)
    launch(
        add_act_tiled,
        (e.images * tiles * channel_blocks,),
        **tensors,
        bias=bias,
        **e.arguments(),
        bias_stride=bias_stride,
        tiles=tiles,
        channel_blocks=channel_blocks,
        BLOCK_Q=block_q,
        BLOCK_C=block_c,
        **constants,
    )
    return h


def add_act_backward(
    grad: Tensor, h: Tensor, activation: str, slope: float, needs_bias: bool
) -> tuple[Tensor, Tensor]:
    """`(g, Σ g)` with `g = grad · f'(z)`, the sums over all but the channels where `needs_bias`."""
    g = empty_like_layout(h, h.shape)
    bias = h.new_empty(h.shape[1] if needs_bias else 0)
    pull_back.pull_back(grad, h, activation, slope, pre=g, bias=bias if needs_bias else None)
    return g, bias
