"""`add_act` in eager PyTorch: the specification in code."""

from __future__ import annotations

from torch import Tensor

from lmser_kernels import activation as activations


def add_act(
    y: Tensor,
    u: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    slope: float | None = None,
) -> Tensor:
    """`h = f(y + u + bias)`, one bias per channel."""
    total = y if u is None else y + u
    if bias is not None:
        total = total + bias.view(1, -1, 1, 1)
    return activations.apply(total, activation, slope)


def pull_back(grad: Tensor, h: Tensor, *, activation: str, slope: float | None = None) -> Tensor:
    """`grad · f'(z)` with `h = f(z)`."""
    return activations.pull_back(grad, h, activation, slope)
