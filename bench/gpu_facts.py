"""What a figure depends on: the device, its clocks, versions, the commit, and how fast it copies and multiplies."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

import torch

from bench.gpu_clock import Clock, calls_for
from bench.gpu_record import precision
from lmser.experiments.provenance import commit

SMI = (
    "name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw",
    "power.limit", "temperature.gpu", "utilization.gpu", "memory.total", "memory.used",
)  # fmt: skip


def facts(device: str) -> dict[str, Any]:
    """Of this process."""
    import triton

    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit(),
        "smi": smi(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "capability": list(torch.cuda.get_device_capability()),
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": properties.total_memory / 1e9,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU now, clocks among it; nothing where it cannot be asked."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode:
        return {"problem": " ".join((done.stderr or done.stdout).split())[:200]}
    return dict(zip(SMI, (value.strip() for value in done.stdout.strip().split(",")), strict=False))


def copy_bandwidth(clock: Clock, size: float = 1e9) -> float:
    """Bytes per second, read and written, of a copy of a gigabyte; the best of seven."""
    count = int(size if clock.device == "cuda" else 1e6) // 4
    source = torch.rand(count, device=clock.device)
    target = torch.empty_like(source)

    def step() -> list[torch.Tensor]:
        target.copy_(source)
        return [target]

    step()
    calls = calls_for(clock, step)
    return 2.0 * 4 * count / min(clock.seconds(step, calls) for _ in range(7))


def matmul_rates(clock: Clock, size: int = 8192) -> dict[str, float]:
    """Flops per second of a large square product in bfloat16 and in float32 with tf32; the best of five."""
    side = size if clock.device == "cuda" else 64
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        a, b = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))

        def step(a: torch.Tensor = a, b: torch.Tensor = b) -> list[torch.Tensor]:
            return [a @ b]

        with precision("tf32"):
            step()
            calls = calls_for(clock, step)
            found[name] = 2.0 * side**3 / min(clock.seconds(step, calls) for _ in range(5))
    return found
