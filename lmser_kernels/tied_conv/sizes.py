"""Sizes of the tied convolution's two directions, and the checks that make them meet.

    conv     pooled = floor(H / pool),  out = floor((pooled + 2 padding - k) / stride) + 1
    convᵀ    (H - 1) stride - 2 padding + k  <=  out  <  the same + stride,   result = out · upsample

Every `out` of the second line is a size that the first line maps back to `H`.
"""

from __future__ import annotations

from torch import Tensor

from lmser_kernels.arguments import Pair, four_dimensional, pair


def check_weight(weight: Tensor) -> None:
    four_dimensional("weight", weight, "(C_out, C_in, kh, kw)")
    if weight.shape[0] < 1 or weight.shape[1] < 1 or weight.shape[2] < 1 or weight.shape[3] < 1:
        raise ValueError(f"weight must not be empty; got shape {tuple(weight.shape)}")


def conv_size(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    pool: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Height and width of `conv(avg_pool(x))`; `ValueError` naming the argument that does not fit."""
    four_dimensional("x", x, "(N, C_in, H, W)")
    check_weight(weight)
    _, channels, height, width = x.shape
    if channels != weight.shape[1]:
        raise ValueError(
            f"x must have the weight's C_in = {weight.shape[1]} channels; "
            f"got x {tuple(x.shape)} with weight {tuple(weight.shape)}"
        )
    height, width = height // pool[0], width // pool[1]
    if height < 1 or width < 1:
        raise ValueError(f"x must be at least as large as the pool {pool}; got x {tuple(x.shape)}")
    down, across = height + 2 * padding[0] - weight.shape[2], width + 2 * padding[1] - weight.shape[3]
    if down < 0 or across < 0:
        raise ValueError(
            f"weight's kernel must not be larger than the padded input; got {tuple(weight.shape[2:])} with "
            f"input {(height, width)} (after pooling) and padding {padding}"
        )
    return down // stride[0] + 1, across // stride[1] + 1


def conv_transpose_size(
    z: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_size: Pair | None = None,
) -> tuple[int, int]:
    """Height and width of `convᵀ(z)`: `output_size` (`ValueError` if out of reach) or the smallest."""
    four_dimensional("z", z, "(N, C_out, H, W)")
    check_weight(weight)
    _, channels, height, width = z.shape
    if channels != weight.shape[0]:
        raise ValueError(
            f"z must have the weight's C_out = {weight.shape[0]} channels; "
            f"got z {tuple(z.shape)} with weight {tuple(weight.shape)}"
        )
    if height < 1 or width < 1:
        raise ValueError(f"z must not have an empty height or width; got {tuple(z.shape)}")
    if output_size is None:
        smallest = smallest_size(z, weight, stride, padding)
        if smallest[0] < 1 or smallest[1] < 1:
            raise ValueError(
                f"padding {padding} leaves nothing of the output for z {tuple(z.shape)} with kernel "
                f"{tuple(weight.shape[2:])}, stride {stride}: its size would be {smallest}"
            )
        return smallest
    size = pair("output_size", output_size, 1)
    # Written as the convolution's own formula, which a trace with symbolic sizes knows to be z's.
    down, across = size[0] + 2 * padding[0] - weight.shape[2], size[1] + 2 * padding[1] - weight.shape[3]
    if down // stride[0] + 1 != height or across // stride[1] + 1 != width:
        smallest = smallest_size(z, weight, stride, padding)
        largest = (smallest[0] + stride[0] - 1, smallest[1] + stride[1] - 1)
        raise ValueError(
            f"output_size (before upsampling) must be from {smallest} to {largest} for z {tuple(z.shape)} "
            f"with kernel {tuple(weight.shape[2:])}, stride {stride}, padding {padding}; got {size}"
        )
    return size


def smallest_size(
    z: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    """Of the sizes that the convolution maps to `z`'s, the smallest."""
    return (
        (z.shape[2] - 1) * stride[0] - 2 * padding[0] + weight.shape[2],
        (z.shape[3] - 1) * stride[1] - 2 * padding[1] + weight.shape[3],
    )
