"""The tied convolution's public operations: checks, then the implementation asked for."""

from __future__ import annotations

import math
from typing import Literal, cast, overload

from torch import Tensor

from lmser_kernels import _library
from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, operands, pair, per_channel, same_shape
from lmser_kernels.dispatch import at_once, chosen
from lmser_kernels.tied_conv import reference
from lmser_kernels.tied_conv.sizes import conv_size, conv_transpose_size

if _library.available:
    from lmser_kernels.tied_conv import ops as ops  # registers the operators

_CONV_NAMES = ("x", "weight", "add", "bias")
_TRANSPOSE_NAMES = ("z", "weight", "add", "bias", "gate", "input_gate")
# Activations whose derivative is still told by the sign of an output scaled by a positive factor.
_SIGN_TELLS = ("identity", "relu", "leaky_relu")
_TIED_NAMES = ("x", "z", "weight")
_Conv = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
_Transpose = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@overload
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
    return_drive: Literal[False] = False,
    impl: str = "auto",
) -> Tensor: ...
@overload
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
    return_drive: Literal[True],
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...
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
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`h = f(conv(avg_pool(x)) + bias + add)`: the bottom-up neuron update, in one pass.

    Equal to `f(F.conv2d(F.avg_pool2d(x, pool), weight, bias, stride, padding) + add)`.

    Args:
        x: `(N, C_in, H, W)`, float32, float64, bfloat16 or float16, any strides.
        weight: `(C_out, C_in, kh, kw)`.
        add: of exactly the output's shape (usually the top-down drive), or None.
        bias: `(C_out,)`, or None.
        stride, padding, pool: an int or a pair (vertical, horizontal); `pool` is the average pool before.
        activation: one of identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid.
        slope: the leak of leaky_relu (default 0.01) and leaky_sigmoid (default 0.2); None for the others.
        return_drive: True returns `(h, drive)` with `drive = conv(avg_pool(x))`, before bias, add and `f`.
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    Returns:
        `h (N, C_out, H', W')`, `H' = floor((floor(H / pool) + 2 padding - kh) / stride) + 1`, of `x`'s
        dtype; the compiled kernel keeps `x`'s memory format, that of `add` where `x` is one pixel or
        one plainly contiguous channel.

    Differentiable to any order; saves its inputs and `h` for backward. Sums accumulate in float32 (float64
    for float64). Under autocast the arguments are cast first, as `F.conv2d`'s are.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.

    Source: "Deep CNN Based Lmser and Strengths of Two Built-In Dualities", Eqs. (3) and (4).
    """
    leak = activations.check(activation, slope)
    stride, padding, pool = pair("stride", stride, 1), pair("padding", padding, 0), pair("pool", pool, 1)
    both = at_once(
        "conv2d_add_act", impl, x, weight, add, bias, stride, padding, pool, activation, leak, return_drive
    )
    if both is not None:
        return both if return_drive else both[0]
    x, weight, add, bias = cast(_Conv, operands(_CONV_NAMES, (x, weight, add, bias), 2))
    height, width = conv_size(x, weight, stride, padding, pool)
    if add is not None:
        same_shape("add", add, (x.shape[0], weight.shape[0], height, width), "the output's shape")
    if bias is not None:
        per_channel(bias, weight.shape[0], "the output (the weight's C_out)")
    ops = chosen("conv2d_add_act", impl, x)
    if ops is not None:
        h, drive = ops.conv2d_add_act(
            x, weight, add, bias, stride, padding, pool, activation, leak, return_drive
        )
        return (h, drive) if return_drive else h
    return reference.conv2d_add_act(
        x,
        weight,
        add,
        bias,
        stride=stride,
        padding=padding,
        pool=pool,
        activation=activation,
        slope=slope,
        return_drive=return_drive,
    )


@overload
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
    return_drive: Literal[False] = False,
    impl: str = "auto",
) -> Tensor: ...
@overload
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
    return_drive: Literal[True],
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...
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
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`h = f(up(convᵀ(z)) + bias + add) · [gate > 0 ? 1 : gate_slope]`: the top-down neuron update, in one pass.

    Equal to `f(F.interpolate(F.conv_transpose2d(z, weight, None, stride, padding, op),
    scale_factor=upsample) + bias + add)`, with the `op` (output_padding) that `output_size` asks for, and where a
    gate is given, times 1 where it is positive and `gate_slope` elsewhere: the derivative of a relu or leaky relu
    whose output the gate is.

    Args:
        z: `(N, C_out, H, W)`, float32, float64, bfloat16 or float16, any strides.
        weight: `(C_out, C_in, kh, kw)`, the convolution's own tensor: this is its other direction.
        add: of exactly the output's shape (usually the bottom-up drive), or None.
        bias: `(C_in,)`, or None.
        stride, padding: those of the convolution, an int or a pair (vertical, horizontal).
        output_size: size of the transposed convolution, before upsampling, an int or a pair: one that the
            convolution maps to `z`'s, `(H - 1) stride - 2 padding + k <= out < the same + stride`; None is
            the smallest.
        upsample: nearest-neighbour factor, an int or a pair.
        spread: True divides what is repeated by the number of its copies: the transpose of an average pool.
        gate: of exactly the output's shape, or None; no gradient flows to it.
        gate_slope: the factor where the gate is not positive, finite and not negative; not 0 only with an identity,
            relu or leaky_relu, as the derivative of the others could no longer be read off the output.
        input_gate: of exactly the shape of `z`, or None: `z` is multiplied by 1 where it is positive and by
            `input_slope` elsewhere while it is read; no gradient flows to it.
        input_slope: as `gate_slope`.
        activation: one of identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid.
        slope: the leak of leaky_relu (default 0.01) and leaky_sigmoid (default 0.2); None for the others.
        return_drive: True returns `(h, drive)` with `drive = up(convᵀ(z))`, before bias, add, `f` and gate.
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    Returns:
        `h (N, C_in, out_h · upsample_h, out_w · upsample_w)` of `z`'s dtype; the compiled kernel keeps
        `z`'s memory format, that of `add` or `gate` where `z` is one pixel or one plainly
        contiguous channel.

    Differentiable to any order; saves its inputs and `h` for backward. Sums accumulate in float32 (float64
    for float64). Under autocast the arguments are cast first, as `F.conv_transpose2d`'s are.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.

    Source: "Deep CNN Based Lmser and Strengths of Two Built-In Dualities", Eq. (5).
    """
    leak = activations.check(activation, slope)
    stride, padding, upsample = (
        pair("stride", stride, 1),
        pair("padding", padding, 0),
        pair("upsample", upsample, 1),
    )
    both = at_once(
        "conv_transpose2d_add_act", impl, z, weight, add, bias, gate, stride, padding, output_size, upsample,
        activation, leak, return_drive, gate_slope, input_gate, input_slope, spread,
    )  # fmt: skip
    if both is not None:
        return both if return_drive else both[0]
    given = (z, weight, add, bias, gate, input_gate)
    z, weight, add, bias, gate, input_gate = cast(_Transpose, operands(_TRANSPOSE_NAMES, given, 2))
    for name, leaks in (("gate_slope", gate_slope), ("input_slope", input_slope)):
        if not isinstance(leaks, (int, float)) or isinstance(leaks, bool):
            raise TypeError(f"{name} must be a number; got {type(leaks).__name__}")
        if not 0 <= leaks < math.inf:
            raise ValueError(f"{name} must be finite and not negative; got {leaks}")
    if gate_slope and activation not in _SIGN_TELLS:
        raise ValueError(f"gate_slope must be 0 with activation {activation!r}; got {gate_slope}")
    size = conv_transpose_size(z, weight, stride, padding, output_size)
    if add is not None or gate is not None:
        shape = (z.shape[0], weight.shape[1], size[0] * upsample[0], size[1] * upsample[1])
        if add is not None:
            same_shape("add", add, shape, "the output's shape")
        if gate is not None:
            same_shape("gate", gate, shape, "the output's shape")
    if input_gate is not None:
        same_shape("input_gate", input_gate, z.shape, "the shape of z")
    if bias is not None:
        per_channel(bias, weight.shape[1], "the output (the weight's C_in)")
    ops = chosen("conv_transpose2d_add_act", impl, z)
    if ops is not None:
        h, drive = ops.conv_transpose2d_add_act(
            z, weight, add, bias, gate, stride, padding, size, upsample, activation, leak, return_drive,
            float(gate_slope), input_gate, float(input_slope), bool(spread),
        )  # fmt: skip
        return (h, drive) if return_drive else h
    return reference.conv_transpose2d_add_act(
        z,
        weight,
        add,
        bias,
        stride=stride,
        padding=padding,
        output_size=size,
        upsample=upsample,
        spread=spread,
        gate=gate,
        gate_slope=gate_slope,
        input_gate=input_gate,
        input_slope=input_slope,
        activation=activation,
        slope=slope,
        return_drive=return_drive,
    )


def tied_conv2d(
    x: Tensor, z: Tensor, weight: Tensor, *, stride: Pair = 1, padding: Pair = 0, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`(y, u) = (conv(x), convᵀ(z))`: both drives of one tied weight, with one weight gradient for both.

    Equal to `F.conv2d(x, weight, None, stride, padding)` and `F.conv_transpose2d(z, weight, None, stride,
    padding, op)` with the `op` that makes `u` the size of `x`.

    Args:
        x: `(N, C_in, H, W)`, the layer below, float32, float64, bfloat16 or float16, any strides.
        z: the layer above, of exactly the shape of `y`.
        weight: `(C_out, C_in, kh, kw)`.
        stride, padding: an int or a pair (vertical, horizontal).
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    Returns:
        `y (N, C_out, H', W')` and `u (N, C_in, H, W)`.

    Differentiable to any order; the data gradients are this operation itself with the roles of `x` and `z`
    exchanged.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.

    Source: "Deep CNN Based Lmser and Strengths of Two Built-In Dualities", the duality in connection weights.
    """
    stride, padding = pair("stride", stride, 1), pair("padding", padding, 0)
    found: tuple[Tensor, Tensor] | None = at_once("tied_conv2d", impl, x, z, weight, stride, padding)
    if found is not None:
        return found
    x, z, weight = cast("tuple[Tensor, Tensor, Tensor]", operands(_TIED_NAMES, (x, z, weight), 3))
    height, width = conv_size(x, weight, stride, padding)
    same_shape("z", z, (x.shape[0], weight.shape[0], height, width), "the shape of the convolution of x")
    ops = chosen("tied_conv2d", impl, x)
    if ops is not None:
        both: tuple[Tensor, Tensor] = ops.tied_conv2d(x, z, weight, stride, padding)
        return both
    return reference.tied_conv2d(x, z, weight, stride=stride, padding=padding)
