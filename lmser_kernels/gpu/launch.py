"""One way into every Triton kernel: on a GPU, in Triton's interpreter, or recorded for compiling ahead of time.

Triton's interpreter runs kernels on CPU tensors where the process was started with TRITON_INTERPRET=1, Triton's own
switch, which it reads when kernels are defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu import interpreter, registers


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it was to be launched with; tensors may be without memory (device "meta")."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    plan: Any = None  # with a `kernel` and a `reason`, where another kernel could be chosen
    options: Mapping[str, Any] = field(default_factory=dict)  # of its compiler


@dataclass
class Recording:
    """The launches that would have been made, for GPUs of compute capability `arch` (90 is Hopper)."""

    arch: int
    launches: list[Launch] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("lmser_kernels.gpu.launch.recording", default=None)


Watcher = Callable[[dict[str, Any]], AbstractContextManager[None]]
_watcher: ContextVar[Watcher | None] = ContextVar("lmser_kernels.gpu.launch.watcher", default=None)


@contextmanager
def recording(arch: int) -> Iterator[Recording]:
    """Launch nothing inside, write down what would be."""
    made = Recording(arch)
    token = _recording.set(made)
    try:
        yield made
    finally:
        _recording.reset(token)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Inside, every launch is made within a `watcher(arguments)` of its own."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def recording_now() -> bool:
    """Whether launches are written down instead of made."""
    return _recording.get() is not None


def interpreting() -> bool:
    """Whether this process defines its kernels for Triton's interpreter."""
    return bool(triton.knobs.runtime.interpret)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    plan: Any = None,
    **arguments: Any,
) -> None:
    """Run `kernel` over `grid`, its parameters by name, on the current stream of its tensors' device.

    `plan` is only written down.
    """
    if 0 in grid:
        return
    made = _recording.get()
    if made is not None:
        options = registers.options(kernel.__name__, arguments, num_warps, num_stages, made.arch)
        made.launches.append(Launch(kernel, grid, arguments, num_warps, num_stages, plan, options))
        return
    watcher = _watcher.get()
    if interpreting():
        interpreter.correct()
        with watcher(arguments) if watcher is not None else nullcontext():
            kernel[grid](**arguments)
        return
    first = next(value for value in arguments.values() if isinstance(value, Tensor))
    options = registers.options(kernel.__name__, arguments, num_warps, num_stages, arch_of(first))
    with torch.cuda.device(first.device), watcher(arguments) if watcher is not None else nullcontext():
        kernel[grid](**arguments, num_warps=num_warps, num_stages=num_stages, **options)


def arch_of(tensor: Tensor) -> int:
    """Compute capability times ten of the GPU that `tensor` lies on: 80 Ampere, 90 Hopper, 100 Blackwell."""
    made = _recording.get()
    if made is not None:
        return made.arch
    if not tensor.is_cuda:
        return 90  # the interpreter's: any would do
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def multiprocessors(tensor: Tensor) -> int:
    """Streaming multiprocessors of the GPU that `tensor` lies on; 132, an H200's, where there is none."""
    if _recording.get() is not None or not tensor.is_cuda:
        return 132
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def dot_precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: PyTorch's own switches of float32 convolutions decide, as they do for `F.conv2d`.

    "tf32" where convolutions may use it (PyTorch's default: `torch.backends.cudnn.allow_tf32`, or the newer
    `torch.backends.cudnn.conv.fp32_precision`), else "tf32x3", float32 accuracy from three products on tensor cores,
    where matrix products may use them (`torch.set_float32_matmul_precision("high")`), else "ieee", plain float32. Of
    another dtype the answer is "ieee", which changes nothing.
    """
    if dtype != torch.float32:
        return "ieee"
    # The newer switches are read: once they have been set, PyTorch refuses to read the older ones.
    if torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        return "tf32"
    return "tf32x3" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def nhwc(tensor: Tensor) -> Tensor:
    """`tensor` as a kernel's main operand: channels-last in memory, copied where it is not.

    Neighbouring threads read neighbouring channels; of another layout every read would be a transaction of its own.
    """
    channels = tensor.stride(1) == 1 or tensor.shape[1] == 1
    return tensor if channels else tensor.contiguous(memory_format=torch.channels_last)
