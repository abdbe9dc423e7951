"""Loads the compiled extension `lmser_kernels._C`, once, at import.

The extension is one shared library: loading it registers the operators `torch.ops.lmser.*` and gives the
inspection functions (`build_info`, `cpu_info`, `plan`, …). A platform without it is a supported one:
`available` is then False, `error` says why in one line, and every operation runs through its reference.
"""

from __future__ import annotations

import importlib
from types import ModuleType

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
    missing = [name for name in OPERATORS if not hasattr(torch.ops.lmser, name)]
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
    return frozenset(name for name in OPERATORS if has(f"lmser::{name}", "CUDA"))


module, error = _load()
available = module is not None
# Every operator has a CPU kernel; these have a CUDA kernel too, in a library compiled with nvcc.
cuda_operators = _with_cuda_kernel() if available else frozenset()


def empty_cache() -> None:
    """Return the memory kept for the next large CPU results (1 MiB and more) to the system.

    Results of the compiled CPU operators come from a store that keeps what dies, 1 GiB at most, so that a
    training step does not clear fresh pages for the same tensors again and again. Tensors that are alive are
    not touched. Does nothing without the compiled library. The counterpart of `torch.cuda.empty_cache`.
    """
    if module is not None:
        module.empty_cache()
