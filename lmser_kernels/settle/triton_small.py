"""The small Triton kernels around the sweeps: what is done once, or reads each value once."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.settle.triton_update import held


@triton.jit
def hold_kernel(h, value, evidence, hold, values, BLOCK: tl.constexpr):
    """The visible state: evidence put into what the units would take."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < values
    v = tl.load(value + at, mask=mask, other=0.0)
    state = held(v, tl.load(evidence + at, mask=mask, other=0.0), tl.load(hold + at, mask=mask, other=0.0))
    tl.store(h + at, state, mask=mask)


@triton.jit
def all_held_kernel(flag, hold, values, BLOCK: tl.constexpr):
    """`flag`, 1 before, becomes 0 where any unit is not wholly held; whoever finds one writes the same."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    free = tl.load(hold + at, mask=at < values, other=1.0) != 1
    if tl.max(free.to(tl.int32), axis=0) != 0:
        tl.store(flag, 0)


@triton.jit(do_not_specialize=["made"])
def outcome_kernel(steps, change, changes, largest, limit, made, slots, BLOCK: tl.constexpr):
    """How many of `made` sweeps were made before the solve stopped, and the change of the last of them.

    `changes` and `largest` are (made, slots); with `largest` a change counts relative to it.
    """
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = slot < slots
    ceiling = tl.load(limit)
    runs = mask
    count = tl.zeros((BLOCK,), tl.int64)
    last = tl.full((BLOCK,), float("inf"), tl.float64)
    for t in range(made):
        now = tl.load(changes + t * slots + slot, mask=mask, other=0.0).to(tl.float64)
        if largest is not None:
            size = tl.load(largest + t * slots + slot, mask=mask, other=0.0).to(tl.float64)
            # A largest value that is NaN is the change as well.
            now = tl.where(size > 0, now / size, size)
            over = (size == 0) | (now < ceiling)
        else:
            over = now < ceiling
        count += runs.to(tl.int64)
        last = tl.where(runs, now, last)
        runs = runs & ~over
    tl.store(steps + slot, count, mask=mask)
    tl.store(change + slot, last.to(change.dtype.element_ty), mask=mask)
