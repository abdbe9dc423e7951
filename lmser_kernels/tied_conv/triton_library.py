"""cuDNN's convolutions in the place of a drive's own kernel, where `triton_plan` predicts them to be faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmser_kernels.gpu.launch import dot_precision, nhwc, recording_now
from lmser_kernels.tied_conv.sizes import smallest_size
from lmser_kernels.tied_conv.triton_arguments import packed_up
from lmser_kernels.tied_conv.triton_plan import Drive, Plan, plan

Ints = Sequence[int]


def runs_here(tensor: Tensor) -> bool:
    """Whether cuDNN could take this tensor: not in the interpreter, and not where launches are written down."""
    return tensor.is_cuda and not recording_now() and torch.backends.cudnn.enabled


def plan_drive(
    operand: Tensor,
    weight: Tensor,
    result: Tensor,
    results: Mapping[str, Any],
    epilogue: Mapping[str, Any],
    stride: Ints,
    size: Ints,
    bare: bool,
    transposed: bool,
) -> Plan:
    """What makes this drive, whose sum has `size` pixels."""
    c_out, c_in = weight.shape[:2]
    taps = weight.shape[2] * weight.shape[3]
    # A transposed convolution makes as many products as the convolution that it is the adjoint of.
    small = operand if transposed else result
    pixels = small.shape[0] * small.shape[2] * small.shape[3]
    columns, depth = (c_in, c_out * taps) if transposed else (c_out, c_in * taps)
    joined = [results[name] for name in ("add", "closed", "bias", "drive") if results[name] is not None]
    return plan(
        Drive(
            transposed=transposed,
            strided=max(stride) > 1,
            pixels=pixels,
            columns=columns,
            channels=operand.shape[1],
            depth=depth,
            sums=result.shape[0] * columns * size[0] * size[1],
            read=operand.numel() + weight.numel(),
            joined=sum(tensor.numel() for tensor in joined),
            written=result.numel(),
            dtype=operand.dtype,
            precision=dot_precision(operand.dtype),
            bare=bare,
            follows=bool(joined) or epilogue["ACT"] != "identity" or not _alike(result, size),
        )
    )


def _alike(result: Tensor, size: Ints) -> bool:
    """Whether the result lies as cuDNN's does."""
    return tuple(result.shape[2:]) == tuple(size) and result.is_contiguous(memory_format=torch.channels_last)


def convolution(
    operand: Tensor, weight: Tensor, stride: Ints, padding: Ints, output_size: Ints | None
) -> Tensor:
    """`conv(operand)`, or with an `output_size` `convᵀ(operand)` of that size, channels-last.

    Under autocast the operands have been cast already.
    """
    output_padding = [0, 0]
    if output_size is not None:
        smallest = smallest_size(operand, weight, (stride[0], stride[1]), (padding[0], padding[1]))
        output_padding = [output_size[0] - smallest[0], output_size[1] - smallest[1]]
    with torch.autocast(operand.device.type, enabled=False):
        result: Tensor = torch.ops.aten.convolution(
            nhwc(operand), packed_up(weight), None, list(stride), list(padding), [1, 1], output_size is not None,
            output_padding, 1,
        )  # fmt: skip
    return result
