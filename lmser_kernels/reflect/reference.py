"""The eager oracle of `reflect`: the passes layer by layer, of the reference operations alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lmser_kernels.reflect.api import Reflection
from lmser_kernels.reflect.api import reflect as _reflect


def reflect(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], **options: Any) -> Reflection:
    """As `lmser_kernels.reflect`."""
    return _reflect(x, weights, biases, impl="reference", **options)
