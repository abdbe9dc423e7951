"""The barrier function `ρ` of an activation, and the inverse it is the integral of (004 Eqs. 2-3, Sect. 3.3).

    ρ(x) = ∫₀ˣ f⁻¹(ξ) dξ

is what makes the update `x = f(net input)` the minimum of `ρ(x) - x · net input`. In closed form

    tanh            ((1 + x) ln(1 + x) + (1 - x) ln(1 - x)) / 2          ln 2 at ±1, infinite beyond
    leaky_sigmoid   x² / 2 on [-1, 1], (x² + (1 - α)(1 - 2|x|)) / 2α outside
    sigmoid         x ln x + (1 - x) ln(1 - x)                           0 at 0 and 1, infinite beyond
    leaky_relu      x² / 2 above 0, x² / 2α below
    identity        x² / 2

α is the slope. 004 prints the lower branch of the leaky sigmoid's with `1 + 2x`, which is this one, since x is
negative there. relu has no inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmser_kernels import activation as activations

INVERTIBLE = ("identity", "leaky_relu", "sigmoid", "tanh", "leaky_sigmoid")


def check_invertible(activation: str, slope: float | None = None) -> float:
    """The slope that is used (0.0 where there is none); ValueError for an activation without an inverse."""
    slope = activations.check(activation, slope)
    if activation not in INVERTIBLE or (activation == "leaky_relu" and slope == 0):
        raise ValueError(
            f"activation: expected one that has an inverse ({', '.join(INVERTIBLE)}; a positive slope), "
            f"got {activation!r}"
        )
    return slope


def barrier(x: Tensor, activation: str = "tanh", slope: float | None = None) -> Tensor:
    """`ρ(x)`, elementwise, of `x`'s shape and floating dtype; its derivative is `f⁻¹(x)`.

    Infinite where no `f` reaches. Raises ValueError for an activation without an inverse.
    """
    slope = check_invertible(activation, slope)
    if activation == "tanh":
        # entr(p) = -p ln p, 0 at 0 and minus infinity below
        return -0.5 * (torch.special.entr(1 + x) + torch.special.entr(1 - x))
    if activation == "sigmoid":
        return -(torch.special.entr(x) + torch.special.entr(1 - x))
    half = 0.5 * x * x
    if activation == "leaky_relu":
        return torch.where(x > 0, half, half / slope)
    if activation == "leaky_sigmoid":
        beyond = x.abs() - 1
        return torch.where(beyond > 0, 0.5 + beyond + 0.5 * beyond * beyond / slope, half)
    return half


def inverse(x: Tensor, activation: str = "tanh", slope: float | None = None) -> Tensor:
    """`f⁻¹(x)`, elementwise; infinite at the ends of the range of tanh and sigmoid, NaN beyond.

    Raises ValueError for an activation without an inverse.
    """
    slope = check_invertible(activation, slope)
    if activation == "tanh":
        return torch.atanh(x)
    if activation == "sigmoid":
        return torch.logit(x)
    if activation == "leaky_relu":
        return torch.where(x > 0, x, x / slope)
    if activation == "leaky_sigmoid":
        beyond = x.abs() - 1
        return torch.where(beyond > 0, torch.sign(x) * (1 + beyond / slope), x)
    return x


def inside(x: Tensor, activation: str) -> Tensor:
    """`x` moved off the ends of an open range, by one rounding of its dtype, so that `f⁻¹` is finite.

    Only values that were rounded onto an end move: for tanh to `1 - eps/2`, the largest number below 1.
    """
    if activation == "tanh":
        edge = 1 - torch.finfo(x.dtype).eps / 2
        return x.clamp(-edge, edge)
    if activation == "sigmoid":
        return x.clamp(torch.finfo(x.dtype).tiny, 1 - torch.finfo(x.dtype).eps / 2)
    return x
