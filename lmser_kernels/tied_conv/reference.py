"""The tied convolution's two directions in eager PyTorch: the specification in code.

Notation: `W (C_out, C_in, kh, kw)` is one weight, used by both directions; `conv` is `F.conv2d(·, W,
stride, padding)` and `convᵀ` its adjoint, `F.conv_transpose2d(·, W, stride, padding)`, pinned to a given
output size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, pair
from lmser_kernels.tied_conv.sizes import smallest_size


def conv2d_add_act(
    x: Tensor,
    weight: Tensor,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    pool: Pair = 1,
    activation: str = "identity",
    slope: float | None = None,
    return_drive: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`h = f(conv(avg_pool(x)) + bias + add)`; with `return_drive`, also `conv(avg_pool(x))` by itself."""
    pool = pair("pool", pool, 1)
    pooled = x if pool == (1, 1) else F.avg_pool2d(x, pool)
    if not return_drive:
        total = F.conv2d(pooled, weight, bias, stride, padding)
        return activations.apply(total if add is None else total + add, activation, slope)
    drive = F.conv2d(pooled, weight, None, stride, padding)
    return activations.apply(_plus(drive, bias, add), activation, slope), drive


def conv_transpose2d_add_act(
    z: Tensor,
    weight: Tensor,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_size: Pair | None = None,
    upsample: Pair = 1,
    spread: bool = False,
    gate: Tensor | None = None,
    gate_slope: float = 0.0,
    input_gate: Tensor | None = None,
    input_slope: float = 0.0,
    activation: str = "identity",
    slope: float | None = None,
    return_drive: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`h = f(up(convᵀ(z)) + bias + add) · [gate > 0 ? 1 : gate_slope]`; with `return_drive`, also `up(convᵀ(z))` by itself.

    `up` repeats each value `upsample` times (nearest neighbour), with `spread` each divided by how many that
    makes; `output_size` is the size of `convᵀ(z)`,
    before it. With an `input_gate`, `z` is multiplied by 1 where it is positive and `input_slope` elsewhere.
    """
    upsample = pair("upsample", upsample, 1)
    if input_gate is not None:
        z = z * _factor(input_gate, input_slope, z)
    drive = _conv_transpose(z, weight, stride, padding, output_size)
    if upsample != (1, 1):
        drive = F.interpolate(drive, scale_factor=upsample)
    if spread:
        drive = drive / (upsample[0] * upsample[1])
    h = activations.apply(_plus(drive, bias, add), activation, slope)
    if gate is not None:
        h = h * _factor(gate, gate_slope, h)
    return (h, drive) if return_drive else h


def tied_conv2d(
    x: Tensor, z: Tensor, weight: Tensor, *, stride: Pair = 1, padding: Pair = 0
) -> tuple[Tensor, Tensor]:
    """`(y, u) = (conv(x), convᵀ(z))`, `u` sized like `x`."""
    y = F.conv2d(x, weight, None, stride, padding)
    return y, _conv_transpose(z, weight, stride, padding, (x.shape[2], x.shape[3]))


def _factor(gate: Tensor, slope: float, like: Tensor) -> Tensor:
    is_open = (gate > 0).to(like.dtype)
    return is_open + slope * (1 - is_open) if slope else is_open


def _conv_transpose(
    z: Tensor, weight: Tensor, stride: Pair, padding: Pair, output_size: Pair | None
) -> Tensor:
    stride = pair("stride", stride, 1)
    padding = pair("padding", padding, 0)
    smallest = smallest_size(z, weight, stride, padding)
    size = smallest if output_size is None else pair("output_size", output_size, 1)
    output_padding = (size[0] - smallest[0], size[1] - smallest[1])
    return F.conv_transpose2d(z, weight, None, stride, padding, output_padding)


def _plus(drive: Tensor, bias: Tensor | None, add: Tensor | None) -> Tensor:
    total = drive if bias is None else drive + bias.view(1, -1, 1, 1)
    return total if add is None else total + add
