"""Sizes and layouts of the compiled tied convolution's results, for tensors without memory.

Importing this module needs the compiled library.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lmser_kernels.dispatch import fake
from lmser_kernels.layout import empty_like_layout, telling

Ints = Sequence[int]
Maybe = Tensor | None


@fake("conv2d_add_act")
def _(
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
    size = (
        x.shape[0],
        weight.shape[0],
        (x.shape[2] // pool[0] + 2 * padding[0] - weight.shape[2]) // stride[0] + 1,
        (x.shape[3] // pool[1] + 2 * padding[1] - weight.shape[3]) // stride[1] + 1,
    )
    like = telling(x, add)
    return empty_like_layout(like, size), empty_like_layout(like, size) if drive else x.new_empty(0)


@fake("conv_transpose2d_add_act")
def _(
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
    size = (z.shape[0], weight.shape[1], output_size[0] * upsample[0], output_size[1] * upsample[1])
    like = telling(z, add, gate)
    return empty_like_layout(like, size), empty_like_layout(like, size) if drive else z.new_empty(0)


def _fake_backward(h: Tensor, source: Tensor, weight: Tensor, needs: Sequence[bool]) -> tuple[Tensor, ...]:
    return (
        empty_like_layout(source, source.shape) if needs[0] else source.new_empty(0),
        weight.new_empty(weight.shape) if needs[1] else source.new_empty(0),
        empty_like_layout(h, h.shape) if needs[2] else source.new_empty(0),
        h.new_empty(h.shape[1]) if needs[3] else source.new_empty(0),
    )


@fake("conv2d_add_act_backward")
def _(
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
) -> tuple[Tensor, ...]:
    return _fake_backward(h, x, weight, needs)


@fake("conv_transpose2d_add_act_backward")
def _(
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
) -> tuple[Tensor, ...]:
    return _fake_backward(h, z, weight, needs)


@fake("tied_conv2d")
def _(x: Tensor, z: Tensor, weight: Tensor, stride: Ints, padding: Ints) -> tuple[Tensor, Tensor]:
    return empty_like_layout(x, z.shape), empty_like_layout(x, x.shape)


@fake("tied_conv2d_weight_grad")
def _(
    x: Tensor, grad_y: Tensor, grad_u: Maybe, z: Maybe, kernel_size: Ints, stride: Ints, padding: Ints
) -> Tensor:
    return x.new_empty((grad_y.shape[1], x.shape[1], kernel_size[0], kernel_size[1]))
