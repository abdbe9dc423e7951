"""Loads the compiled extension `lmser_kernels._C`, once, at import.

The extension is one shared library: loading it registers the operators `torch.ops.lmser.*` and gives the
inspection functions (`build_info`, `cpu_info`, `plan`, …). A platform without it is a supported one:
`available` is then False, `error` says why in one line, and every operation runs through its reference.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch  # before the extension, which takes torch's C symbols from the process

OPERATORS = (
    "conv2d_add_act",
    "conv2d_add_act_backward",
    "conv_transpose2d_add_act",
    "conv_transpose2d_add_act_backward",
    "tied_conv2d",
    "tied_conv2d_weight_grad",
    "add_act",
    "add_act_backward",
    "max_pool2d_act",
    "max_unpool2d",
    "max_select2d",
    "settle_step",
    "settle",
    "settle_backward",
    "settle_adjoint",
)
# Whole networks, for CPU tensors alone: on a GPU, and in an exported graph, they are chains of the others.
CPU_OPERATORS = ("reflect", "reflect_backward", "reflect_loss")


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        extension = importlib.import_module("lmser_kernels._C")
    except ModuleNotFoundError as problem:
        if problem.name != "lmser_kernels._C":
            return None, f"lmser_kernels._C could not be loaded: {_one_line(problem)}"
        return (
            None,
            "lmser_kernels._C is not there: the package was installed or checked out without compiling it",
        )
    except (ImportError, OSError) as problem:
        return None, f"lmser_kernels._C could not be loaded: {_one_line(problem)}"
    named = (*OPERATORS, *CPU_OPERATORS, *(f"{name}_persistent" for name in _CHOOSING))
    missing = [name for name in named if not hasattr(torch.ops.lmser, name)]
    if missing:
        return (
            None,
            f"lmser_kernels._C is older than the Python beside it (no {', '.join(missing)}): build it again",
        )
    return extension, None


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__


def _with_cuda_kernel() -> frozenset[str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(name for name in _CHOOSING if has(f"lmser::{name}_persistent", "CUDA"))


# Where the compiled library has a CUDA kernel for some calls: what takes it for those, and Triton's for the others.
_CHOOSING = {
    "settle": "settle.persistent",
    "settle_backward": "settle.persistent_backward",
    "settle_adjoint": "settle.persistent_backward",
}


module, error = _load()
available = module is not None
# Every operator has a CPU kernel; these have one in CUDA C++ too, for some calls, in a library compiled with nvcc.
cuda_operators = _with_cuda_kernel() if available else frozenset()

TRITON = "lmser_triton"
# The module of the function that launches an operator's Triton kernels, which has the operator's name and schema.
_LAUNCHERS = {
    "conv2d_add_act": "tied_conv.triton",
    "conv2d_add_act_backward": "tied_conv.triton_backward",
    "conv_transpose2d_add_act": "tied_conv.triton",
    "conv_transpose2d_add_act_backward": "tied_conv.triton_backward",
    "tied_conv2d": "tied_conv.triton",
    "tied_conv2d_weight_grad": "tied_conv.triton_backward",
    "add_act": "add_act.triton",
    "add_act_backward": "add_act.triton",
    "max_pool2d_act": "max_pool.triton",
    "max_unpool2d": "max_pool.triton",
    "max_select2d": "max_pool.triton",
    "settle_step": "settle.triton_step",
    "settle": "settle.triton",
    "settle_backward": "settle.triton",
    "settle_adjoint": "settle.triton",
}


def _define_triton() -> tuple[list[torch.library.Library], str | None]:
    """The operators once more in a namespace of their own, `lmser_triton`, run by Triton kernels.

    For CUDA tensors, and for CPU tensors in Triton's interpreter. The compiled namespace takes them for CUDA tensors
    where it has no kernel of its own, so that a graph exported on a CPU runs on a GPU too. Triton is imported by
    the first launch.
    """
    if not available:
        return [], error
    if not _installed("triton"):
        return [], "Triton is not installed"
    own = torch.library.Library(TRITON, "DEF")
    other = torch.library.Library("lmser", "IMPL")
    for name in OPERATORS:
        schema = str(getattr(torch.ops.lmser, name).default._schema)
        own.define(schema.removeprefix("lmser::"))
        own.impl(name, _launcher(name), "CUDA")
        own.impl(name, _launcher(name), "CPU")
        other.impl(name, _launcher(name, _CHOOSING if name in cuda_operators else _LAUNCHERS), "CUDA")
    return [own, other], None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # an import hook, or a module put there by hand
        return False


def _launcher(name: str, modules: dict[str, str] = _LAUNCHERS) -> Callable[..., Any]:
    module = f"lmser_kernels.{modules[name]}"

    def launch(*args: Any) -> Any:
        room = importlib.import_module(module)
        return getattr(room, name)(*args)

    return launch


_registrations, triton_error = _define_triton()  # registrations last as long as their Library


def empty_cache() -> None:
    """Return the memory kept for the next large CPU results (1 MiB and more) to the system.

    Results of the compiled CPU operators come from a store that keeps what dies, 1 GiB at most, so that a
    training step does not clear fresh pages for the same tensors again and again. Tensors that are alive are
    not touched. Packed weights, of which 96 MiB at most are kept, go too. Does nothing without the compiled
    library. The counterpart of `torch.cuda.empty_cache`.
    """
    if module is not None:
        module.empty_cache()
