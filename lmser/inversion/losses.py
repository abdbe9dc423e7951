"""Terms of 003's losses: reconstruction, entropy, cross-entropy of what is labelled."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

__all__ = ["RECONSTRUCTION", "UNLABELLED", "cross_entropy", "entropy", "mean_error", "reconstruction_error"]

UNLABELLED = -1
"""The label of a sample without one; losses take any number below 0 for it."""


def _squared(found: Tensor, x: Tensor) -> Tensor:
    return (found - x).flatten(1).square().sum(1)


def _mean_squared(found: Tensor, x: Tensor) -> Tensor:
    return (found - x).flatten(1).square().mean(1)


def _cosine(found: Tensor, x: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(found.flatten(1), x.flatten(1))


RECONSTRUCTION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": _squared,
    "mean_squared": _mean_squared,
    "cosine": _cosine,
}


def reconstruction_error(found: Tensor, x: Tensor, kind: str = "mean_squared") -> Tensor:
    """`R(x)` of each sample, `(N,)` (003 Eqs. 8 and 12).

    kind: ``"squared"``: `‖found - x‖²`, as printed; ``"mean_squared"``: that by the number of values, which is what
          the text says is used; ``"cosine"``: `1 - cos(found, x)`, the variant that it names

    Raises ValueError for shapes that differ, or an unknown kind.
    """
    if found.shape != x.shape:
        raise ValueError(f"found: expected the shape of x, {tuple(x.shape)}, got {tuple(found.shape)}")
    if kind not in RECONSTRUCTION:
        raise ValueError(f"kind: expected one of {', '.join(RECONSTRUCTION)}, got {kind!r}")
    return RECONSTRUCTION[kind](found, x)


def mean_error(found: Tensor, x: Tensor, kind: str = "mean_squared") -> Tensor:
    """The mean of `reconstruction_error` over the samples, 0-d; arguments and errors are its."""
    if kind == "mean_squared" and found.shape == x.shape:
        return F.mse_loss(found, x)  # in one pass
    return reconstruction_error(found, x, kind).mean()


def entropy(log_p: Tensor) -> Tensor:
    """`E = -Σ_c p_c log p_c` of each sample, `(N,)`, in nats, from `log p = log_softmax(logits)` (003 Eq. 9)."""
    return -(log_p.exp() * log_p).sum(1)


def cross_entropy(log_p: Tensor, y: Tensor) -> Tensor:
    """`-log p_y` of each sample, `(N,)`, from `log p = log_softmax(logits)`; another class's where `y` is
    below 0."""
    return F.nll_loss(log_p, y.clamp(min=0), reduction="none")
