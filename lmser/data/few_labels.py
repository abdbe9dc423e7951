"""Most labels taken away: the same number left in each class, drawn by a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from lmser.inversion.losses import UNLABELLED

__all__ = ["UNLABELLED", "few_labels"]


def few_labels(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """`labels` with all but `per_class` of each class replaced by `UNLABELLED` (-1).

    labels: int64 `(N,)`, at least 0.  Those that stay depend on `labels`, `per_class` and `seed` alone, and with one
    seed the fewer are among the more.

    Raises TypeError or ValueError naming the argument: a class that has fewer than `per_class`, for one.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
        what = (
            f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        )
        raise TypeError(f"labels: expected int64 of shape (N,), got {what}")
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise ValueError(f"per_class: expected a positive int, got {per_class!r}")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"labels: expected classes from 0 on, got {int(labels.min())}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels.cpu()[order]
    left = torch.full_like(labels, UNLABELLED)
    for kind in shuffled.unique().tolist():
        chosen = order[shuffled == kind][:per_class]
        if len(chosen) < per_class:
            raise ValueError(f"per_class: class {kind} has {len(chosen)} samples, fewer than {per_class}")
        left[chosen] = kind
    return left
