"""`lmser::settle` for CUDA tensors: a whole solve in one launch where the network is fully connected and fits.

The kernel is csrc/cuda/settle.cu. A block, or a cluster of blocks, keeps the states of its samples on chip and reads
the weights from there or from the second-level cache, so that nothing but the results is written to memory. It
multiplies in plain float32 or float64. Any other network is settled by Triton's kernels, update by update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library

# Flops of a sweep beyond which tensor cores, one launch an update, should overtake plain arithmetic in one launch: some
# 0.1 ms of work for a whole GPU. Predicted, not measured.
MOST_FLOPS = 2e9


def obstacle(
    states: Sequence[Tensor], weights: Sequence[Tensor], order: str, theta: float, per_sample: bool, *, back: bool = False,
    device: Any = None,
) -> str | None:  # fmt: skip
    """Why the kernel cannot settle this network on its device, or walk back through its sweeps, or None.

    `device`: properties as `torch.cuda.get_device_properties` gives them, of another one than the states'.
    """
    first = states[0]
    if any(h.shape[2] * h.shape[3] != 1 for h in states) or any(
        w.shape[2] * w.shape[3] != 1 for w in weights
    ):
        return "it settles fully connected networks, of (N, C, 1, 1) layers and 1 x 1 weights"
    if first.dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 or float64, not in {first.dtype}"
    assert _library.module is not None
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
    if obstacle(states, weights, order, theta, per_sample) is None:
        return torch.ops.lmser.settle_persistent(
            states, weights, reverse_weights, biases, evidence, hold, external, activation, slope, order, theta,
            max_steps, per_sample, keep, half, readouts,
        )  # fmt: skip
    return torch.ops.lmser_triton.settle(
        states, weights, reverse_weights, biases, evidence, hold, external, pools, padding, activation, slope, order,
        theta, max_steps, per_sample, keep, half, readouts, adjoint_theta, adjoint_max_steps, unconverged,
    )  # fmt: skip
