"""Max pooling's public operations: checks, then the implementation asked for."""

from __future__ import annotations

from typing import Literal, cast, overload

import torch
from torch import Tensor

from lmser_kernels import _library
from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, four_dimensional, operands, pair, same_shape
from lmser_kernels.dispatch import chosen
from lmser_kernels.max_pool import reference
from lmser_kernels.max_pool.reference import pooled_size, windows

if _library.available:
    from lmser_kernels.max_pool import ops as ops  # registers the operators


@overload
def max_pool2d_act(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    *,
    activation: str = "identity",
    slope: float | None = None,
    return_places: Literal[False] = False,
    impl: str = "auto",
) -> Tensor: ...
@overload
def max_pool2d_act(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    *,
    activation: str = "identity",
    slope: float | None = None,
    return_places: Literal[True],
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...
def max_pool2d_act(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    *,
    activation: str = "identity",
    slope: float | None = None,
    return_places: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`h = f(max_pool(x))` in one pass, with one byte a winner kept for the way back.

    Equal to `f(F.max_pool2d(x, kernel_size, stride, padding))`, and as every `f` is monotonic, to the pool of
    `f(x)`: a convolution before it need not apply `f`, nor keep its output, at full resolution.

    Args:
        x: `(N, C, H, W)`, float32, float64, bfloat16 or float16, any strides.
        kernel_size, stride, padding: an int or a pair (vertical, horizontal); `stride` None is `kernel_size`,
            `padding` is at most half of it, a window has at most 255 places.
        activation: one of identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid.
        slope: the leak of leaky_relu (default 0.01) and leaky_sigmoid (default 0.2); None for the others.
        return_places: True returns `(h, places)`, uint8 `(N, H', W', C)`: the place of each winner in its
            window, row by row, of equal values the first. `max_unpool2d` takes them.
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    Returns:
        `h (N, C, H', W')`, `H' = floor((H + 2 padding - k) / stride) + 1`, of `x`'s dtype; the compiled kernel
        keeps `x`'s memory format. NaN wins, as in torch.

    Differentiable to any order; saves the places, and `h` where `f` is not the identity.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.
    """
    leak = activations.check(activation, slope)
    kernel, step, pad = windows(kernel_size, stride, padding)
    (x,) = cast("tuple[Tensor]", operands(("x",), (x,), 1))
    four_dimensional("x", x, "(N, C, H, W)")
    pooled_size((x.shape[2], x.shape[3]), kernel, step, pad)
    ops = chosen("max_pool2d_act", impl, x)
    if ops is not None:
        h, places = ops.max_pool2d_act(x, kernel, step, pad, activation, leak)
        return (h, places) if return_places else h
    return reference.max_pool2d_act(
        x, kernel, step, pad, activation=activation, slope=slope, return_places=return_places
    )


def max_unpool2d(
    z: Tensor,
    places: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    *,
    output_size: Pair,
    impl: str = "auto",
) -> Tensor:
    """`u = Sᵀ z`: each value of `z` at the place its window's winner had, zero elsewhere; where windows overlap,
    summed. The transpose of max pooling with its winners fixed, `(∂ max_pool(x) / ∂x)ᵀ z`.

    Args:
        z: `(N, C, H', W')`, float32, float64, bfloat16 or float16, any strides.
        places: uint8 `(N, H', W', C)`, as `max_pool2d_act(..., return_places=True)` gives them; where one is
            outside its window, or on padding, the value is left out.
        kernel_size, stride, padding: those of the pool.
        output_size: size of what was pooled, an int or a pair.
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    Differentiable to any order with respect to `z`.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.
    """
    kernel, step, pad = windows(kernel_size, stride, padding)
    size = pair("output_size", output_size, 1)
    (z,) = cast("tuple[Tensor]", operands(("z",), (z,), 1))
    four_dimensional("z", z, "(N, C, H', W')")
    expected = pooled_size(size, kernel, step, pad)
    if (z.shape[2], z.shape[3]) != expected:
        raise ValueError(
            f"output_size {size} pools to {expected}, which must be the size of z; got {tuple(z.shape)}"
        )
    if not isinstance(places, Tensor) or places.dtype != torch.uint8:
        got = places.dtype if isinstance(places, Tensor) else type(places).__name__
        raise TypeError(f"places must be a uint8 tensor; got {got}")
    same_shape("places", places, (z.shape[0], *expected, z.shape[1]), "(N, H', W', C) of z")
    ops = chosen("max_unpool2d", impl, z)
    if ops is not None:
        u: Tensor = ops.max_unpool2d(z, places.contiguous(), None, size, kernel, step, pad, "identity", 0.0)
        return u
    return reference.max_unpool2d(z, places, kernel, step, pad, output_size=size)
