"""The second half of every sum that is split over programs: partial sums added in one fixed order.

Float atomics would add them in the order in which programs happen to end, with other bits every time.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lmser_kernels.gpu.launch import launch

_TILE = 4096  # values of a tile: 32 to each of 128 threads
_MOST_ROWS = 512
_MOST_VALUES = 512  # of the result: each takes the registers of three divisions by 64 bits


@triton.jit
def add_partial_sums(
    partial, out, count, splits, taps, inner,
    BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`out = Σ_s partial[s]`: value `(a, t, b)` of `partial (splits, ·, taps, inner)` to `(a, b, t)` of `out`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    total = tl.zeros([BLOCK], dtype=partial.dtype.element_ty)
    for first in range(0, splits, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        at = s[:, None].to(tl.int64) * count + i[None, :]
        total += tl.sum(tl.load(partial + at, mask=(s < splits)[:, None] & there[None, :], other=0.0), axis=0)
    b, t = i % inner, i // inner % taps
    place = (i // inner // taps * inner + b) * taps + t
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there)


def reduce(partial: Tensor, out: Tensor, *, taps: int = 1, inner: int = 1) -> None:
    """Add the rows of `partial (splits, values)` into `out`, contiguous, its values `(·, taps, inner)` turned to
    `(·, inner, taps)`."""
    splits, count = partial.shape
    block_s = min(triton.next_power_of_2(max(1, splits)), _MOST_ROWS)
    block = min(_TILE // block_s, _MOST_VALUES, triton.next_power_of_2(max(1, count)))
    launch(
        add_partial_sums,
        (triton.cdiv(count, block),),
        partial=partial,
        out=out,
        count=count,
        splits=splits,
        taps=taps,
        inner=inner,
        BLOCK_S=block_s,
        BLOCK=block,
    )
