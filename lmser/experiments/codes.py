"""Codes of trained reflection networks: what images give them, and which values to try in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Codes", "codes_of", "most_varied", "random_styles", "range_values", "style_values", "unit_range"]

_CHUNK = 500


@dataclass(frozen=True)
class Codes:
    """Codes of labelled images, on the CPU: `values` ``(N, C)`` or ``(N, C, H, W)``, `labels` ``(N,)``."""

    values: Tensor
    labels: Tensor


@torch.no_grad()
def codes_of(network: nn.Module, images: Tensor, labels: Tensor) -> Codes:
    """The codes of `images` ``(N, C, H, W)``, without noise on the style units (evaluation mode)."""
    device = next(network.parameters()).device
    parts = [network(part.to(device)).code.cpu() for part in images.split(_CHUNK)]
    return Codes(torch.cat(parts).contiguous(), labels.cpu())


def unit_range(codes: Codes, unit: int) -> tuple[float, float]:
    """The 1st and the 99th percentile of a unit over the images (and positions) of `codes`."""
    found = codes.values[:, unit].flatten().sort().values
    last = len(found) - 1
    return float(found[round(0.01 * last)]), float(found[round(0.99 * last)])


def most_varied(codes: Codes, count: int = 10) -> list[int]:
    """The `count` units with the largest spread over the images and positions, in their own order."""
    spread = codes.values.transpose(0, 1).flatten(1).std(1)
    return sorted(spread.argsort(descending=True, stable=True)[:count].tolist())


def range_values(codes: Codes, units: Sequence[int], count: int) -> Tensor:
    """Values ``(U, count)``, each unit's from end to end of `unit_range`."""
    return torch.stack([torch.linspace(*unit_range(codes, unit), count) for unit in units])


def random_styles(known: Codes, units: int, count: int, seed: int) -> Tensor:
    """`count` styles ``(count, units)``: normal, with the mean and the variance that the style units have
    over the known images, their training noise of variance 1 included."""
    values = known.values[:, -units:]
    noise = torch.randn(count, units, generator=torch.Generator().manual_seed(seed))
    return values.mean(0) + noise * (values.var(0) + 1).sqrt()


def style_values(known: Codes, units: int, count: int = 7) -> Tensor:
    """Styles ``(units, count, units)``: along one unit from two standard deviations below its mean to two
    above, as in `random_styles`, the other units at their mean."""
    values = known.values[:, -units:]
    grid = values.mean(0).repeat(units, count, 1)
    for unit in range(units):
        grid[unit, :, unit] += torch.linspace(-2, 2, count) * (values[:, unit].var() + 1).sqrt()
    return grid
