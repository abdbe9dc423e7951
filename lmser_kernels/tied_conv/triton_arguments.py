"""What the drives' launches have in common: tiles, arguments of the kernels, the weight's layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu import tiles
from lmser_kernels.gpu.launch import arch_of, dot_precision, multiprocessors, nhwc
from lmser_kernels.gpu.tile_model import shared_limit, split
from lmser_kernels.tied_conv.triton_accumulate import UNROLLED

Ints = Sequence[int]
_WIDEST = 16  # bytes of one load
_LOADS = 32  # of a thread in one step
_VALUES = 64  # of a thread in one step, where they are calculated with
_FEW_PIXELS = 512


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

    @property
    def is_plain(self) -> bool:
        """Whether the operand is read as it lies."""
        return self.tensors == 0

    @property
    def tensors(self) -> int:
        """How many are read beside the operand."""
        pulls_back = self.h is not None and self.activation != "identity"
        return pulls_back + (self.gate is not None) + (self.plus is not None)


PLAIN = Source()
# Elements from an image's first that 32 bits count to, less what a tile may calculate beyond its last.
_FARTHEST = 2**31 - 2**20


def far(*arguments: Mapping[str, Any]) -> bool:
    """Whether an image of a tensor in a kernel's arguments reaches further than 32 bits count: then it counts in 64."""
    for given in arguments:
        for t in given.values():
            if not isinstance(t, Tensor) or t.dim() != 4:
                continue
            (_, channels, height, width), (_, by_channel, by_row, by_column) = t.shape, t.stride()
            reach = (channels - 1) * by_channel + (height - 1) * by_row + (width - 1) * by_column
            if reach >= _FARTHEST:
                return True
    return False


def largest_phase(images: int, size: Ints, weight: Tensor, stride: Ints) -> tuple[int, int]:
    """Pixels of the largest sub-pixel phase of an output of `size`, and taps of the one that has most."""
    rows, columns = triton.cdiv(size[0], stride[0]), triton.cdiv(size[1], stride[1])
    taps = triton.cdiv(weight.shape[2], stride[0]) * triton.cdiv(weight.shape[3], stride[1])
    return images * rows * columns, taps


def choose(
    kernel: str,
    pixels: int,
    columns: int,
    channels: int,
    taps: int,
    like: Tensor,
    align: int = 1,
    source: Source = PLAIN,
    pool: Ints = (1, 1),
    upsample: Ints = (1, 1),
) -> tiles.Tile:
    """The tile of a launch, whose operand's strides `align` divides, as far as a thread's registers hold it."""
    arch = arch_of(like)
    tile = tiles.choose(kernel, pixels, columns, channels * taps, like.dtype, dot_precision(like.dtype), arch)
    given, window = 1 + source.tensors, pool[0] * pool[1]
    together = given * (window if window <= UNROLLED.value else 1)  # loads for each value of the operand
    # Sums that have to share a thread's registers go to twice as many threads: before Hopper a step's operands are there
    # as well, so is what joins them where they stay for a loop, and float64's values take two.
    wide = like.dtype == torch.float64
    crowded = arch < 90 or upsample[0] * upsample[1] > 1 or (wide and together > 1)
    if crowded and tile.m * tile.n * (2 if wide else 1) >= 64 * 32 * tile.warps:
        tile = replace(tile, warps=8)
    if together > 1:
        # What is made of an operand while it is read passes through registers, widened,
        while tile.k > 32 and tile.m * tile.k * max(given, 2) > _VALUES * 32 * tile.warps:
            tile = replace(tile, k=tile.k // 2)
        # after it has waited in shared memory, which two blocks shall find room in.
        while _waiting(tile, together) * like.element_size() > shared_limit(arch) // 2 and tile.m > 16:
            if tile.stages > 2:
                tile = replace(tile, stages=tile.stages - 1)
            elif tile.k > 16:
                tile = replace(tile, k=tile.k // 2)
            else:
                tile = replace(tile, m=tile.m // 2)
    # Every load of a step waits in registers for its address, 64 bits each.
    while tile.m > 16 and tile.m * tile.k * together > align * _LOADS * 32 * tile.warps:
        tile = replace(tile, m=tile.m // 2)
    # A pipeline longer than the sum is code that does nothing.
    return replace(tile, stages=max(1, min(tile.stages, triton.cdiv(channels * taps, tile.k))))


def _waiting(tile: tiles.Tile, together: int) -> int:
    """Values of a block in shared memory, of an operand that takes so many loads for each value and of the weight."""
    return tile.k * ((tile.stages - 1) * tile.m * together + tile.stages * tile.n)


def parts_of_sum(blocks: int, channels: int, taps: int, tile: tiles.Tile, like: Tensor) -> int:
    """Pieces that the sum of a launch of `blocks` is cut into."""
    return split(blocks, triton.cdiv(channels * taps, tile.k), multiprocessors(like))


def _strides(tensor: Tensor, axes: Ints) -> list[int]:
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
        strides: Sequence[int | None] = (None, None, None)
        if tensor is not None:
            tensor = nhwc(tensor)
            own = _strides(tensor, (0, 2, 3))
            align = math.gcd(align, *own)
            # Tensors that lie alike, as most do, share the arithmetic of addresses.
            if name == "x" or own != [arguments[f"x_{axis}"] for axis in "nhw"]:
                strides = own
        arguments |= {name: tensor, f"{name}_n": strides[0], f"{name}_h": strides[1], f"{name}_w": strides[2]}
    arguments |= {
        "SOURCE_ACT": source.activation,
        "SOURCE_SLOPE": source.slope,
        "SOURCE_GATE_SLOPE": source.gate_slope,
    }
    return arguments, align


def weight_arguments(weight: Tensor, up: bool) -> dict[str, Any]:
    """Arguments `weight, w_k, w_n, w_h, w_w` and what divides them; `w_k` is the stride between summed channels."""
    axes = (1, 0, 2, 3) if up else (0, 1, 2, 3)
    w_k, w_n, w_h, w_w = _strides(weight, axes)
    n_cols = weight.shape[axes[1]]
    return {
        "weight": weight,
        "w_k": w_k,
        "w_n": w_n,
        "w_h": w_h,
        "w_w": w_w,
        "K_ALIGN": _alignment(weight, (w_k, w_h, w_w, n_cols)),
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
        strides: Sequence[int | None] = (None,) * 4
        if tensor is not None:
            own = _strides(tensor, range(4))
            align = math.gcd(align, own[0], *own[2:])
            if name == "out" or own != [arguments[f"out_{axis}"] for axis in "nchw"]:
                strides = own
        arguments |= {f"{name}_{axis}": step for axis, step in zip("nchw", strides, strict=True)}
    arguments["OUT_ALIGN"] = align
    return arguments


def partial_arguments(partial: Tensor) -> dict[str, Any]:
    """Arguments `partial, partial_part … partial_w` and what divides all strides but that between channels."""
    strides = _strides(partial, range(5))
    names = ("part", "n", "c", "h", "w")
    arguments: dict[str, Any] = {f"partial_{name}": step for name, step in zip(names, strides, strict=True)}
    align = _alignment(partial, (partial.shape[2], *strides[:2], *strides[3:]))
    return arguments | {"partial": partial, "PARTIAL_ALIGN": align}


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


def packed_down(weight: Tensor, pixels: int | None = None) -> Tensor:
    """`weight` with output channels side by side, what `down` sums, or with input channels where that serves as well.

    Matrix units take half precision with either side by side. Of tf32 they take what is summed; the other way each value
    is loaded by itself, which for a launch of few `pixels`, that reads the weight a few times only, costs less than a
    copy and its launch.
    """
    single = dot_precision(weight.dtype) in ("tf32", "tf32x3") and (pixels is None or pixels > _FEW_PIXELS)
    by_column = weight.stride(1) == 1 and not single
    if by_column or weight.stride(0) == 1 or weight.shape[0] == 1:
        return weight
    return weight.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
