"""What Triton's interpreter does otherwise than a GPU, put right: that of 3.6 and of every later release up to 3.9."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 as the bits of bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


@cache
def correct() -> None:
    """Patches the interpreter, once.

    It keeps scalars as arrays of one value, which numpy 2.4 makes no loop's bound of. It keeps bfloat16 as 16-bit
    integers, which it adds, compares and multiplies as such, and cuts float32 off where bfloat16 is asked for. It calls
    the outcome of a comparison after what was compared, so that a scalar one becomes a block of numbers, which later
    releases take for no mask.
    """
    from triton.runtime import interpreter

    patch: Any = interpreter._patch_lang_tensor

    def patch_and_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_index

    builder: Any = interpreter.InterpreterBuilder
    handle: Any = interpreter.TensorHandle
    cast, binary, dot = builder.cast_impl, builder.binary_op, builder.create_dot

    def cast_and_round(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return handle(to_bfloat16(source.data), to.scalar)
        return cast(self, source, to)

    def widened(self: Any, value: Any) -> Any:
        return cast(self, value, tl.float32) if value.dtype.scalar == tl.bfloat16 else value

    def binary_of_numbers(self: Any, lhs: Any, rhs: Any, operation: Callable[..., Any]) -> Any:
        narrow = lhs.dtype.scalar == tl.bfloat16
        found = binary(self, widened(self, lhs), widened(self, rhs), operation)
        if found.data.dtype == np.bool_:
            return handle(found.data, tl.int1)
        return cast_and_round(self, found, tl.bfloat16) if narrow else found

    def dot_of_numbers(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(self, a), widened(self, b), *rest)

    builder.cast_impl = cast_and_round
    builder.binary_op = binary_of_numbers
    builder.create_dot = dot_of_numbers
