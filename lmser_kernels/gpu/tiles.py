"""The tile that a matrix-product kernel takes for a problem: (M, N) of the output, K of the sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton


@dataclass(frozen=True)
class Tile:
    """Block sizes of the output and of one step of the sum, warps of a block, stages of its load pipeline."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def choose(kernel: str, m: int, n: int, k: int, dtype: torch.dtype, precision: str, arch: int) -> Tile:
    """The tile for `(m, k) @ (k, n)` in `kernel`."""
    wide = dtype == torch.float64 or (precision in ("ieee", "tf32x3") and dtype == torch.float32)
    block_n = min(max(16, triton.next_power_of_2(n)), 64 if wide else 128)
    block_m = 64 if wide or m * n < 128 * 128 * 132 else 128
    block_m = min(block_m, max(16, triton.next_power_of_2(m)))
    block_k = 16 if wide else 32 if dtype == torch.float32 else 64
    block_k = min(block_k, max(16, triton.next_power_of_2(k)))
    warps = 8 if block_m * block_n >= 128 * 128 else 4
    return Tile(block_m, block_n, block_k, warps, 3 if not wide else 2)
