"""Max pooling in eager PyTorch: the specification in code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, pair

MOST_PLACES = 255  # of a window: a place is one byte


def max_pool2d_act(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    *,
    activation: str = "identity",
    slope: float | None = None,
    return_places: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`h = f(max_pool(x))`; with `return_places`, also the winners' places in their windows, uint8 `(N, H', W',
    C)`, counted row by row."""
    kernel, step, pad = windows(kernel_size, stride, padding)
    if x.numel() == 0:
        height, width = pooled_size(x.shape[2:], kernel, step, pad)
        largest = x.new_empty((*x.shape[:2], height, width)) + 0 * x.sum()
        index = torch.empty(largest.shape, dtype=torch.int64, device=x.device)
    else:
        largest, index = F.max_pool2d(x, kernel, step, pad, return_indices=True)
    h = activations.apply(largest, activation, slope)
    if not return_places:
        return h
    rows, columns = index // x.shape[3], index % x.shape[3]
    rows = rows - (torch.arange(h.shape[2], device=x.device) * step[0] - pad[0]).view(-1, 1)
    columns = columns - (torch.arange(h.shape[3], device=x.device) * step[1] - pad[1])
    return h, (rows * kernel[1] + columns).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def max_unpool2d(
    z: Tensor,
    places: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    *,
    output_size: Pair,
) -> Tensor:
    """Each value of `z` added at its winner's place in a map of `output_size`, zero elsewhere; a place outside its
    window, or on padding, is none."""
    kernel, step, pad = windows(kernel_size, stride, padding)
    height, width = pair("output_size", output_size, 1)
    place = places.permute(0, 3, 1, 2).to(torch.int64)
    rows = place // kernel[1] + (torch.arange(z.shape[2], device=z.device) * step[0] - pad[0]).view(-1, 1)
    columns = place % kernel[1] + (torch.arange(z.shape[3], device=z.device) * step[1] - pad[1])
    there = (
        (place < kernel[0] * kernel[1]) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    )
    at = torch.where(there, rows * width + columns, 0)
    flat = z.new_zeros((z.shape[0], z.shape[1], height * width))
    return flat.scatter_add(2, at.flatten(2), torch.where(there, z, 0).flatten(2)).unflatten(
        2, (height, width)
    )


def windows(kernel_size: Pair, stride: Pair | None, padding: Pair) -> tuple[tuple[int, int], ...]:
    """`kernel_size`, `stride` (None: the same) and `padding` as pairs, checked."""
    kernel = pair("kernel_size", kernel_size, 1)
    step = kernel if stride is None else pair("stride", stride, 1)
    pad = pair("padding", padding, 0)
    if kernel[0] * kernel[1] > MOST_PLACES:
        raise ValueError(f"kernel_size must have at most {MOST_PLACES} places; got {kernel_size!r}")
    if 2 * pad[0] > kernel[0] or 2 * pad[1] > kernel[1]:
        raise ValueError(f"padding must be at most half of kernel_size {kernel}; got {padding!r}")
    return kernel, step, pad


def pooled_size(
    size: torch.Size | tuple[int, ...],
    kernel: tuple[int, ...],
    step: tuple[int, ...],
    pad: tuple[int, ...],
) -> tuple[int, int]:
    """`floor((size + 2 padding - kernel) / stride) + 1`; ValueError where no window fits, or one holds padding
    alone."""
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"what is pooled must have at least one pixel; got a map of {tuple(size)}")
    found = [(size[i] + 2 * pad[i] - kernel[i]) // step[i] + 1 for i in (0, 1)]
    if size[0] + 2 * pad[0] < kernel[0] or size[1] + 2 * pad[1] < kernel[1]:
        raise ValueError(
            f"kernel_size {tuple(kernel)} is larger than the padded input "
            f"({size[0] + 2 * pad[0]}, {size[1] + 2 * pad[1]})"
        )
    return found[0], found[1]
