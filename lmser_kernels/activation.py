"""The six activations `f` in eager PyTorch: forward, `f'` from the output, and its derivative.

For each of them `f'(z)` can be read off `h = f(z)`, so an operation saves nothing but `h` for its backward:

    name            f(z)                                    f' in terms of h            df'/dh
    identity        z                                       1                           0
    relu            max(z, 0)                               1 if h > 0 else 0           0
    leaky_relu      z if z > 0 else slope z                 1 if h > 0 else slope       0
    sigmoid         1 / (1 + exp(-z))                       h (1 - h)                   1 - 2 h
    tanh            tanh(z)                                 1 - h²                      -2 h
    leaky_sigmoid   z on [-1, 1], slope (z - 1) + 1 above,  1 if |h| <= 1 else slope    0
                    slope (z + 1) - 1 below

`leaky_sigmoid` is the activation of the attractor networks. At the kinks relu'(0) = 0 and leaky_relu'(0) =
slope as in PyTorch, and leaky_sigmoid'(±1) = 1. A negative slope (or a zero one for leaky_sigmoid, whose
outer pieces it would make flat at ±1) is refused: the output would no longer tell the derivative.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ACTIVATIONS = ("identity", "relu", "leaky_relu", "sigmoid", "tanh", "leaky_sigmoid")
DEFAULT_SLOPES = {"leaky_relu": 0.01, "leaky_sigmoid": 0.2}


def check(activation: str, slope: float | None = None) -> float:
    """The slope that `activation` will use (0.0 where it has none).

    Raises `ValueError` for an unknown activation, for a slope given to an activation that has none, and for
    one that is negative, not finite, or zero where it must be positive; `TypeError` where it is not a
    number.
    """
    if slope is None:
        if activation in ACTIVATIONS:
            return DEFAULT_SLOPES.get(activation, 0.0)
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    if activation not in DEFAULT_SLOPES:
        raise ValueError(
            f"slope is for leaky_relu and leaky_sigmoid only; got slope={slope!r} with {activation!r}"
        )
    if isinstance(slope, bool) or not isinstance(slope, (int, float)):
        raise TypeError(f"slope must be a number; got {type(slope).__name__}")
    if not math.isfinite(slope) or slope < 0:
        raise ValueError(f"slope must be finite and not negative; got {slope}")
    if slope == 0 and activation == "leaky_sigmoid":
        raise ValueError("slope of leaky_sigmoid must be positive; got 0")
    return float(slope)


def apply(z: Tensor, activation: str, slope: float | None = None) -> Tensor:
    """`f(z)`, elementwise, differentiable by autograd; NaN stays NaN."""
    slope = check(activation, slope)
    if activation == "relu":
        return torch.relu(z)
    if activation == "leaky_relu":
        return torch.nn.functional.leaky_relu(z, slope)
    if activation == "sigmoid":
        return torch.sigmoid(z)
    if activation == "tanh":
        return torch.tanh(z)
    if activation == "leaky_sigmoid":
        return torch.where(z > 1, slope * (z - 1) + 1, torch.where(z < -1, slope * (z + 1) - 1, z))
    return z


def derivative(h: Tensor, activation: str, slope: float | None = None) -> Tensor:
    """`f'(z)` as a function of `h = f(z)`, differentiable in `h`.

    `slope` is what the forward took, or the number that `check` made of it.
    """
    if slope is None:
        slope = check(activation)
    if activation == "relu":
        return torch.where(h <= 0, torch.zeros_like(h), torch.ones_like(h))
    if activation == "leaky_relu":
        return torch.where(h > 0, torch.ones_like(h), torch.full_like(h, slope))
    if activation == "sigmoid":
        return h * (1 - h)
    if activation == "tanh":
        return 1 - h * h
    if activation == "leaky_sigmoid":
        return torch.where(h.abs() > 1, torch.full_like(h, slope), torch.ones_like(h))
    return torch.ones_like(h)


def pull_back(grad: Tensor, h: Tensor, activation: str, slope: float | None = None) -> Tensor:
    """`grad · f'(z)` with `h = f(z)`; relu selects as PyTorch's does: 0 even for an infinite `grad`."""
    if activation == "identity":
        return grad
    if activation == "relu":
        return torch.where(h <= 0, torch.zeros_like(grad), grad)
    return grad * derivative(h, activation, slope)


def second_derivative(h: Tensor, activation: str) -> Tensor | None:
    """`df'/dh` as a function of `h`; None where it is zero everywhere (the piecewise linear activations)."""
    if activation == "sigmoid":
        return 1 - 2 * h
    if activation == "tanh":
        return -2 * h
    return None
