"""The backward passes of the tied convolution in Triton, by the operators' own schemas; formulas in `ops`.

Both directions read `glin = grad · f'(h) [· gate] + grad_drive`. Where the gradient of `add` or of the bias is asked
for, or two readers wait, one pass over memory makes it and the others read that; a single reader makes it for itself
while it reads. Pools and upsampling are passes of their own, which write less than they read (`triton_windows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmser_kernels.gpu.launch import nhwc
from lmser_kernels.gpu.pull_back import pull_back
from lmser_kernels.layout import empty_like_layout
from lmser_kernels.tied_conv.triton_drives import PLAIN, Source, down, up
from lmser_kernels.tied_conv.triton_weight_grad import weight_grad
from lmser_kernels.tied_conv.triton_windows import sum_windows

Ints = Sequence[int]
Maybe = Tensor | None
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def conv2d_add_act_backward(
    grad: Maybe,
    grad_drive: Maybe,
    h: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    pool: Ints,
    activation: str,
    slope: float,
    needs: Sequence[bool],
) -> Four:
    """`(convᵀ(glin) spread over the pool's windows, gW, pre, Σ pre)`."""
    flow = _incoming(grad, grad_drive, h, None, 0.0, activation, slope, needs)
    gx = gweight = x.new_empty(0)
    if needs[0]:
        size = (x.shape[2] // pool[0], x.shape[3] // pool[1])
        gx, _ = down(
            flow.base, weight, stride=stride, padding=padding, size=size, upsample=pool, spread=True,
            output_size=x.shape[2:], source=flow.source, like=x,
        )  # fmt: skip
    if needs[1]:
        gweight = weight_grad(
            sum_windows(x, pool, mean=True), flow.base, kernel_size=weight.shape[2:], stride=stride,
            padding=padding, small_source=flow.source,
        )  # fmt: skip
    return gx, gweight, flow.add, flow.bias


def conv_transpose2d_add_act_backward(
    grad: Maybe,
    grad_drive: Maybe,
    h: Tensor,
    z: Tensor,
    weight: Tensor,
    gate: Maybe,
    stride: Ints,
    padding: Ints,
    upsample: Ints,
    activation: str,
    slope: float,
    needs: Sequence[bool],
    gate_slope: float,
    input_gate: Maybe,
    input_slope: float,
    spread: bool,
) -> Four:
    """`(conv(glin summed over the copies) · input_gate, gW, pre, Σ pre)`."""
    flow = _incoming(grad, grad_drive, h, gate, gate_slope, activation, slope, needs, upsample, spread)
    gz = gweight = z.new_empty(0)
    if needs[0]:
        gz, _ = up(
            flow.base, weight, stride=stride, padding=padding, size=z.shape[2:], source=flow.source,
            gate=input_gate, gate_slope=input_slope, like=z,
        )  # fmt: skip
    if needs[1]:
        gweight = weight_grad(
            flow.base, z, kernel_size=weight.shape[2:], stride=stride, padding=padding,
            big_source=flow.source,
            small_source=PLAIN if input_gate is None else Source(gate=input_gate, gate_slope=input_slope),
        )  # fmt: skip
    return gz, gweight, flow.add, flow.bias


def tied_conv2d_weight_grad(
    x: Tensor, grad_y: Tensor, grad_u: Maybe, z: Maybe, kernel_size: Ints, stride: Ints, padding: Ints
) -> Tensor:
    """The gradient of one weight from `(x, grad_y)` upwards and, where given, from `(grad_u, z)` downwards."""
    if (grad_u is None) != (z is None):
        raise ValueError("grad_u and z must be given together; got one of them")
    second = None if grad_u is None or z is None else (grad_u, z)
    return weight_grad(x, grad_y, kernel_size=kernel_size, stride=stride, padding=padding, second=second)


@dataclass(frozen=True)
class _Incoming:
    """What flows into the linear part, as an operand and its source, and what flows into `add` and the bias."""

    base: Tensor
    source: Source
    add: Tensor
    bias: Tensor


def _incoming(
    grad: Maybe,
    grad_drive: Maybe,
    h: Tensor,
    gate: Maybe,
    gate_slope: float,
    activation: str,
    slope: float,
    needs: Sequence[bool],
    window: Ints = (1, 1),
    mean: bool = False,
) -> _Incoming:
    """`base` and `source` are summed over `window`, with `mean` averaged; `add` and `bias` are not."""
    readers = int(needs[0]) + int(needs[1])
    add = empty_like_layout(h, h.shape) if needs[2] else h.new_empty(0)
    bias = h.new_empty(h.shape[1] if needs[3] else 0)
    windows = window[0] * window[1] > 1
    if grad is None:
        if grad_drive is None:
            raise ValueError("grad or grad_drive must be given; got neither")
        base, source = grad_drive, PLAIN
        add.zero_()
        bias.zero_()
    elif activation == "identity" and gate is None and grad_drive is None:
        base, source = grad, PLAIN
        if needs[2] or needs[3]:
            pull_back(
                grad, h, activation, slope, pre=add if needs[2] else None, bias=bias if needs[3] else None
            )
    else:
        base, source = grad, Source(h, activation, slope, gate, gate_slope, grad_drive)
        # Windows are one reader, which writes what the others read.
        if needs[2] or needs[3] or (readers == 2 and not windows):
            pre = total = None
            if readers and not windows and grad_drive is not None:
                total = _scratch(h)
                base, source = total, PLAIN
            if needs[2] or (readers and total is None and (activation != "identity" or gate is not None)):
                pre = add if needs[2] else _scratch(h)
            if pre is not None and total is None:
                base, source = pre, PLAIN if grad_drive is None else Source(plus=grad_drive)
            pull_back(
                grad, h, activation, slope, gate=gate, gate_slope=gate_slope,
                plus=None if total is None else grad_drive, pre=pre, total=total, bias=bias if needs[3] else None,
            )  # fmt: skip
    if windows and readers:
        base, source = sum_windows(base, window, mean=mean, source=source), PLAIN
    # Two readers would each copy another layout.
    return _Incoming(nhwc(base) if readers == 2 else base, source, add, bias)


def _scratch(like: Tensor) -> Tensor:
    """A tensor of the shape of `like` that only kernels read."""
    return torch.empty_like(like, memory_format=torch.channels_last)
