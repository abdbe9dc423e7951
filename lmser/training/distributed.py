"""Several processes that train one network together, started by torchrun.

    torchrun --nproc-per-node 2 train.py

    with joined("cuda") as device:              # or "cpu"; without torchrun this changes nothing
        result = train(model.to(device), loss, data, config, run_dir=path, resume=True)

`train` then gives every process its slice of each batch. All functions of this module can be called without
a process group too: there is then one process, number 0.

The default group is gloo's, over CPU tensors, for what the processes say to each other; gradients on CUDA
devices go through a group of NCCL's beside it (`gradient_group`). So a process may wait for another's
evaluation longer than NCCL lets a gradient wait.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["NoDevice", "barrier", "broadcast", "is_main", "joined", "on_main", "rank", "world_size"]

T = TypeVar("T")

# Only a bound on what nobody waits for any more: when a process ends, the others learn of it at once.
_PATIENCE = timedelta(days=2)


class NoDevice(ValueError):
    """A process cannot have the device that was asked for; the message is one sentence for the user."""


@contextmanager
def joined(device: str | torch.device = "cpu") -> Iterator[torch.device]:
    """Join the processes that torchrun has started, give this one's device, and leave them at the end.

    Without torchrun (WORLD_SIZE is not set) it gives `device` and does nothing. With it, ``"cuda"`` becomes
    the CUDA device numbered LOCAL_RANK.

    Raises NoDevice where a CUDA device is named by its number though there are several processes, and
    where this process has none.
    """
    device = torch.device(device)
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if device.index is not None and int(os.environ["WORLD_SIZE"]) > 1:
            raise NoDevice(f"device: expected 'cuda' with several processes, got {str(device)!r}")
        if device.index is None and local >= torch.cuda.device_count():
            raise NoDevice(
                f"device: process {local} of this machine has no CUDA device, "
                f"torch sees {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local) if device.index is None else device
        torch.cuda.set_device(device)
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, the first being 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """This is the process that writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def broadcast(value: T) -> T:
    """The first process's `value` (anything that can be pickled), in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def on_main(action: Callable[[], T]) -> T:
    """Do `action` in the first process, and return its value, or raise its exception, in every one."""
    if world_size() == 1:
        return action()
    outcome: tuple[Any, Exception | None] = (None, None)
    if is_main():
        try:
            outcome = (action(), None)
        except Exception as failure:
            broadcast((None, _sendable(failure)))
            raise
    value, failed = broadcast(outcome)
    if failed is not None:
        raise failed
    return value


def _sendable(error: Exception) -> Exception:
    """`error`, or one that says the same where pickle cannot rebuild it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the class's own constructor raises
        return RuntimeError(f"process 0: {type(error).__name__}: {error}")
    return error


def gathered(value: T) -> list[T] | None:
    """Every process's `value`, in the first process; None in the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, dst=0)
    return values


def largest(values: list[int]) -> list[int]:
    """The largest of all processes' numbers at each place."""
    if world_size() == 1:
        return values
    together = torch.tensor(values, dtype=torch.int64, device="cpu")
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return [int(value) for value in together.tolist()]


def summed(values: Tensor) -> Tensor:
    """The sum of all processes' `values` (CPU, one shape), the same in each."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def share(indices: Tensor) -> tuple[Tensor, float]:
    """This process's slice of a batch of `indices`, and its part of the whole.

    A process that is left without a sample takes the batch's first one, with weight 0: it takes part in
    everything and adds nothing.
    """
    if world_size() == 1:
        return indices, 1.0
    own = indices.tensor_split(world_size())[rank()]
    return (own, len(own) / len(indices)) if len(own) else (indices[:1], 0.0)


def check_default_group() -> None:
    """ValueError where somebody has made a default group that CPU tensors cannot go through."""
    if world_size() > 1 and "gloo" not in dist.get_backend():
        raise ValueError(
            f"process group: expected gloo as lmser.training.distributed.joined makes it, "
            f"got {dist.get_backend()}"
        )


def gradient_group(device: torch.device) -> dist.ProcessGroup | None:
    """The group that gradients on `device` are averaged in; None: the default one."""
    return dist.new_group(backend="nccl") if device.type == "cuda" else None
