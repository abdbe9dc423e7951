"""What GPUs can do: the rates of their data sheets, and rates measured on the one that is there.

A floor on a call's time is its bytes by the memory's rate or its operations by the arithmetic's, whichever is longer.
Rates are of dense matrix products, without sparsity, at the boost clock; float64 is the tensor cores' where a chip has
such. Sources: NVIDIA's data sheets of A100, H100, H200, B200, L40S and the GeForce RTX 3090, 4090 and 5090.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["CHIPS", "Chip", "chip_named", "chip_of", "facts", "measure", "why_no"]


@dataclass(frozen=True)
class Chip:
    """A kind of GPU.

    name:   a word of what torch calls it ("NVIDIA H200").  arch: compute capability times ten
    tflops: TFLOP/s by "bfloat16" (and float16), "tf32", "float32" (without tensor cores), "float64"
    gbs:    GB/s of its memory, reading and writing together
    """

    name: str
    arch: int
    tflops: Mapping[str, float]
    gbs: float

    def gflops(self, dtype: torch.dtype, precision: str = "ieee") -> float:
        """GFLOP/s of products of `dtype`; of float32 in `precision` "tf32", "tf32x3" (three products each) or
        "ieee"."""
        if dtype in (torch.bfloat16, torch.float16):
            rate = self.tflops["bfloat16"]
        elif dtype == torch.float64:
            rate = self.tflops["float64"]
        else:
            tf32 = self.tflops["tf32"]
            rate = {"tf32": tf32, "tf32x3": tf32 / 3}.get(precision, self.tflops["float32"])
        return 1e3 * rate


def _chip(
    name: str, arch: int, bfloat16: float, tf32: float, float32: float, float64: float, gbs: float
) -> Chip:
    rates = {"bfloat16": bfloat16, "tf32": tf32, "float32": float32, "float64": float64}
    return Chip(name, arch, MappingProxyType(rates), gbs)


# The longer of two names that fit comes first.
CHIPS = (
    _chip("A100-SXM4-40GB", 80, 312, 156, 19.5, 19.5, 1555),
    _chip("A100-PCIE-40GB", 80, 312, 156, 19.5, 19.5, 1555),
    _chip("A100", 80, 312, 156, 19.5, 19.5, 2039),
    _chip("H100 PCIe", 90, 756, 378, 51, 51, 2000),
    _chip("H100", 90, 989, 494, 67, 67, 3350),
    _chip("H200", 90, 989, 494, 67, 67, 4800),
    _chip("B200", 100, 2250, 1125, 75, 37, 8000),
    _chip("L40S", 89, 362, 183, 91.6, 1.4, 864),
    _chip("RTX 3090", 86, 71, 35.6, 35.6, 0.56, 936),
    _chip("RTX 4090", 89, 165, 82.6, 82.6, 1.3, 1008),
    _chip("RTX 5090", 120, 209, 105, 105, 1.6, 1792),
)


def chip_named(name: str) -> Chip | None:
    """The kind that `name`, as torch calls a device, is of; None for one that is not in the table."""
    return next((chip for chip in CHIPS if chip.name.lower() in name.lower()), None)


def chip_of(device: torch.device) -> Chip | None:
    """The kind of a CUDA device."""
    return chip_named(torch.cuda.get_device_name(device))


def why_no(device: torch.device) -> str:
    """Why torch does not have this CUDA device, as a clause for a message."""
    if torch.version.cuda is None:
        return f"the installed torch {torch.__version__} is built without CUDA"
    count = torch.cuda.device_count()
    if count == 0:
        return "torch sees no GPU (is the driver there, and does CUDA_VISIBLE_DEVICES name one?)"
    return f"torch sees {count} CUDA device{'s' if count > 1 else ''}, the first being cuda:0"


def facts(device: torch.device) -> dict[str, Any]:
    """What torch and the driver say of a CUDA device, as plain values."""
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "multiprocessors": found.multi_processor_count,
        "driver": _driver(),
    }


def _driver() -> str | None:
    """The driver's version, None where the system does not tell."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 ..."
    return next((word for word in first.split() if word[0].isdigit() and "." in word), None)


def measure(device: torch.device, seconds: float = 0.2) -> dict[str, float]:
    """Rates of a CUDA device, each measured for about `seconds`: a large copy in GB/s, read and written bytes
    together, and square matrix products in GFLOP/s by ``"bfloat16"``, ``"tf32"`` and ``"float32"``."""
    with torch.cuda.device(device):
        found = {"copy_gbs": _copy_gbs(device, seconds)}
        # The newer switch: once it has been set, PyTorch refuses to read the older one.
        products = torch.backends.cuda.matmul
        before = products.fp32_precision
        try:
            for name, dtype, precision in (
                ("bfloat16", torch.bfloat16, "ieee"),
                ("tf32", torch.float32, "tf32"),
                ("float32", torch.float32, "ieee"),
            ):
                products.fp32_precision = precision
                found[f"{name}_gflops"] = _matmul_gflops(device, dtype, seconds)
        finally:
            products.fp32_precision = before
    return found


def _copy_gbs(device: torch.device, seconds: float) -> float:
    source = torch.rand(2**28, device=device)  # 1 GiB, many times any cache
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _seconds_each(lambda: target.copy_(source), seconds) / 1e9


def _matmul_gflops(device: torch.device, dtype: torch.dtype, seconds: float, side: int = 8192) -> float:
    # Random numbers: of zeros the chip draws less power, and clocks higher.
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * side**3 / _seconds_each(lambda: torch.mm(a, b, out=out), seconds) / 1e9


def _seconds_each(work: Callable[..., object], seconds: float) -> float:
    """Of one call among many in a row, by the device's clock."""
    for _ in range(3):
        work()
    count = 1
    while True:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            work()
        end.record()
        end.synchronize()
        taken = start.elapsed_time(end) / 1e3
        if taken >= seconds / 2:
            return taken / count
        count = 2 * count if taken <= 0 else max(count + 1, min(16 * count, int(count * seconds / taken)))
