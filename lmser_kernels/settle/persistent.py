"""`lmser::settle` for CUDA tensors: a whole solve in one launch where the network is fully connected and fits.

The kernel is csrc/cuda/settle.cu. A block, or a cluster of blocks, keeps the states of its samples on chip and reads
the weights from there or from the second-level cache, so that nothing but the results is written to memory. It
multiplies in plain float32 or float64. Any other network is settled by Triton's kernels, update by update.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library
from lmser_kernels.settle.schedule import sweep_order

# Flops of a sweep beyond which tensor cores, one launch an update, should overtake plain arithmetic in one launch: some
# 0.1 ms of work for a whole GPU. Predicted, not measured.
MOST_FLOPS = 2e9
# Memory for every sweep that there may be is taken before the first; Triton's kernels take it as sweeps are made.
MOST_KEPT = 2**31


@cache
def unusable(device: int) -> str | None:
    """Why no kernel of the compiled library runs on this GPU, or None: asked once."""
    assert _library.module is not None
    said: str | None = _library.module.settle_persistent_obstacle(device)
    return said


def kept_bytes(
    states: Sequence[Tensor],
    order: str,
    theta: float,
    max_steps: int,
    *,
    keep: bool,
    half: bool,
    readouts: bool,
) -> int:
    """Of what is kept of `max_steps` sweeps, where fewer may be made, else 0: the visible layer's values, and with
    `keep` all states for the backward."""
    if theta <= 0:
        return 0
    size = max(4, states[0].element_size())
    shown = states[0].numel() * size if keep or readouts else 0
    hidden = sum(states[layer].numel() for layer in sweep_order(len(states), order) if layer > 0)
    return max_steps * (shown + (hidden * (2 if half else size) if keep else 0))


def obstacle(
    states: Sequence[Tensor], weights: Sequence[Tensor], order: str, theta: float, per_sample: bool, *, back: bool = False,
    kept: int = 0, device: Any = None,
) -> str | None:  # fmt: skip
    """Why the kernel cannot settle this network on its device, or walk back through its sweeps, or None.

    `kept`: see `kept_bytes`. `device`: properties as `torch.cuda.get_device_properties` gives them, of another one than
    the states'.
    """
    first = states[0]
    if any(h.shape[2] * h.shape[3] != 1 for h in states) or any(
        w.shape[2] * w.shape[3] != 1 for w in weights
    ):
        return "it settles fully connected networks, of (N, C, 1, 1) layers and 1 x 1 weights"
    if first.dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 or float64, not in {first.dtype}"
    if kept > MOST_KEPT:
        return (
            f"what is kept of as many sweeps as there may be is {kept / 1e9:.1f} GB, which it takes at once"
        )
    assert _library.module is not None
    if device is None and first.is_cuda and torch.cuda.is_available():
        found = unusable(torch.cuda.current_device() if first.device.index is None else first.device.index)
        if found is not None:
            return found
    device = torch.cuda.get_device_properties(first.device) if device is None else device
    fits = first.shape[0] == 0 or _library.module.settle_persistent_fits(
        [h.shape[1] for h in states],
        first.shape[0],
        first.element_size(),
        order == "up_down",
        not per_sample and theta > 0,
        device.shared_memory_per_block_optin,
        # Clusters, where there are any, are more room; the kernel's own plan uses them.
        [device.multi_processor_count],
        back,
    )
    if not fits:
        sizes = ", ".join(str(h.shape[1]) for h in states)
        return f"{first.shape[0]} samples of layers of {sizes} units do not fit on {device.name} at once"
    flops = 4.0 * first.shape[0] * sum(w.numel() for w in weights)
    if flops > MOST_FLOPS:
        return f"a sweep is {flops / 1e9:.1f} GFLOP, more than the {MOST_FLOPS / 1e9:.0f} up to which it is meant to pay"
    return None


def settle(
    states: list[Tensor], weights: list[Tensor], reverse_weights: list[Tensor], biases: list[Tensor],
    evidence: Tensor | None, hold: Tensor | None, external: Tensor | None, pools: list[int], padding: list[int],
    activation: str, slope: float, order: str, theta: float, max_steps: int, per_sample: bool, keep: bool, half: bool,
    readouts: bool, adjoint_theta: float, adjoint_max_steps: int, unconverged: str,
) -> Any:  # fmt: skip
    """The operator's CUDA implementation: chooses by sizes, which a compiled graph knows when it runs."""
    kept = kept_bytes(states, order, theta, max_steps, keep=keep, half=half, readouts=readouts)
    if obstacle(states, weights, order, theta, per_sample, kept=kept) is None:
        return torch.ops.lmser.settle_persistent(
            states, weights, reverse_weights, biases, evidence, hold, external, activation, slope, order, theta,
            max_steps, per_sample, keep, half, readouts,
        )  # fmt: skip
    return torch.ops.lmser_triton.settle(
        states, weights, reverse_weights, biases, evidence, hold, external, pools, padding, activation, slope, order,
        theta, max_steps, per_sample, keep, half, readouts, adjoint_theta, adjoint_max_steps, unconverged,
    )  # fmt: skip
