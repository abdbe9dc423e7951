"""What a call would launch on a GPU, found without one: its operator's launcher runs on tensors without memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lmser_kernels import _library
from lmser_kernels.gpu.launch import Launch, recording

_WHAT = {
    "conv_up": "convolution as an implicit matrix product",
    "conv_down": "transposed convolution as implicit matrix products, one for each sub-pixel phase",
    "conv_pair": "both directions in one launch of implicit matrix products",
    "update_kernel": "one layer's update, both drives in one sum",
    "outcome_kernel": "the largest change, and whether to stop",
}


class _Found(Exception):
    def __init__(self, launches: list[Launch]) -> None:
        super().__init__("the operator was met")
        self.launches = launches


class _FirstOperator(TorchDispatchMode):
    """Ends what runs inside at its first operator of this library, with the launches that it makes."""

    def __init__(self, arch: int) -> None:
        super().__init__()
        self._arch = arch

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, _, name = function.name().partition("::")
        if namespace not in ("lmser", _library.TRITON):
            return function(*args, **(kwargs or {}))
        room = importlib.import_module(f"lmser_kernels.{_library._LAUNCHERS[name]}")
        with _disable_current_modes():
            given = pytree.tree_map_only(Tensor, _without_memory, args)
            with recording(self._arch) as made:
                getattr(room, name)(*given, **(kwargs or {}))
        raise _Found(made.launches)


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def launches(function: Callable[..., Any], given: Mapping[str, Any], arch: int) -> list[Launch]:
    """Those of ``function(**given)`` on a GPU of compute capability `arch`, forward alone.

    `function` is one of this package's operations, its tensors on any device: only sizes, strides and dtypes count.
    """
    with FakeTensorMode(), torch.no_grad():
        # The compiled operators have the same schemas; a CPU tensor needs no GPU to be of a device that has them.
        shadow = pytree.tree_map_only(
            Tensor,
            lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu"),
            dict(given),
        )
        try:
            with _FirstOperator(arch):
                function(**shadow | {"impl": "native"})
        except _Found as found:
            return found.launches
    raise AssertionError(f"{function.__name__} reached no operator")


def described(launch: Launch) -> dict[str, Any]:
    """A launch as plain values: the kernel, what it does, its grid, tile, products, warps and stages."""
    name = str(getattr(launch.kernel, "__name__", launch.kernel))
    found: dict[str, Any] = {"kernel": name}
    if name in _WHAT:
        found["does"] = _WHAT[name]
    if launch.plan is not None:
        found["reason"] = launch.plan.reason
        if launch.plan.kernel == "cudnn":
            return found | {
                "kernel": "cudnn",
                "does": "convolution of cuDNN, then what follows it in one pass",
            }
    given = launch.arguments
    for way in ("", "UP_", "DOWN_"):
        sides = [given.get(f"{way}BLOCK_{axis}") for axis in "MNK"]
        if None not in sides:
            found[f"{way.lower().rstrip('_')} tile".strip()] = "x".join(map(str, sides))
    half = any(isinstance(t, Tensor) and t.dtype.itemsize == 2 for t in given.values())
    if "PRECISION" in given and not half:
        found["products"] = given["PRECISION"]
    found |= {"grid": launch.grid, "warps": launch.num_warps, "stages": launch.num_stages}
    return found
