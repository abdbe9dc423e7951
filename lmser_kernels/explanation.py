"""What `explain` says of a call, and the parts of it that do not depend on the operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library, chips, dispatch, explain_gpu

_MEASURE_SECONDS = 0.02
_SAID_ABOVE = ("kernel", "reason", "flops", "bytes")


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `print` shows it.

    `flops` counts a multiply-add as two and only what the definition asks for; `bytes` is every argument
    read and every result written once. `peak_gflops` (of this dtype's arithmetic) and `bandwidth_gbs` are
    measured by the call, for the threads in use; both are None without the compiled library, and so are
    `bound` and `seconds`. Of a GPU they are those of its data sheet, or measured where `lmser_kernels.chips` has
    none of it: `source` says which. `plans` are by direction on the CPU, by launch on a GPU.
    """

    operation: str
    implementation: str
    kernel: str
    reason: str
    output_shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    threads: int
    flops: float
    bytes: float
    peak_gflops: float | None = None
    bandwidth_gbs: float | None = None
    plans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""

    @property
    def intensity(self) -> float:
        """Flops per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def bound(self) -> str | None:
        """ "compute" or "memory": which of the two floors is the higher one on this machine."""
        if self.peak_gflops is None or self.bandwidth_gbs is None:
            return None
        return "compute" if self.flops / self.peak_gflops > self.bytes / self.bandwidth_gbs else "memory"

    @property
    def seconds(self) -> float | None:
        """The higher floor itself, of the direct sum: an algorithm with fewer products can go below it."""
        if self.peak_gflops is None or self.bandwidth_gbs is None:
            return None
        return max(self.flops / self.peak_gflops, self.bytes / self.bandwidth_gbs) / 1e9

    def __str__(self) -> str:
        lines = [
            f"{self.operation} -> {self.implementation}: {self.kernel}",
            f"  because   {self.reason}",
            f"  output    {', '.join(str(shape) for shape in self.output_shapes)} {self.dtype}",
            f"  work      {self.flops / 1e6:.4g} MFLOP, {self.bytes / 1e6:.4g} MB, "
            f"{self.intensity:.3g} flop/byte",
        ]
        if self.bound is None or self.seconds is None:
            lines.append(
                "  bound     unknown: peaks are measured by the compiled library, which is not loaded"
            )
        else:
            whose = self.source or f"{self.threads} thread(s)"
            peaks = f"{self.peak_gflops:.0f} GFLOP/s, {self.bandwidth_gbs:.1f} GB/s, {whose}"
            lines.append(f"  bound     {self.bound}: at least {self.seconds * 1e6:.3g} µs ({peaks})")
        several = len({plan.get("kernel") for plan in self.plans.values()}) > 1
        for name, plan in self.plans.items():
            said = [key for key in _SAID_ABOVE if not (several and key == "kernel")]
            rest = {key: value for key, value in plan.items() if key not in said}
            lines.append(f"  plan      {name}: " + ", ".join(f"{key} {value}" for key, value in rest.items()))
        return "\n".join(lines)


def rates(
    dtype: torch.dtype, threads: int, device: torch.device, chip: chips.Chip | None
) -> tuple[float | None, float | None, str]:
    """GFLOP/s and GB/s, and where they are from ("" for this processor's)."""
    if chip is None and device.type == "cpu":
        return *_peaks(dtype, threads), ""
    return explain_gpu.rates(dtype, device, chip)


def _peaks(dtype: torch.dtype, threads: int) -> tuple[float | None, float | None]:
    library = _library.module
    if library is None:
        return None, None
    # Float16, and bfloat16 where there are no tiles for it, compute in float32; float64 has half the lanes.
    share = 0.5 if dtype == torch.float64 else 1.0
    tiles = library.measure_bfloat16_peak(_MEASURE_SECONDS, threads) if dtype == torch.bfloat16 else None
    peak = tiles or share * library.measure_fma_peak(_MEASURE_SECONDS, threads)
    return peak, library.measure_copy_bandwidth(_MEASURE_SECONDS, threads)


def in_tiles(plans: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all of them multiply bfloat16 in tiles."""
    return bool(plans) and all(
        str(plan.get("compute_dtype", "")).startswith("bfloat16") for plan in plans.values()
    )


def kernel_of(name: str, plans: Mapping[str, Mapping[str, Any]]) -> str:
    return (
        " and ".join(dict.fromkeys(str(plan["kernel"]) for plan in plans.values()))
        or f"{name}, one fused pass"
    )


def reason_for(
    name: str,
    impl: str,
    first: Tensor,
    plans: Mapping[str, Mapping[str, Any]],
    chip: chips.Chip | None,
) -> str:
    if chip is not None and impl in ("auto", "triton") and _library.available:
        reasons = [f"GPU kernel, planned for {chip.name}"]
    else:
        reasons = [dispatch.reason(name, impl, first)]
    reasons += dict.fromkeys(str(plan["reason"]) for plan in plans.values() if plan.get("reason"))
    return "; ".join(reasons)
