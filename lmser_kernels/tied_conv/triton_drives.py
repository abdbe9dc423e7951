"""The two drives of a tied convolution, launched: what every Triton operator on it is made of.

    up    h = f(conv(pool(source)) + bias + add) · gate            convᵀ's data gradient, with a `Source`
    down  h = f(repeat(convᵀ(source)) + bias + add) · gate         conv's data gradient, with a `Source`

Both are adjoint to each other with the same weight, average pooling to `spread` repeating, sum pooling to plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu.launch import dot_precision, launch
from lmser_kernels.layout import empty_like_layout
from lmser_kernels.tied_conv.triton_arguments import (
    PLAIN,
    Source,
    choose,
    far,
    geometry_arguments,
    largest_phase,
    operand_arguments,
    packed_down,
    packed_up,
    partial_arguments,
    parts_of_sum,
    result_arguments,
    sum_arguments,
    weight_arguments,
)
from lmser_kernels.tied_conv.triton_down import conv_down
from lmser_kernels.tied_conv.triton_epilogue import sum_and_finish
from lmser_kernels.tied_conv.triton_library import convolution, plan_drive, runs_here
from lmser_kernels.tied_conv.triton_pair import conv_pair
from lmser_kernels.tied_conv.triton_plan import CUDNN
from lmser_kernels.tied_conv.triton_up import conv_up

__all__ = ["Source", "down", "packed_down", "packed_up", "pair", "up"]

Ints = Sequence[int]


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
    results = result_arguments(h, linear, add, gate, bias)
    epilogue = {"ACT": activation, "SLOPE": slope, "GATE_SLOPE": gate_slope}
    bare = tuple(pool) == (1, 1) and source.is_plain
    way = plan_drive(x, weight, h, results, epilogue, stride, size, bare, transposed=False)
    if way.kernel == CUDNN and runs_here(x):
        total = convolution(x, weight, stride, padding, None)
        if not way.follows:
            return total, None
        _finish(total.unsqueeze(0), h, results, epilogue, (1, 1), False)
        return h, linear
    operand, align = operand_arguments(x, source)
    pixels, taps = shape[0] * shape[2] * shape[3], weight.shape[2] * weight.shape[3]
    tile = choose("conv_up", pixels, shape[1], weight.shape[1], taps, x, align, source, pool)
    blocks = triton.cdiv(pixels, tile.m) * triton.cdiv(shape[1], tile.n)
    parts = parts_of_sum(blocks, weight.shape[1], taps, tile, x)
    partial = None if parts == 1 else _workspace(x, (parts, shape[0], shape[2], shape[3], shape[1]))
    launch(
        conv_up,
        (blocks, parts),
        num_warps=tile.warps,
        num_stages=tile.stages,
        plan=way,
        **operand,
        **weight_arguments(packed_up(weight), up=True),
        **results,
        **epilogue,
        partial=partial,
        images=shape[0],
        channels=weight.shape[1],
        height=x.shape[2] // pool[0],
        width=x.shape[3] // pool[1],
        n_cols=shape[1],
        out_height=shape[2],
        out_width=shape[3],
        **geometry_arguments(weight, stride, padding),
        PARTS=parts,
        POOL_H=pool[0],
        POOL_W=pool[1],
        MEAN=not sum_pool,
        ALIGN=align,
        **sum_arguments(x, weight.shape[1], tile),
        WIDE=pixels + tile.m >= 2**31 or far(operand, results),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
    )
    if partial is not None:
        _finish(partial.permute(0, 1, 4, 2, 3), h, results, epilogue, (1, 1), False)
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
    results = result_arguments(h, linear, add, gate, bias)
    epilogue = {"ACT": activation, "SLOPE": slope, "GATE_SLOPE": gate_slope}
    way = plan_drive(z, weight, h, results, epilogue, stride, size, source.is_plain, transposed=True)
    if way.kernel == CUDNN and runs_here(z):
        total = convolution(z, weight, stride, padding, size)
        if not way.follows:
            return total, None
        _finish(total.unsqueeze(0), h, results, epilogue, upsample, spread)
        return h, linear
    operand, align = operand_arguments(z, source)
    covering = (triton.cdiv(full[0], upsample[0]), triton.cdiv(full[1], upsample[1]))
    pixels, taps = largest_phase(z.shape[0], covering, weight, stride)
    phases = stride[0] * stride[1]
    tile = choose(
        "conv_down", pixels * phases, shape[1], weight.shape[0], taps, z, align, source, upsample=upsample
    )
    blocks = triton.cdiv(pixels, tile.m) * triton.cdiv(shape[1], tile.n)
    parts = parts_of_sum(blocks * phases, weight.shape[0], taps, tile, z)
    partial = None if parts == 1 else _workspace(z, (parts, shape[0], size[0], size[1], shape[1]))
    launch(
        conv_down,
        (blocks * phases, parts),
        num_warps=tile.warps,
        num_stages=tile.stages,
        plan=way,
        **{"z" + name[1:] if name.startswith("x") else name: value for name, value in operand.items()},
        **weight_arguments(packed_down(weight, pixels * phases), up=False),
        **results,
        **epilogue,
        partial=partial,
        tiles=blocks,
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
        PARTS=parts,
        UP_H=upsample[0],
        UP_W=upsample[1],
        SPREAD=spread,
        ALIGN=align,
        **sum_arguments(z, weight.shape[0], tile),
        WIDE=pixels + tile.m >= 2**31 or far(operand, results),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
    )
    if partial is not None:
        _finish(partial.permute(0, 1, 4, 2, 3), h, results, epilogue, upsample, spread)
    return h, linear


def pair(x: Tensor, z: Tensor, weight: Tensor, *, stride: Ints, padding: Ints) -> tuple[Tensor, Tensor]:
    """`(conv(x), convᵀ(z) sized like x)` in one launch; both lie like `x`."""
    images, c_in, height, width = x.shape
    c_out, size = weight.shape[0], z.shape[2:]
    (read_x, align_x), (read_z, align_z) = operand_arguments(x), operand_arguments(z)
    y, u = empty_like_layout(x, z.shape), empty_like_layout(x, x.shape)
    up_pixels = images * size[0] * size[1]
    up_tile = choose("conv_pair", up_pixels, c_out, c_in, weight.shape[2] * weight.shape[3], x, align_x)
    down_pixels, down_taps = largest_phase(images, (height, width), weight, stride)
    down_tile = choose("conv_pair", down_pixels * stride[0] * stride[1], c_in, c_out, down_taps, x, align_z)
    # A block has the warps of one of the two, of that with more sums.
    leading = up_tile if up_tile.m * up_tile.n >= down_tile.m * down_tile.n else down_tile
    up_tiles = triton.cdiv(up_pixels, up_tile.m) * triton.cdiv(c_out, up_tile.n)
    down_tiles = triton.cdiv(down_pixels, down_tile.m) * triton.cdiv(c_in, down_tile.n)
    weight_up = packed_up(weight)  # may serve both
    arguments: dict[str, Any] = {}
    for way, operand, read, align, out, tile, pixels, letters in (
        ("up", x, read_x, align_x, y, up_tile, up_pixels, "xy"),
        ("down", z, read_z, align_z, u, down_tile, down_pixels, "zu"),
    ):
        written = result_arguments(out, None, None, None, None)
        lies = weight_arguments(
            weight_up if way == "up" else packed_down(weight_up, down_pixels * stride[0] * stride[1]),
            way == "up",
        )
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
                "WIDE": pixels + tile.m >= 2**31 or far({"x": read["x"], "out": out}),
                "BLOCK_M": tile.m,
                "BLOCK_N": tile.n,
                "BLOCK_K": tile.k,
            }.items()
        }
    launch(
        conv_pair,
        (up_tiles + down_tiles * stride[0] * stride[1],),
        num_warps=leading.warps,
        num_stages=max(up_tile.stages, down_tile.stages),
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
    )
    return y, u


def _results(like: Tensor, shape: Ints, drive: bool) -> tuple[Tensor, Tensor | None]:
    return empty_like_layout(like, shape), empty_like_layout(like, shape) if drive else None


def _workspace(like: Tensor, shape: Ints) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)


def _finish(
    partial: Tensor,
    out: Tensor,
    results: dict[str, Any],
    epilogue: dict[str, Any],
    upsample: Ints,
    spread: bool,
) -> None:
    """The epilogue of the sum over the first axis of `partial (parts, N, C, H, W)`, into what `results` names."""
    rows, columns = triton.cdiv(out.shape[2], upsample[0]), triton.cdiv(out.shape[3], upsample[1])
    pixels, channels = out.shape[0] * rows * columns, out.shape[1]
    block_n = min(64, max(8, triton.next_power_of_2(channels)))
    block_m = 1024 // block_n
    launch(
        sum_and_finish,
        (triton.cdiv(pixels, block_m) * triton.cdiv(channels, block_n),),
        num_warps=4,
        num_stages=1,
        **partial_arguments(partial),
        **results,
        **epilogue,
        pixels=pixels,
        rows=rows,
        columns=columns,
        n_cols=channels,
        inner_height=partial.shape[3],
        inner_width=partial.shape[4],
        height=out.shape[2],
        width=out.shape[3],
        PARTS=partial.shape[0],
        UP_H=upsample[0],
        UP_W=upsample[1],
        SPREAD=spread,
        WIDE=far({"sum": partial[0]}, results),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
    )
