"""Settling in segments whose states are computed again for the backward, not kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmser_kernels.settle.problem import Problem, Run
from lmser_kernels.settle.result import Settled


def in_segments(solve: Callable[[Problem, Run], Settled], problem: Problem, run: Run, sweeps: int) -> Settled:
    """The solve as a chain of solves of `sweeps` sweeps at most; kept are the states where each of them begins.

    A solve goes on where another ended: from its hidden states, and from the readout, into which evidence is put as it
    was. The backward makes the sweeps of one segment after another once more, last segment first.
    """

    def segment(part: Run, *states: Tensor) -> tuple[Tensor, ...]:
        found = solve(dataclasses.replace(problem, states=states), part)
        assert found.readouts is not None
        return (*found.states, found.readouts, found.steps, found.change)

    states, readouts, made = problem.states, [], 0
    last: Tensor | None = None
    while made < run.max_steps:
        part = dataclasses.replace(run, max_steps=min(sweeps, run.max_steps - made), readouts=True)
        # Nothing here is random: the generators' states need not be kept.
        found = cast(
            "tuple[Tensor, ...]",
            checkpoint(segment, part, *states, use_reentrant=False, preserve_rng_state=False),
        )
        *settled, seen, steps, change = found
        states = (seen[-1], *settled[1:])
        readouts.append(seen if run.readouts else seen[-1:])
        last = settled[0]
        # Without a threshold every sweep is made, which is known without looking.
        made += part.max_steps if run.theta == 0 else int(steps)
        if run.theta and bool(change < run.theta):
            break
    assert last is not None
    return Settled(
        (last, *states[1:]),
        torch.cat(readouts) if run.readouts else None,
        torch.tensor(made, dtype=torch.int64, device=last.device),
        change,
    )
