"""Which kernels the tests of the operations are about, and where: pytest's options --fused and --device.

`FUSED` is "native" (the compiled CPU kernels) unless `--fused triton` is given, which runs the same tests on the Triton
kernels: in Triton's interpreter, or on a GPU with `--device cuda`.
"""

from __future__ import annotations

import os

import torch

DEVICE = torch.device(os.environ.get("LMSER_TEST_DEVICE", "cpu"))
FUSED = os.environ.get("LMSER_TEST_FUSED", "native")
INTERPRETED = FUSED == "triton" and DEVICE.type == "cpu"


def examples(count: int) -> int:
    """How many generated examples a test takes: the interpreter is some hundred times slower, and on a GPU nearly every
    example is compiled anew."""
    return count if FUSED == "native" else max(8, count // 20)


def randn(
    size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Normal numbers of a generator of the CPU, on the device that is tested."""
    return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE, dtype)
