"""The gradient of a tied weight, of both directions in one sum, in Triton.

    gW[o, tap, i] = Σ_pixel small[pixel, o] · big[pixel · stride - padding + tap, i]

`small` is on the side of the convolution's output, `big` on that of its input; whichever of them is a gradient may be
made while it is read (`Source`). The convolution's own gradient is the sum for (its input, its
output's gradient), that of its transpose for (its output's gradient, its input): a second pair continues the sum.

An implicit matrix product whose sum runs over pixels, which are many, to a result that is small: the pixels are split
over programs, whose sums another kernel adds in a fixed order.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmser_kernels.gpu import tiles
from lmser_kernels.gpu.launch import arch_of, dot_precision, launch, multiprocessors
from lmser_kernels.gpu.reduce import reduce
from lmser_kernels.gpu.tile_model import shared_limit
from lmser_kernels.tied_conv.triton_accumulate import aligned, operand_tile, zeros
from lmser_kernels.tied_conv.triton_arguments import far
from lmser_kernels.tied_conv.triton_drives import PLAIN, Source, operand_arguments
from lmser_kernels.tied_conv.triton_library import plan_weight_grad, runs_here, weight_grad_of_convolution
from lmser_kernels.tied_conv.triton_plan import CUDNN
from lmser_kernels.tied_conv.triton_up import pixel_of

Ints = Sequence[int]

_BLOCKS = 2  # of a multiprocessor, to fill it
_LEAST_STEPS = 4  # of a program's sum: fewer, and what it writes and another reads costs more than the sum


@triton.jit
def accumulate_pixels(
    acc,  # (BLOCK_M, BLOCK_N)
    s, s_n, s_h, s_w, s_out, s_out_n, s_out_h, s_out_w, s_gate, s_gate_n, s_gate_h, s_gate_w,
    s_plus, s_plus_n, s_plus_h, s_plus_w,
    b, b_n, b_h, b_w, b_out, b_out_n, b_out_h, b_out_w, b_gate, b_gate_n, b_gate_h, b_gate_w,
    b_plus, b_plus_n, b_plus_h, b_plus_w,
    first, last,  # of the pixels
    rows, n_rows, channel, tap_h, tap_w, in_cols,  # the small side's channels, and the big one's, under their tap
    small_height, small_width, height, width,  # of the big side
    stride_h, stride_w, padding_h, padding_w,
    S_ACT: tl.constexpr, S_SLOPE: tl.constexpr, S_GATE_SLOPE: tl.constexpr, S_ALIGN: tl.constexpr,
    B_ACT: tl.constexpr, B_SLOPE: tl.constexpr, B_GATE_SLOPE: tl.constexpr, B_ALIGN: tl.constexpr,
    FLAT: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc` plus the sum over pixels `[first, last)` of one pair; see `operand_tile` for the sources."""
    in_rows = rows < aligned(n_rows, S_ALIGN)
    for start in range(first, last, BLOCK_K):
        index = tl.cast(start, first.dtype) + tl.arange(0, BLOCK_K)
        image, row, column = pixel_of(index, small_height, small_width)
        there = index < last
        r = (row * stride_h - padding_h)[:, None] + tap_h
        c = (column * stride_w - padding_w)[:, None] + tap_w
        inside = there[:, None] & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        # Of one tap alone what meets its padding is not read, were it infinite.
        met = there[:, None] if FLAT > 0 else inside
        small = operand_tile(
            s, s_n, s_h, s_w, s_out, s_out_n, s_out_h, s_out_w, s_gate, s_gate_n, s_gate_h, s_gate_w,
            s_plus, s_plus_n, s_plus_h, s_plus_w,
            image[:, None], row[:, None], column[:, None], rows[None, :], met & in_rows[None, :],
            1, 1, False, S_ACT, S_SLOPE, S_GATE_SLOPE, S_ALIGN,
        )  # fmt: skip
        big = operand_tile(
            b, b_n, b_h, b_w, b_out, b_out_n, b_out_h, b_out_w, b_gate, b_gate_n, b_gate_h, b_gate_w,
            b_plus, b_plus_n, b_plus_h, b_plus_w,
            image[:, None], r, c, channel, inside & in_cols,
            1, 1, False, B_ACT, B_SLOPE, B_GATE_SLOPE, B_ALIGN,
        )  # fmt: skip
        acc = tl.dot(tl.trans(small), big, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def weight_grad_parts(
    s, s_n, s_h, s_w, s_out, s_out_n, s_out_h, s_out_w, s_gate, s_gate_n, s_gate_h, s_gate_w,
    s_plus, s_plus_n, s_plus_h, s_plus_w,
    b, b_n, b_h, b_w, b_out, b_out_n, b_out_h, b_out_w, b_gate, b_gate_n, b_gate_h, b_gate_w,
    b_plus, b_plus_n, b_plus_h, b_plus_w,
    t, t_n, t_h, t_w, d, d_n, d_h, d_w,  # the second pair's small and big side, or None
    partial,  # (splits, n_rows, taps, channels), or the gradient itself where one split has the WHOLE sum
    pixels, steps, splits, n_rows, channels, taps_h, taps_w,
    small_height, small_width, height, width, stride_h, stride_w, padding_h, padding_w,
    S_ACT: tl.constexpr, S_SLOPE: tl.constexpr, S_GATE_SLOPE: tl.constexpr, S_ALIGN: tl.constexpr,
    B_ACT: tl.constexpr, B_SLOPE: tl.constexpr, B_GATE_SLOPE: tl.constexpr, B_ALIGN: tl.constexpr,
    T_ALIGN: tl.constexpr, D_ALIGN: tl.constexpr,
    FLAT: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of one split's sum. Tiles of a split are neighbours: they read the same pixels."""
    taps = taps_h * taps_w
    tiles_m = tl.cdiv(n_rows, BLOCK_M)
    if FLAT > 0:
        tiles_n = tl.cdiv(taps * FLAT, BLOCK_N)
    else:
        blocks = tl.cdiv(channels, BLOCK_N)
        tiles_n = taps * blocks
    pid = tl.program_id(0)
    split = pid // (tiles_m * tiles_n)
    tile = pid % (tiles_m * tiles_n)
    rows = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    if FLAT > 0:
        column = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        tap = column // FLAT
        channel = column % FLAT
        tap_h = (tap // taps_w)[None, :]
        tap_w = (tap % taps_w)[None, :]
        in_cols = tap < taps
    else:
        tap = tile % tiles_n // blocks
        channel = tile % tiles_n % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        column = tap * channels + channel
        tap_h = tap // taps_w
        tap_w = tap % taps_w
        in_cols = channel < aligned(channels, B_ALIGN)
    split = split.to(tl.int64)
    first = steps * split // splits * BLOCK_K
    last = tl.minimum(steps * (split + 1) // splits * BLOCK_K, pixels)
    if not WIDE:
        first = first.to(tl.int32)
        last = last.to(tl.int32)
    acc = accumulate_pixels(
        zeros(s, BLOCK_M, BLOCK_N),
        s, s_n, s_h, s_w, s_out, s_out_n, s_out_h, s_out_w, s_gate, s_gate_n, s_gate_h, s_gate_w,
        s_plus, s_plus_n, s_plus_h, s_plus_w,
        b, b_n, b_h, b_w, b_out, b_out_n, b_out_h, b_out_w, b_gate, b_gate_n, b_gate_h, b_gate_w,
        b_plus, b_plus_n, b_plus_h, b_plus_w,
        first, last, rows, n_rows, channel[None, :], tap_h, tap_w, in_cols[None, :],
        small_height, small_width, height, width, stride_h, stride_w, padding_h, padding_w,
        S_ACT, S_SLOPE, S_GATE_SLOPE, S_ALIGN, B_ACT, B_SLOPE, B_GATE_SLOPE, B_ALIGN,
        FLAT, BLOCK_K, PRECISION,
    )  # fmt: skip
    if t is not None:
        acc = accumulate_pixels(
            acc,
            t, t_n, t_h, t_w, None, 0, 0, 0, None, 0, 0, 0, None, 0, 0, 0,
            d, d_n, d_h, d_w, None, 0, 0, 0, None, 0, 0, 0, None, 0, 0, 0,
            first, last, rows, n_rows, channel[None, :], tap_h, tap_w, in_cols[None, :],
            small_height, small_width, height, width, stride_h, stride_w, padding_h, padding_w,
            "identity", 0.0, 0.0, T_ALIGN, "identity", 0.0, 0.0, D_ALIGN,
            FLAT, BLOCK_K, PRECISION,
        )  # fmt: skip
    if WHOLE:
        at = (rows[:, None] * channels + channel[None, :]) * taps + (column - channel)[None, :] // channels
    else:
        at = (split * n_rows + rows)[:, None] * (taps * channels) + column[None, :]
    mask = (rows < n_rows)[:, None] & in_cols[None, :]
    tl.store(partial + at, acc.to(partial.dtype.element_ty), mask=mask)


def weight_grad(
    big: Tensor,
    small: Tensor,
    *,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    big_source: Source = PLAIN,
    small_source: Source = PLAIN,
    second: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`gW (C_out, C_in, kh, kw)` for the convolution of `big (N, C_in, H, W)`, to the size of
    `small (N, C_out, H', W')`. `second` is another `(big, small)`."""
    taps = kernel_size[0] * kernel_size[1]
    way = None
    if second is None:
        bare = big_source.is_plain and small_source.is_plain
        way = plan_weight_grad(big, small, taps, max(stride) > 1, bare)
        if way.kernel == CUDNN and small.numel() and runs_here(big):
            return weight_grad_of_convolution(big, small, kernel_size, stride, padding)
    images, c_out, small_height, small_width = small.shape
    c_in = big.shape[1]
    gradient = big.new_empty((c_out, c_in, *kernel_size))
    pixels = images * small_height * small_width
    tile, flat = _tile(big, c_out, c_in, taps, pixels, big_source, small_source, second is not None)
    steps = triton.cdiv(pixels, tile.k)
    tiles_m = triton.cdiv(c_out, tile.m)
    tiles_n = triton.cdiv(taps * c_in, tile.n) if flat else taps * triton.cdiv(c_in, tile.n)
    fill = _BLOCKS * multiprocessors(big) // (tiles_m * tiles_n)
    splits = max(1, min(fill, steps // _LEAST_STEPS))
    wide = torch.float64 if big.dtype == torch.float64 else torch.float32
    whole = splits == 1
    partial = gradient if whole else big.new_empty((splits, gradient.numel()), dtype=wide)
    arguments, s_align = _operand("s", small, small_source)
    of_big, b_align = _operand("b", big, big_source)
    of_second, t_align, d_align = _second(second)
    launch(
        weight_grad_parts,
        (splits * tiles_m * tiles_n,),
        num_warps=tile.warps,
        num_stages=tile.stages,
        plan=way,
        **arguments,
        **of_big,
        **of_second,
        partial=partial,
        pixels=pixels,
        steps=steps,
        splits=splits,
        n_rows=c_out,
        channels=c_in,
        taps_h=kernel_size[0],
        taps_w=kernel_size[1],
        small_height=small_height,
        small_width=small_width,
        height=big.shape[2],
        width=big.shape[3],
        stride_h=stride[0],
        stride_w=stride[1],
        padding_h=padding[0],
        padding_w=padding[1],
        S_ALIGN=s_align,
        B_ALIGN=b_align,
        T_ALIGN=t_align,
        D_ALIGN=d_align,
        FLAT=flat,
        WIDE=pixels + tile.k >= 2**31 or far(arguments, of_big, of_second),
        WHOLE=whole,
        PRECISION=dot_precision(big.dtype),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
    )
    if not whole:
        reduce(partial, gradient, taps=taps, inner=c_in)
    return gradient


def _tile(
    big: Tensor,
    c_out: int,
    c_in: int,
    taps: int,
    pixels: int,
    big_source: Source,
    small_source: Source,
    twice: bool,
) -> tuple[tiles.Tile, int]:
    """The tile, and the number of channels where taps and channels are counted through, else 0: a tile of one tap."""
    precision, arch = dot_precision(big.dtype), arch_of(big)
    tile = tiles.choose("weight_grad", c_out, taps * c_in, pixels, big.dtype, precision, arch)
    # What passes through registers on its way to the matrix unit, or is addressed value by value, leaves none for more.
    if arch // 10 != 9 or twice or big_source.tensors or small_source.tensors:
        tile = replace(tile, n=min(tile.n, 64))
    # Columns of one tap have one pixel a row: one mask value and one address. Whole taps are worth a narrower tile.
    within = tile.n
    while within > 32 and c_in % within != 0:
        within //= 2
    flat = 0 if c_in % within == 0 and within >= min(32, tile.n) else c_in
    if not flat:
        tile = replace(tile, n=within)
    else:
        # Values of two bytes one by one are not copied asynchronously, and more stages than three are registers only.
        deep = 16 if big_source.tensors else 32
        tile = replace(tile, n=min(tile.n, 64), k=min(tile.k, deep), stages=min(tile.stages, 3))
    # All tensors of a step wait in shared memory, which two blocks shall find room in.
    row = tile.m * (1 + small_source.tensors) + tile.n * (1 + big_source.tensors)
    while tile.stages * tile.k * row * big.element_size() > shared_limit(arch) // 2:
        if tile.stages > 2:
            tile = replace(tile, stages=tile.stages - 1)
        elif tile.k > 16:
            tile = replace(tile, k=tile.k // 2)
        else:
            break
    return tile, flat


def _operand(letter: str, tensor: Tensor, source: Source) -> tuple[dict[str, Any], int]:
    """`operand_arguments` by the names of this kernel: `s…` and `S_…` for `s`."""
    arguments, align = operand_arguments(tensor, source)
    named: dict[str, Any] = {}
    for name, value in arguments.items():
        if name.startswith("SOURCE_"):
            named[f"{letter.upper()}_{name.removeprefix('SOURCE_')}"] = value
        elif name == "x" or name.startswith("x_"):
            named[letter + name[1:]] = value
        elif name == "h" or name.startswith("h_"):
            named[f"{letter}_out{name[1:]}"] = value
        else:
            named[f"{letter}_{name}"] = value
    return named, align


def _second(pair: tuple[Tensor, Tensor] | None) -> tuple[dict[str, Any], int, int]:
    """The second pair's arguments, and what divides its strides."""
    names = [f"{letter}{axis}" for letter in "td" for axis in ("", "_n", "_h", "_w")]
    if pair is None:
        return {name: 0 if "_" in name else None for name in names}, 1, 1
    big, small = pair
    (of_small, t_align), (of_big, d_align) = _operand("t", small, PLAIN), _operand("d", big, PLAIN)
    arguments = of_small | of_big
    return {name: arguments[name] for name in names}, t_align, d_align
