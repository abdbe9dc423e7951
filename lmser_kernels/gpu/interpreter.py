"""What Triton 3.6's interpreter does otherwise than a GPU, put right."""

from __future__ import annotations

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

    It keeps scalars as arrays of one value, which numpy 2.4 makes no loop's bound of, and it cuts float32 off where
    bfloat16 is asked for.
    """
    from triton.runtime import interpreter

    patch: Any = interpreter._patch_lang_tensor

    def patch_and_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_index

    builder: Any = interpreter.InterpreterBuilder
    cast = builder.cast_impl

    def cast_and_round(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return interpreter.TensorHandle(to_bfloat16(source.data), to.scalar)
        return cast(self, source, to)

    builder.cast_impl = cast_and_round
