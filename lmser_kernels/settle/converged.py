"""What is done where an implicit gradient was asked for and a solve did not converge."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def check(unconverged: str, what: str, change: Tensor, theta: float, steps: Tensor) -> None:
    """Nothing where every `change` is below `theta`; else a RuntimeError ("raise") or RuntimeWarning ("warn").

    A graph, traced or captured, does not look at values: there it is not checked.
    """
    if unconverged == "ignore" or torch.compiler.is_compiling() or _is_fake(change) or _is_captured(change):
        return
    if bool((change < theta).all()):
        return
    said = (
        f"{what}: not converged after {int(steps.max())} sweeps: the largest change is {float(change.amax()):.3g}, below "
        f"{theta:.3g} is asked for; the implicit gradient is that of a fixed point"
    )
    if unconverged == "raise":
        raise RuntimeError(said)
    warnings.warn(said, RuntimeWarning, stacklevel=2)


def _is_captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)
