"""`add_act`: checks its arguments and takes the implementation asked for."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from lmser_kernels import _library
from lmser_kernels import activation as activations
from lmser_kernels.add_act import reference
from lmser_kernels.arguments import four_dimensional, operands, per_channel, same_shape
from lmser_kernels.dispatch import at_once, chosen

if _library.available:
    from lmser_kernels.add_act import ops as ops  # registers the operators

_NAMES = ("y", "u", "bias")


def add_act(
    y: Tensor,
    u: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    slope: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """`h = f(y + u + bias)` in one pass: the update of a neuron from both of its drives.

    Args:
        y: `(N, C, H, W)`, float32, float64, bfloat16 or float16; `h` has its shape, dtype and memory format.
        u: of exactly `y`'s shape, or None.
        bias: `(C,)`, or None.
        activation: one of identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid.
        slope: the leak of leaky_relu (default 0.01) and leaky_sigmoid (default 0.2); None for the others.
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    Differentiable to any order; saves `h` alone for backward. Under autocast the arguments are cast first.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.

    Source: "Deep CNN Based Lmser and Strengths of Two Built-In Dualities", Eqs. (4)-(6).
    """
    leak = activations.check(activation, slope)
    found: Tensor | None = at_once("add_act", impl, y, u, bias, activation, leak)
    if found is not None:
        return found
    y, u, bias = cast("tuple[Tensor, Tensor | None, Tensor | None]", operands(_NAMES, (y, u, bias), 1))
    four_dimensional("y", y, "(N, C, H, W)")
    if u is not None:
        same_shape("u", u, y.shape, "the shape of y")
    if bias is not None:
        per_channel(bias, y.shape[1], "y")
    ops = chosen("add_act", impl, y)
    if ops is not None:
        h: Tensor = ops.add_act(y, u, bias, activation, leak)
        return h
    return reference.add_act(y, u, bias, activation=activation, slope=slope)


def pull_back(
    grad: Tensor, h: Tensor, *, activation: str, slope: float | None = None, impl: str = "auto"
) -> Tensor:
    """`grad · f'(z)`, the derivative read off `h = f(z)`: what of `grad` passes back through an activation.

    relu selects, so that nothing flows through a dead unit, NaN and Inf included.

    Args:
        grad: `(N, C, H, W)`, float32, float64, bfloat16 or float16.
        h: of exactly `grad`'s shape; the result has its memory format.
        activation, slope, impl: as in `add_act`.

    Differentiable to any order with respect to both. Raises as `add_act`.
    """
    leak = activations.check(activation, slope)
    grad, h = cast("tuple[Tensor, Tensor]", operands(("grad", "h"), (grad, h), 2))
    four_dimensional("grad", grad, "(N, C, H, W)")
    same_shape("h", h, grad.shape, "the shape of grad")
    ops = chosen("add_act", impl, grad)
    if activation == "identity":
        return grad
    if ops is not None:
        passed: Tensor = ops.add_act_backward(grad, h, activation, leak, False)[0]
        return passed
    return reference.pull_back(grad, h, activation=activation, slope=slope)
