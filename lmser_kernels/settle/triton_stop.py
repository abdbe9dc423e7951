"""When a solve on a GPU stops: decided on the device, seen by the host once in a while.

What a sweep changed is written to memory by its kernels, and read from there by those of the next: a sweep after the last
finds that the one before it changed too little, and its kernels return at once. The host only has to stop launching.
It looks after every few sweeps, at the answer that was asked for some sweeps earlier: the GPU never waits for it. Where
it may not look, because a CUDA graph is recorded, or has nothing to see, because no threshold was given, all
`max_steps` sweeps are launched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu.launch import launch, recording_now
from lmser_kernels.settle.triton_small import outcome_kernel

LOOK_EVERY = (
    8  # sweeps: some thirty launches or more, and after the last at most twice as many that return at once
)
_BLOCK = 128


def capturing(like: Tensor) -> bool:
    """Whether the launches made now are recorded into a CUDA graph."""
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


def may_look(like: Tensor) -> bool:
    """Whether the host may read what the device computed."""
    return not (recording_now() or like.is_meta or capturing(like))


class _Answer:
    """A truth value on its way from the device; `there` waits for it."""

    def __init__(self, value: Tensor) -> None:
        self._value = value
        self._event: torch.cuda.Event | None = None
        if value.is_cuda:
            self._value = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(value.device))

    def there(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value)


def swept(sweep: Callable[[int], None], over: Callable[[int], Tensor], max_steps: int, look: bool) -> int:
    """Calls `sweep(t)` for t = 0, 1 ... until `over(t)` was true of one, `max_steps` times at most.

    Returns how many were launched; `look` is False where all are.
    """
    asked: _Answer | None = None
    for t in range(max_steps):
        sweep(t)
        if look and t % LOOK_EVERY == LOOK_EVERY - 1:
            if asked is not None and asked.there():
                return t + 1
            asked = _Answer(over(t))
    return max_steps


def outcome(changes: Tensor, largest: Tensor | None, limit: Tensor, made: int) -> tuple[Tensor, Tensor]:
    """(sweeps made before the solve stopped, int64; the change of the last), of `made` that were launched.

    `changes` is (sweeps, ...), a value or one for each sample.
    """
    size = changes.shape[1:]
    slots = size.numel()
    steps, change = changes.new_empty(size, dtype=torch.int64), changes.new_empty(size)
    launch(
        outcome_kernel, (triton.cdiv(slots, _BLOCK),), steps=steps, change=change, changes=changes, largest=largest,
        limit=limit, made=made, slots=slots, BLOCK=_BLOCK,
    )  # fmt: skip
    return steps, change
