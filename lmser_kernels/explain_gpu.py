"""What `explain` says of GPUs: the one that tensors lie on, or one that is only named."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library, chips, dispatch
from lmser_kernels.settle import persistent
from lmser_kernels.settle.problem import Problem

_MEASURE_SECONDS = 0.02


def known(on: str) -> chips.Chip:
    """The kind of GPU of this name, or ValueError."""
    found = chips.chip_named(on)
    if found is None:
        raise ValueError(f"on: expected one of {', '.join(chip.name for chip in chips.CHIPS)}, got {on!r}")
    return found


def operators(name: str, impl: str, first: Tensor, chip: chips.Chip | None) -> dispatch.Operators | None:
    """What a call takes, or would take on `chip`."""
    if chip is None or impl not in ("auto", "native", "triton") or not _library.available:
        return dispatch.chosen(name, impl, first)
    if impl == "native" and name not in _library.cuda_operators:
        raise RuntimeError(f'impl="native": no compiled kernel of {name} for CUDA tensors')
    if _library.triton_error is not None:
        raise RuntimeError(
            f"on: without Triton it is not known what runs on {chip.name}: {_library.triton_error}"
        )
    return dispatch.compiled if impl != "triton" and name in _library.cuda_operators else dispatch.triton


def launches(
    function: Callable[..., Any], given: Mapping[str, Any], chip: chips.Chip | None, device: torch.device
) -> dict[str, Mapping[str, Any]]:
    """The Triton launches of a call on `chip`, or on `device`, in order."""
    from lmser_kernels.gpu import planned  # imports Triton

    if chip is not None:
        arch = chip.arch
    else:
        major, minor = torch.cuda.get_device_capability(device)
        arch = 10 * major + minor
    made = planned.launches(function, given, arch)
    return {f"launch {number}": planned.described(launch) for number, launch in enumerate(made, 1)}


def persistent_obstacle(problem: Problem, given: Mapping[str, Any], chip: chips.Chip | None) -> str | None:
    """Why a solve is not one launch of the compiled library's CUDA kernel, on `chip` or where it lies; None: it is."""
    device: Any
    if chip is None:
        device = torch.cuda.get_device_properties(problem.states[0].device)
    else:
        from lmser_kernels.gpu.tile_model import MULTIPROCESSORS, shared_limit  # imports Triton

        device = SimpleNamespace(
            name=chip.name,
            shared_memory_per_block_optin=shared_limit(chip.arch),
            multi_processor_count=MULTIPROCESSORS.get(chip.arch, 132),
        )
    dtype = torch.promote_types(problem.states[0].dtype, torch.float32)  # what the operator is given
    states, weights = (
        [torch.empty(t.shape, dtype=dtype, device="meta") for t in part]
        for part in (problem.states, problem.weights)
    )
    order, theta = given["order"], given["theta"]
    kept = persistent.kept_bytes(
        states, order, theta, given["max_steps"], keep=given["backward"] == "bptt" and problem.requires_grad(),
        half=given["trajectory_dtype"] is not None, readouts=given["readouts"],
    )  # fmt: skip
    return persistent.obstacle(states, weights, order, theta, given["per_sample"], kept=kept, device=device)


def rates(
    dtype: torch.dtype, device: torch.device, chip: chips.Chip | None
) -> tuple[float | None, float | None, str]:
    """GFLOP/s and GB/s of `chip` or of `device`, and where they are from; None where nothing is known."""
    if chip is None:
        if device.type != "cuda":
            return None, None, ""
        chip = chips.chip_of(device)
    precision = _precision(dtype)
    if chip is not None:
        return chip.gflops(dtype, precision), chip.gbs, f"data sheet of {chip.name}"
    found = _measured(device)
    if dtype == torch.float64:
        return None, None, ""
    if dtype in (torch.bfloat16, torch.float16):
        return found["bfloat16_gflops"], found["copy_gbs"], "measured"
    name, products = {"tf32": ("tf32", 1), "tf32x3": ("tf32", 3), "ieee": ("float32", 1)}[precision]
    return found[f"{name}_gflops"] / products, found["copy_gbs"], "measured"


@functools.cache
def _measured(device: torch.device) -> dict[str, float]:
    return chips.measure(device, _MEASURE_SECONDS)


def _precision(dtype: torch.dtype) -> str:
    if _library.triton_error is not None:
        return "ieee"
    from lmser_kernels.gpu.launch import dot_precision  # imports Triton

    return dot_precision(dtype)
