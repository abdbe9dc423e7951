"""How near completions are to their images: the mean over the test images, and its standard error.

PSNR is an image's own and then averaged; its range is that of the images, 2 on [-1, 1], which gives the number that
[0, 1] with range 1 would. L1 is the sum over an image's values of |error| on [0, 1]: 004 does not define that of
its Tables 2 and 3, but 10.4 beside 24.4 dB cannot be a mean on [0, 1], and the sum comes out at its size.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lmser import metrics
from lmser.experiments.image_damage import IMAGE_RANGE

__all__ = ["MEASURES", "PerImage", "standard_error"]

MEASURES = ("PSNR", "SSIM", "L1")
ERROR = " s.e."

_SPAN = IMAGE_RANGE[1] - IMAGE_RANGE[0]


@dataclass
class PerImage:
    """The measures of every image, which come a few at a time."""

    _values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Both ``(N, C, H, W)`` on `IMAGE_RANGE`. Nothing is clipped."""
        found, wanted = found.detach().cpu(), wanted.cpu()
        for one, other in zip(found.split(1), wanted.split(1), strict=True):
            self._values["PSNR"].append(metrics.psnr(one, other, _SPAN))
            self._values["SSIM"].append(metrics.ssim(one, other, _SPAN))
            self._values["L1"].append(metrics.l1(one, other) * one.numel() / _SPAN)

    def means(self, prefix: str = "") -> dict[str, float]:
        """Mean and standard error of each measure. ValueError where nothing was added."""
        found = {}
        for name, values in self._values.items():
            if not values:
                raise ValueError("PerImage: no image was added, the means are not defined")
            found[f"{prefix}{name}"] = math.fsum(values) / len(values)
            found[f"{prefix}{name}{ERROR}"] = standard_error(values)
        return found


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean, NaN of fewer than two values."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))
