"""What the experiments on photographs share: the four networks of 001, and how a reconstruction is measured.

Images are in [-1, 1] throughout, as in 001 Table 4, so that PSNR and SSIM are taken with data range 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lmser import metrics
from lmser.models import CLmser

__all__ = [
    "CHANNELS",
    "DATA_RANGE",
    "IMAGE_RANGE",
    "METRICS",
    "STRIDES",
    "VARIANTS",
    "build_variant",
    "measure",
    "mse_of_loss",
    "reconstruct",
]

IMAGE_RANGE = (-1.0, 1.0)
DATA_RANGE = IMAGE_RANGE[1] - IMAGE_RANGE[0]

METRICS = ("MSE", "SSIM", "PSNR")

# 001 Table 1: name -> (duality in connection weights, duality in paired neurons).
VARIANTS: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {"CLmser": (True, True), "CLmser-w": (False, True), "CLmser-n": (True, False), "CAE": (False, False)}
)

# 001 Table 2, the STL10 line.
CHANNELS = (16, 32, 64, 128, 256)
STRIDES = (1, 2, 2, 2, 2)

_CHUNK = 50


def build_variant(name: str, init: str = "default") -> CLmser:
    """One of `VARIANTS` with the layers of 001 Table 2 (STL10), on the CPU. ValueError listing the names
    there are."""
    if name not in VARIANTS:
        raise ValueError(f"there is no variant {name!r}; there are {', '.join(VARIANTS)}")
    dcw, dpn = VARIANTS[name]
    return CLmser(3, CHANNELS, STRIDES, dcw=dcw, dpn=dpn, init=init)


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor) -> Tensor:
    """Reconstructions of `images` ``(N, C, H, W)``, on the CPU; a model may return a tensor or a
    `Reflected`."""
    device = next(model.parameters()).device
    parts = []
    for part in images.split(_CHUNK):
        output = model(part.to(device))
        parts.append(getattr(output, "reconstruction", output).cpu())
    return torch.cat(parts)


def measure(model: nn.Module, images: Tensor) -> dict[str, float]:
    """The `METRICS` of 001 Table 4 of a model's reconstructions of `images` in [-1, 1].

    Nothing is clipped to the range first: an overshoot is an error like any other.
    """
    found = reconstruct(model, images)
    return {
        "MSE": metrics.mse(found, images),
        "SSIM": metrics.ssim(found, images, DATA_RANGE),
        "PSNR": metrics.psnr(found, images, DATA_RANGE),
    }


def mse_of_loss(curve: list[tuple[int, float]], pixels: int) -> list[tuple[int, float]]:
    """A curve of J (001 Eq. 1, summed over `pixels` values) as one of the MSE per value, ``2 J / pixels``."""
    return [(step, 2 * loss / pixels) for step, loss in curve]
