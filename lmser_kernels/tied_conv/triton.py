"""The tied convolution's operators as Triton launches, by the names and parameters of their schemas."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lmser_kernels.layout import telling
from lmser_kernels.tied_conv.triton_drives import Source, down, pair, up

Ints = Sequence[int]
Maybe = Tensor | None


def conv2d_add_act(
    x: Tensor,
    weight: Tensor,
    add: Maybe,
    bias: Maybe,
    stride: Ints,
    padding: Ints,
    pool: Ints,
    activation: str,
    slope: float,
    drive: bool,
) -> tuple[Tensor, Tensor]:
    size = tuple(
        (x.shape[2 + axis] // pool[axis] + 2 * padding[axis] - weight.shape[2 + axis]) // stride[axis] + 1
        for axis in (0, 1)
    )
    h, linear = up(
        x, weight, stride=stride, padding=padding, size=size, pool=pool, add=add, bias=bias,
        activation=activation, slope=slope, like=telling(x, add), drive=drive,
    )  # fmt: skip
    return h, x.new_empty(0) if linear is None else linear


def conv_transpose2d_add_act(
    z: Tensor,
    weight: Tensor,
    add: Maybe,
    bias: Maybe,
    gate: Maybe,
    stride: Ints,
    padding: Ints,
    output_size: Ints,
    upsample: Ints,
    activation: str,
    slope: float,
    drive: bool,
    gate_slope: float,
    input_gate: Maybe,
    input_slope: float,
    spread: bool,
) -> tuple[Tensor, Tensor]:
    h, linear = down(
        z, weight, stride=stride, padding=padding, size=output_size, upsample=upsample, spread=spread,
        source=Source(gate=input_gate, gate_slope=input_slope), add=add, bias=bias, gate=gate,
        gate_slope=gate_slope, activation=activation, slope=slope, like=telling(z, add, gate), drive=drive,
    )  # fmt: skip
    return h, z.new_empty(0) if linear is None else linear


def tied_conv2d(x: Tensor, z: Tensor, weight: Tensor, stride: Ints, padding: Ints) -> tuple[Tensor, Tensor]:
    return pair(x, z, weight, stride=stride, padding=padding)
