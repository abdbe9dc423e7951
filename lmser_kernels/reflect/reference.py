"""The eager oracle of `reflect` and `reflect_loss`: the passes layer by layer, of the reference operations alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lmser_kernels.reflect.api import Reflection
from lmser_kernels.reflect.api import reflect as _reflect
from lmser_kernels.reflect.loss import reflect_loss as _reflect_loss


def reflect(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], **options: Any) -> Reflection:
    """As `lmser_kernels.reflect`."""
    return _reflect(x, weights, biases, impl="reference", **options)


def reflect_loss(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], **options: Any) -> Tensor:
    """As `lmser_kernels.reflect_loss`."""
    return _reflect_loss(x, weights, biases, impl="reference", **options)
