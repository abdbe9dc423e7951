"""Whether one Triton kernel does a drive with all that precedes and follows it, or cuDNN the convolution alone.

Long sums over many channels are bound by products, of which cuDNN's kernels make more in a second; what follows is then
a pass of its own (`sum_and_finish`), one launch more and the convolution's result written and read once more. Short sums
are bound by memory, which only fusing saves. Where the one ends and the other begins is predicted here, from products,
bytes and launches with the data sheet's rates of an H200, and not measured: the shares of the peak that either reaches
are those commonly reported for matrix products of these shapes, and cuDNN is taken only where it is predicted to win
clearly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lmser_kernels.chips import chip_named

FUSED, CUDNN = "triton", "cudnn"
_SHARE = {FUSED: 0.45, CUDNN: 0.7}  # of the peak rate of products
_STRIDED_SHARE = 0.5  # of cuDNN's transposed convolution with a stride
_LAUNCH = 3e-6  # seconds
_CLEARLY = 0.85  # of the other's time
_MANY = 32  # channels, of which cuDNN's tiles take this many at least


@dataclass(frozen=True)
class Plan:
    """What makes a drive, "triton" or "cudnn", and why; `follows` as in `Drive`."""

    kernel: str
    reason: str
    follows: bool


@dataclass(frozen=True)
class Drive:
    """What a drive costs: `pixels * columns * depth` products for so many `sums`, and values read and written around.

    `joined` are what the epilogue reads and the drive it writes beside the result. `bare` says that nothing is made of
    the operand while it is read; `follows` that something follows the sum, or that cuDNN's result would have to be
    brought into another layout.
    """

    transposed: bool
    strided: bool
    pixels: int
    columns: int
    channels: int
    depth: int
    sums: int
    read: int
    joined: int
    written: int
    dtype: torch.dtype
    precision: str
    bare: bool
    follows: bool


def plan(drive: Drive) -> Plan:
    """The kernel that is predicted to be faster."""
    if not drive.bare:
        return Plan(FUSED, "its operand is made while it is read", drive.follows)
    if drive.dtype == torch.float64:
        return Plan(FUSED, "float64, of which nothing is predicted of cuDNN", drive.follows)
    if min(drive.columns, drive.channels) < _MANY:
        return Plan(FUSED, f"fewer than {_MANY} channels", drive.follows)
    fused, library = _seconds(drive, FUSED), _seconds(drive, CUDNN)
    kernel = CUDNN if library < _CLEARLY * fused else FUSED
    times = f"predicted {1e6 * fused:.3g} µs fused, {1e6 * library:.3g} µs by cuDNN"
    return Plan(kernel, f"{times}{' and a pass over its result' if drive.follows else ''}", drive.follows)


def _seconds(drive: Drive, kernel: str) -> float:
    chip = chip_named("H200")
    assert chip is not None
    fused = kernel == FUSED
    # cuDNN has no product of three tf32 products: what asks for their accuracy gets plain float32.
    precision = drive.precision if fused or drive.precision == "tf32" else "ieee"
    share = _STRIDED_SHARE if not fused and drive.transposed and drive.strided else _SHARE[kernel]
    # A tile that is not full costs as much as a full one.
    columns = 16 * math.ceil(drive.columns / 16)
    products = (
        2.0 * drive.pixels * columns * drive.depth / (share * 1e9 * chip.gflops(drive.dtype, precision))
    )
    size, rate = drive.dtype.itemsize, 1e9 * chip.gbs
    around = drive.joined + drive.written
    if fused:
        return max(products, size * (drive.read + around) / rate) + _LAUNCH
    alone = max(products, size * (drive.read + drive.sums) / rate) + _LAUNCH
    return alone + (size * (drive.sums + around) / rate + _LAUNCH if drive.follows else 0.0)
