"""What a step would launch on a GPU, found without one: the step runs on tensors without memory, and every operator of
this library in it, forward and backward, goes to its Triton launcher under `recording`.

A step is any function of tensors made inside it (a model's training step); what it costs is added up beside.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bench.gpu_costs import Cost, cost
from lmser_kernels import _library
from lmser_kernels._library import _LAUNCHERS, TRITON
from lmser_kernels.gpu.launch import Launch, recording

# How float32 products are made: (cudnn.allow_tf32, float32 matmul precision), see `dot_precision`.
SWITCHES = {"tf32": (True, "high"), "tf32x3": (False, "high"), "ieee": (False, "highest")}


@dataclass
class Recorded:
    """The launches of a step, in order, each with the operator it serves; what the operators cost; what was missing."""

    launches: list[tuple[str, Launch]] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    without_kernel: set[str] = field(default_factory=set)


def launchers() -> dict[str, Callable[..., Any]]:
    """Every operator's Triton launcher, by the operator's name."""
    found: dict[str, Callable[..., Any]] = {}
    for name, place in _LAUNCHERS.items():
        module = f"lmser_kernels.{place}"
        if importlib.util.find_spec(module) is not None:
            launcher = getattr(importlib.import_module(module), name, None)
            if launcher is not None:
                found[name] = launcher
    return found


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Float32 products as `name` says: "tf32", "tf32x3" or "ieee"."""
    tf32, matmul = SWITCHES[name]
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision(matmul)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


class _ToLaunchers(TorchDispatchMode):
    """Sends this library's operators to their launchers; of everything else only the sizes are worked out."""

    def __init__(self, arch: int, made: Recorded) -> None:
        super().__init__()
        self.arch, self.made, self.launchers = arch, made, launchers()

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        namespace, _, name = function.name().partition("::")
        if namespace not in ("lmser", TRITON):
            return function(*args, **(kwargs or {}))
        launcher = self.launchers.get(name)
        if launcher is None:
            self.made.without_kernel.add(name)
            if name == "settle":  # its fake leaves the number of sweeps open, and nothing after it is known
                raise _NoKernel(name)
            results = function(*args, **(kwargs or {}))
        else:
            given = pytree.tree_map_only(Tensor, _without_memory, args)
            with _disable_current_modes(), recording(self.arch) as record:
                found = launcher(*given, **(kwargs or {}))
            self.made.launches += [(name, launch) for launch in record.launches]
            results = pytree.tree_map_only(Tensor, _like, found)
            if name != "settle":
                _same_layout(name, found, function(*args, **(kwargs or {})))
        self.made.costs.append(cost(name, function, args, results))
        return results


class _NoKernel(Exception):
    """An operator without a launcher, whose results cannot be told."""


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _without_memory(tensor: Tensor) -> Tensor:
    with _disable_current_modes():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _same_layout(name: str, found: Any, wanted: Any) -> None:
    """A launcher's results have the sizes, strides and dtypes that the operator's fake promises."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    for place, (f, w) in enumerate(pairs):
        if f.dtype != w.dtype or f.shape != w.shape or _strides(f) != _strides(w):
            raise AssertionError(
                f"{name}, result {place}: the launcher gives {f.dtype} {tuple(f.shape)} with strides {f.stride()}, "
                f"the operator {w.dtype} {tuple(w.shape)} with strides {w.stride()}"
            )


def _strides(tensor: Tensor) -> list[int]:
    """The strides that address anything."""
    return [
        stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size > 1 and tensor.numel()
    ]


@contextmanager
def _without_tiles() -> Iterator[None]:
    """The CPU stands for a GPU: what it alone makes one operation of in bfloat16 is to go layer by layer."""
    library = _library.module
    if library is None:
        yield
        return
    before = library.choose_bfloat16_tiles("none")
    try:
        yield
    finally:
        library.choose_bfloat16_tiles(before)


def record(step: Callable[[], object], arch: int, products: str = "tf32") -> Recorded:
    """What `step()` launches on a GPU of compute capability `arch`; nothing is computed.

    `step` makes its own tensors, on the CPU: none of them gets memory.
    """
    made = Recorded()
    with (
        precision(products),
        _without_tiles(),
        FakeTensorMode(),
        _ToLaunchers(arch, made),
        suppress(_NoKernel),
    ):
        step()
    return made
