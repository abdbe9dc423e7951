"""cuDNN's convolutions in the place of this library's kernels, where `triton_plan` predicts them to be faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmser_kernels.gpu.launch import dot_precision, nhwc, recording_now
from lmser_kernels.tied_conv.sizes import smallest_size
from lmser_kernels.tied_conv.triton_arguments import packed_up
from lmser_kernels.tied_conv.triton_plan import FUSED, Drive, Plan, plan

Ints = Sequence[int]

_MANY_OF_BOTH = 64  # channels of a weight gradient that fills a tile, whose sides are both channels


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
    # Of a 1 x 1 weight and an operand that is repeated along pixels, PyTorch may choose the other layout.
    return result.contiguous(memory_format=torch.channels_last)


def plan_weight_grad(big: Tensor, small: Tensor, taps: int, strided: bool, bare: bool) -> Plan:
    """What makes the weight gradient of one pair: as many products as its drive, and nothing follows."""
    c_in, c_out = big.shape[1], small.shape[1]
    if bare and min(c_in, c_out) < _MANY_OF_BOTH:
        return Plan(FUSED, f"fewer than {_MANY_OF_BOTH} channels", False)
    return plan(
        Drive(
            transposed=False,
            strided=strided,
            pixels=small.shape[0] * small.shape[2] * small.shape[3],
            columns=c_out,
            channels=c_in,
            depth=c_in * taps,
            sums=c_out * c_in * taps,
            read=big.numel() + small.numel(),
            joined=0,
            written=c_out * c_in * taps,
            dtype=big.dtype,
            precision=dot_precision(big.dtype),
            bare=bare,
            follows=False,
        )
    )


def weight_grad_of_convolution(
    big: Tensor, small: Tensor, kernel_size: Ints, stride: Ints, padding: Ints
) -> Tensor:
    """The weight gradient of `conv(big)` for the gradient `small` of its result, contiguous.

    Its bits are the same every time where PyTorch's switches ask cuDNN for that.
    """
    weight = big.new_empty((small.shape[1], big.shape[1], *kernel_size))  # read for its shape alone
    with torch.autocast(big.device.type, enabled=False):
        _, gradient, _ = torch.ops.aten.convolution_backward(
            nhwc(small), nhwc(big), weight, None, list(stride), list(padding), [1, 1], False, [0, 0], 1,
            [False, True, False],
        )  # fmt: skip
    contiguous: Tensor = gradient.contiguous()
    return contiguous
