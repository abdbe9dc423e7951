"""Weights of hidden units as pictures over the visible layer (004 Figs. 3 and 8c): sign by colour, magnitude by the
area of a square, or by how strong the colour is where there are too many for squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmser.experiments.figures import _canvas, _svg

__all__ = ["evidence_pictures", "signed_colours", "strongest_units", "weight_squares"]

# Okabe and Ito's blue and vermilion: apart for all usual forms of colour blindness.
_POSITIVE, _NEGATIVE = "#0072B2", "#D55E00"
_FRAME = "#888888"
_MISSING = (0.84, 0.15, 0.16)


def strongest_units(weight: Tensor, count: int) -> Tensor:
    """The rows of `weight` ``(units, visible)`` with the largest norms, at most `count`, strongest first."""
    return weight.detach().flatten(1).norm(dim=1).argsort(descending=True, stable=True)[:count]


def weight_squares(name: str, weights: Tensor, *, columns: int) -> bytes:
    """One framed array per unit of `weights` ``(K, H, W)``, a square per weight as in 004 Fig. 3: blue where it is
    positive, vermilion where it is negative, its area proportional to the magnitude, all units on one scale.

    Raises ValueError for another shape, no unit, or weights that are not finite.
    """
    if weights.dim() != 3 or weights.numel() == 0 or columns < 1:
        raise ValueError(
            f"weight_squares: expected (K, H, W) and columns, got {tuple(weights.shape)}, {columns}"
        )
    if not bool(weights.isfinite().all()):
        raise ValueError("weight_squares: expected finite weights")
    weights = weights.detach().cpu().double()
    count, height, width = weights.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    largest = float(weights.abs().max()) or 1.0
    cell, gap = 0.16, 1.0  # inches, and cells between two arrays
    size = (columns * (width + gap) * cell, rows * (height + gap) * cell)
    with _canvas(name, *size) as figure:
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.set_xlim(0, columns * (width + gap))
        axis.set_ylim(rows * (height + gap), 0)
        for unit in range(count):
            left = (unit % columns) * (width + gap) + gap / 2
            top = (unit // columns) * (height + gap) + gap / 2
            around = ((0, 0), (width, 0), (width, height), (0, height))
            axis.fill(
                [left + x for x, _ in around],
                [top + y for _, y in around],
                fill=False,
                edgecolor=_FRAME,
                linewidth=0.6,
            )
            for row in range(height):
                for column in range(width):
                    value = float(weights[unit, row, column])
                    half = 0.46 * math.sqrt(abs(value) / largest)
                    if half < 0.02:
                        continue  # nothing to be seen
                    x, y = left + column + 0.5, top + row + 0.5
                    axis.fill(
                        (x - half, x + half, x + half, x - half),
                        (y - half, y - half, y + half, y + half),
                        color=_POSITIVE if value > 0 else _NEGATIVE,
                        linewidth=0,
                    )
        return _svg(figure)


def signed_colours(weights: Tensor) -> Tensor:
    """Weights ``(K, H, W)`` as pictures ``(K, 3, H, W)`` on [0, 1]: white for 0, towards blue for positive and
    vermilion for negative ones, each unit on its own scale."""
    weights = weights.detach().cpu().float()
    scale = weights.abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny).view(-1, 1, 1)
    strength = (weights.abs() / scale).unsqueeze(1)
    colours = [
        torch.tensor([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for text in (_POSITIVE, _NEGATIVE)
    ]
    ends = torch.where((weights > 0).unsqueeze(1), colours[0].view(3, 1, 1), colours[1].view(3, 1, 1))
    return 1 - strength * (1 - ends)


def evidence_pictures(pictures: Tensor, observed: Tensor) -> Tensor:
    """Pictures ``(N, 1, H, W)`` on [0, 1] as ``(N, 3, H, W)``, red where they are not `observed`, as in 004's
    figures."""
    red = pictures.new_tensor(_MISSING).view(3, 1, 1)
    return torch.where(observed, pictures.clamp(0, 1), red)
