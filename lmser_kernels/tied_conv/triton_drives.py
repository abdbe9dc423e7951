"""The two drives of a tied convolution, launched: what every Triton operator on it is made of.

    up    h = f(conv(pool(source)) + bias + add) · gate            convᵀ's data gradient, with a `Source`
    down  h = f(repeat(convᵀ(source)) + bias + add) · gate         conv's data gradient, with a `Source`

Both are adjoint to each other with the same weight, average pooling to `spread` repeating, sum pooling to plain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu import tiles
from lmser_kernels.gpu.launch import arch_of, dot_precision, dot_type, launch, nhwc
from lmser_kernels.layout import empty_like_layout
from lmser_kernels.tied_conv.triton_down import conv_down
from lmser_kernels.tied_conv.triton_pair import conv_pair
from lmser_kernels.tied_conv.triton_up import conv_up

Ints = Sequence[int]
_WIDEST = 16  # bytes of one load


@dataclass(frozen=True)
class Source:
    """What becomes of an operand `x` while it is read: `pull_back(x, h) · (gate > 0 ? 1 : gate_slope) + plus`.

    `h`, `gate` and `plus`, each None or of the operand's shape, are a layer's output, whose activation's derivative
    is taken, its gate, and what else flows into its linear part.
    """

    h: Tensor | None = None
    activation: str = "identity"
    slope: float = 0.0
    gate: Tensor | None = None
    gate_slope: float = 0.0
    plus: Tensor | None = None


PLAIN = Source()


def up(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Ints,
    padding: Ints,
    size: Ints,
    pool: Ints = (1, 1),
    sum_pool: bool = False,
    source: Source = PLAIN,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    gate_slope: float = 0.0,
    activation: str = "identity",
    slope: float = 0.0,
    like: Tensor | None = None,
    drive: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`(h, drive)` with `drive = conv(pool(source))` of `size` pixels, None unless asked for.

    `pool` windows are averaged, with `sum_pool` added up. The results lie like `like`, by default `x`.
    """
    like = x if like is None else like
    shape = (x.shape[0], weight.shape[0], size[0], size[1])
    h, linear = _results(like, shape, drive)
    operand, align = operand_arguments(x, source)
    taps = weight.shape[2] * weight.shape[3]
    tile = choose("conv_up", math.prod(shape) // max(shape[1], 1), shape[1], weight.shape[1], taps, x)
    pixels = shape[0] * shape[2] * shape[3]
    launch(
        conv_up,
        (triton.cdiv(pixels, tile.m) * triton.cdiv(shape[1], tile.n), 1),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **operand,
        **weight_arguments(packed_up(weight), up=True),
        **result_arguments(h, linear, add, gate, bias),
        partial=None,
        images=shape[0],
        channels=weight.shape[1],
        height=x.shape[2] // pool[0],
        width=x.shape[3] // pool[1],
        n_cols=shape[1],
        out_height=shape[2],
        out_width=shape[3],
        **geometry_arguments(weight, stride, padding),
        PARTS=1,
        POOL_H=pool[0],
        POOL_W=pool[1],
        MEAN=not sum_pool,
        ACT=activation,
        SLOPE=slope,
        GATE_SLOPE=gate_slope,
        ALIGN=align,
        **sum_arguments(x, weight.shape[1], tile),
        WIDE=pixels + tile.m >= 2**31,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
    )
    return h, linear


def down(
    z: Tensor,
    weight: Tensor,
    *,
    stride: Ints,
    padding: Ints,
    size: Ints,
    upsample: Ints = (1, 1),
    spread: bool = False,
    output_size: Ints | None = None,
    source: Source = PLAIN,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    gate_slope: float = 0.0,
    activation: str = "identity",
    slope: float = 0.0,
    like: Tensor | None = None,
    drive: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`(h, drive)` with `drive = repeat(convᵀ(source))`, None unless asked for; `convᵀ(source)` has `size` pixels.

    `repeat` copies each pixel `upsample` times, with `spread` divided by how many that makes. An `output_size` beyond
    that, the tail that an average pool left over, goes on with a drive of 0. The results lie like `like`, by default
    `z`.
    """
    like = z if like is None else like
    full = (size[0] * upsample[0], size[1] * upsample[1]) if output_size is None else tuple(output_size)
    shape = (z.shape[0], weight.shape[1], full[0], full[1])
    h, linear = _results(like, shape, drive)
    operand, align = operand_arguments(z, source)
    covering = (triton.cdiv(full[0], upsample[0]), triton.cdiv(full[1], upsample[1]))
    pixels, taps = _largest_phase(z.shape[0], covering, weight, stride)
    tile = choose("conv_down", pixels, shape[1], weight.shape[0], taps, z)
    launch(
        conv_down,
        (triton.cdiv(pixels, tile.m) * triton.cdiv(shape[1], tile.n), stride[0] * stride[1], 1),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **{"z" + name[1:] if name.startswith("x") else name: value for name, value in operand.items()},
        **weight_arguments(packed_down(weight), up=False),
        **result_arguments(h, linear, add, gate, bias),
        partial=None,
        images=shape[0],
        channels=weight.shape[0],
        height=z.shape[2],
        width=z.shape[3],
        n_cols=shape[1],
        inner_height=size[0],
        inner_width=size[1],
        out_height=shape[2],
        out_width=shape[3],
        **geometry_arguments(weight, stride, padding),
        PARTS=1,
        UP_H=upsample[0],
        UP_W=upsample[1],
        SPREAD=spread,
        ACT=activation,
        SLOPE=slope,
        GATE_SLOPE=gate_slope,
        ALIGN=align,
        **sum_arguments(z, weight.shape[0], tile),
        WIDE=pixels + tile.m >= 2**31,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
    )
    return h, linear


def pair(x: Tensor, z: Tensor, weight: Tensor, *, stride: Ints, padding: Ints) -> tuple[Tensor, Tensor]:
    """`(conv(x), convᵀ(z) sized like x)` in one launch; both lie like `x`."""
    images, c_in, height, width = x.shape
    c_out, size = weight.shape[0], z.shape[2:]
    y, u = empty_like_layout(x, z.shape), empty_like_layout(x, x.shape)
    up_pixels = images * size[0] * size[1]
    up_tile = choose("conv_up", up_pixels, c_out, c_in, weight.shape[2] * weight.shape[3], x)
    down_pixels, down_taps = _largest_phase(images, (height, width), weight, stride)
    down_tile = choose("conv_down", down_pixels, c_in, c_out, down_taps, x)
    # A block has the warps and stages of one of the two, of that with more to keep in flight.
    leading = up_tile if up_tile.m * up_tile.n >= down_tile.m * down_tile.n else down_tile
    up_tiles = triton.cdiv(up_pixels, up_tile.m) * triton.cdiv(c_out, up_tile.n)
    down_tiles = triton.cdiv(down_pixels, down_tile.m) * triton.cdiv(c_in, down_tile.n)
    weight_up = packed_up(weight)  # may serve both
    arguments: dict[str, Any] = {}
    for way, operand, out, tile, pixels, letters in (
        ("up", x, y, up_tile, up_pixels, "xy"),
        ("down", z, u, down_tile, down_pixels, "zu"),
    ):
        read, align = operand_arguments(operand)
        written = result_arguments(out, None, None, None, None)
        lies = weight_arguments(weight_up if way == "up" else packed_down(weight_up), way == "up")
        sums = sum_arguments(operand, operand.shape[1], tile)
        arguments |= {letters[0] + name[1:]: read[name] for name in ("x", "x_n", "x_h", "x_w")}
        arguments |= {letters[1]: out}
        arguments |= {f"{letters[1]}_{axis}": written[f"out_{axis}"] for axis in "nchw"}
        arguments |= {f"weight_{way}": lies["weight"]} | {
            f"{way}_{axis}": lies[f"w_{axis}"] for axis in "knhw"
        }
        arguments |= {
            f"{way.upper()}_{name}": value
            for name, value in {
                "OUT_ALIGN": written["OUT_ALIGN"],
                "FLAT": sums["FLAT"],
                "ALIGN": align,
                "K_ALIGN": lies["K_ALIGN"],
                "N_ALIGN": lies["N_ALIGN"],
                "WIDE": pixels + tile.m >= 2**31,
                "BLOCK_M": tile.m,
                "BLOCK_N": tile.n,
                "BLOCK_K": tile.k,
            }.items()
        }
    launch(
        conv_pair,
        (up_tiles + down_tiles * stride[0] * stride[1],),
        num_warps=leading.warps,
        num_stages=leading.stages,
        **arguments,
        images=images,
        c_in=c_in,
        height=height,
        width=width,
        c_out=c_out,
        out_height=size[0],
        out_width=size[1],
        **geometry_arguments(weight, stride, padding),
        up_tiles=up_tiles,
        down_tiles=down_tiles,
        PRECISION=dot_precision(x.dtype),
        DOT=dot_type(x.dtype),
    )
    return y, u


# the arguments of the kernels


def _largest_phase(images: int, size: Ints, weight: Tensor, stride: Ints) -> tuple[int, int]:
    """Pixels of the largest sub-pixel phase of an output of `size`, and taps of the one that has most."""
    rows, columns = triton.cdiv(size[0], stride[0]), triton.cdiv(size[1], stride[1])
    taps = triton.cdiv(weight.shape[2], stride[0]) * triton.cdiv(weight.shape[3], stride[1])
    return images * rows * columns, taps


def choose(kernel: str, pixels: int, columns: int, channels: int, taps: int, like: Tensor) -> tiles.Tile:
    return tiles.choose(
        kernel, pixels, columns, channels * taps, like.dtype, dot_precision(like.dtype), arch_of(like)
    )


def _results(like: Tensor, shape: Ints, drive: bool) -> tuple[Tensor, Tensor | None]:
    return empty_like_layout(like, shape), empty_like_layout(like, shape) if drive else None


def _steps(tensor: Tensor, axes: Ints) -> list[int]:
    """Strides of `axes`, 0 of those that have one value only: theirs says nothing."""
    return [tensor.stride(axis) if tensor.shape[axis] > 1 else 0 for axis in axes]


def _alignment(tensor: Tensor, strides: Sequence[int]) -> int:
    """The power of two that divides all `strides`, as far as it makes loads wider."""
    return math.gcd(_WIDEST // min(tensor.element_size(), 8), *strides)


def operand_arguments(x: Tensor, source: Source = PLAIN) -> tuple[dict[str, Any], int]:
    """Arguments `x, x_n … plus_w` and the `SOURCE_…` constants, and what divides all their strides."""
    arguments: dict[str, Any] = {}
    align = math.gcd(_WIDEST // min(x.element_size(), 8), x.shape[1])
    for name, tensor in (("x", x), ("h", source.h), ("gate", source.gate), ("plus", source.plus)):
        if name == "h" and source.activation == "identity":
            tensor = None
        if tensor is None:
            strides = [0, 0, 0]
        else:
            tensor = nhwc(tensor)
            strides = _steps(tensor, (0, 2, 3))
            align = math.gcd(align, *strides)
        arguments |= {name: tensor, f"{name}_n": strides[0], f"{name}_h": strides[1], f"{name}_w": strides[2]}
    arguments |= {
        "SOURCE_ACT": source.activation,
        "SOURCE_SLOPE": source.slope,
        "SOURCE_GATE_SLOPE": source.gate_slope,
    }
    return arguments, align


def weight_arguments(weight: Tensor, up: bool) -> dict[str, Any]:
    """Arguments `weight, w_k, w_n, w_h, w_w` and what divides them; `w_k` is the stride between summed channels."""
    w_k, w_n, w_h, w_w = _steps(weight, (1, 0, 2, 3) if up else (0, 1, 2, 3))
    return {
        "weight": weight,
        "w_k": w_k,
        "w_n": w_n,
        "w_h": w_h,
        "w_w": w_w,
        "K_ALIGN": _alignment(weight, (w_k, w_h, w_w)),
        "N_ALIGN": _alignment(weight, (w_n, w_h, w_w)),
    }


def result_arguments(
    out: Tensor, drive: Tensor | None, add: Tensor | None, gate: Tensor | None, bias: Tensor | None
) -> dict[str, Any]:
    """Arguments `out … bias_c` of the epilogue, and what divides their strides."""
    arguments: dict[str, Any] = {"out": out, "drive": drive, "add": add, "closed": gate, "bias": bias}
    arguments["bias_c"] = 0 if bias is None else bias.stride(0)
    align = _alignment(out, (out.shape[1],))
    for name, tensor in (("out", out), ("add", add), ("closed", gate)):
        strides = [0, 0, 0, 0] if tensor is None else _steps(tensor, range(4))
        arguments |= {f"{name}_{axis}": step for axis, step in zip("nchw", strides, strict=True)}
        align = math.gcd(align, strides[0], *strides[2:])
    arguments["OUT_ALIGN"] = align
    return arguments


def geometry_arguments(weight: Tensor, stride: Ints, padding: Ints) -> dict[str, Any]:
    return {
        "taps_h": weight.shape[2],
        "taps_w": weight.shape[3],
        "stride_h": stride[0],
        "stride_w": stride[1],
        "padding_h": padding[0],
        "padding_w": padding[1],
    }


def sum_arguments(x: Tensor, channels: int, tile: tiles.Tile) -> dict[str, Any]:
    """How the sum over taps and channels goes: steps that taps would leave partly empty run through them all."""
    return {
        "FLAT": 0 if channels % tile.k == 0 else channels,
        "PRECISION": dot_precision(x.dtype),
        "DOT": dot_type(x.dtype),
        "BLOCK_K": tile.k,
    }


# the weight's layout


def packed_up(weight: Tensor) -> Tensor:
    """`weight` with input channels side by side, copied where they are not: what `up` sums lies together.

    Of a contiguous 3 x 3 weight every value that a block reads lies in another 32-byte sector, 8 to 16 times the bytes
    for each of the many blocks. A copy costs the weight's size twice, once. It is one of PyTorch's own kernels.
    """
    if weight.stride(1) == 1 or weight.shape[1] == 1:
        return weight
    return weight.contiguous(memory_format=torch.channels_last)


def packed_down(weight: Tensor) -> Tensor:
    """`weight` with output channels side by side, what `down` sums, or with input channels where that serves as well.

    Matrix units take half precision with either side by side; tf32 only what is summed.
    """
    by_column = weight.stride(1) == 1 and dot_precision(weight.dtype) not in ("tf32", "tf32x3")
    if by_column or weight.stride(0) == 1 or weight.shape[0] == 1:
        return weight
    return weight.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
