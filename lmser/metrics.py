"""How near a reconstruction is to its image: L1, MSE, PSNR and SSIM, the last two with their range stated.

All four take `(N, C, H, W)` tensors of one shape and any real dtype, work in float64 on the CPU, and return
a Python float: the mean over the images. Pixels are taken as they are: nothing is clipped to the range, so a
metric of clipped images wants clipped input.

`data_range` is the span of the pixel values, highest minus lowest possible: 1 for images in [0, 1], 2 for
images in [-1, 1], 255 for bytes. It is never guessed, because PSNR and SSIM are meaningless without it:
doubling the range alone adds 6.02 dB.

Which convention the paper uses (001, "Deep Lmser learning", Table 4). With range 2, `psnr_of_mse` of the
printed MSE is below the printed PSNR in every cell:

    =========  ======  ============  =================================
    n, model   MSE     PSNR printed  10 log10(4 / MSE)
    =========  ======  ============  =================================
    400 CL     0.0060  28.60         28.24 (28.20 to 28.28 by rounding)
    400 CL-w   0.0090  26.86         26.48
    400 CL-n   0.0576  18.78         18.42
    400 CAE    0.0779  17.49         17.11
    100 CL     0.0067  28.11         27.76
    =========  ======  ============  =================================

Over all fifteen cells the printed PSNR is 0.35 to 0.50 dB above; rounding explains 0.07 of it, and no other
usual range is nearer (range 1 is another 6 dB away). The sign is that of Jensen's inequality, mean(-log mse)
>= -log mean(mse), so the table is nearer to a mean of PSNRs over images than to the PSNR of the mean MSE, and
`psnr` averages per image; `psnr_of_mse` is there for the other reading. How much the two differ depends on
the images (0.6 to 0.8 dB for block averages of 96x96 photographs), so a difference below a decibel from the
table says nothing about a model. Tables 5 and 8 (images in [0, 1]) agree with the PSNR of the mean MSE: 32.13
dB against 32.09, 23.29 against 23.27.

Super-resolution is usually measured on luminance with a border left out: `luminance_psnr` and
`luminance_ssim`. 004 Table 1 does not say what it measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lmser._extras import require

__all__ = [
    "l1",
    "luminance",
    "luminance_psnr",
    "luminance_ssim",
    "mse",
    "psnr",
    "psnr_of_mse",
    "ssim",
]

# Wang et al. 2004: a Gaussian window of sigma 1.5, cut at 3.5 sigma by scikit-image, is 11 pixels wide.
_SSIM_WINDOW = 11

# Images turned into float64 at a time: memory stays small for a whole test set.
_CHUNK = 64


def _check_pair(function: str, x: Tensor, y: Tensor) -> None:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")
        if value.dim() != 4:
            raise ValueError(f"{function}: {name} must have shape (N, C, H, W), got {tuple(value.shape)}")
        if value.is_complex() or value.dtype is torch.bool:
            raise TypeError(f"{function}: {name} must hold real numbers, got {value.dtype}")
    if x.shape != y.shape:
        raise ValueError(
            f"{function}: x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.numel() == 0:
        raise ValueError(
            f"{function}: x and y hold no pixel (shape {tuple(x.shape)}), the mean is not defined"
        )


def _check_range(function: str, data_range: float) -> float:
    if isinstance(data_range, bool) or not isinstance(data_range, (int, float)):
        raise TypeError(f"{function}: data_range must be a number, got {type(data_range).__name__}")
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"{function}: data_range must be finite and above 0, got {data_range}")
    return float(data_range)


def _chunks(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for a, b in zip(torch.split(x.detach(), _CHUNK), torch.split(y.detach(), _CHUNK), strict=True):
        yield a.to("cpu", torch.float64), b.to("cpu", torch.float64)


def _mse_per_image(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([(a - b).square().mean(dim=(1, 2, 3)) for a, b in _chunks(x, y)])


def l1(x: Tensor, y: Tensor) -> float:
    """Mean absolute error per pixel and channel, `mean(|x - y|)` (001 Table 5, which prints it times 100).

    Errors: as `mse`. NaN in, NaN out.
    """
    _check_pair("l1", x, y)
    return float(torch.cat([(a - b).abs().mean(dim=(1, 2, 3)) for a, b in _chunks(x, y)]).mean())


def mse(x: Tensor, y: Tensor) -> float:
    """Mean squared error per pixel and channel, `mean((x - y)**2)`, without the ½ of the loss (001 Table 4).

    Errors: TypeError for what is not a real tensor; ValueError for a shape that is not `(N, C, H, W)`, for
    two shapes, for no pixel. NaN in, NaN out.
    """
    _check_pair("mse", x, y)
    return float(_mse_per_image(x, y).mean())


def psnr_of_mse(mse: float, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB of one mean squared error, `10 log10(data_range**2 / mse)`; inf for
    0.
    """
    data_range = _check_range("psnr_of_mse", data_range)
    if mse < 0:
        raise ValueError(f"psnr_of_mse: mse must not be negative, got {mse}")
    return math.inf if mse == 0 else 10.0 * math.log10(data_range * data_range / mse)


def psnr(x: Tensor, y: Tensor, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, `10 log10(data_range**2 / mse_n)` for every image n, then the mean
    over n.

    One pair of equal images makes the mean infinite. The PSNR of the mean MSE, never above this one, is
    `psnr_of_mse(mse(x, y), data_range)`; the module's docstring says which of the two the paper prints.

    Errors: as `mse`; ValueError for a `data_range` that is not finite and positive.
    """
    _check_pair("psnr", x, y)
    data_range = _check_range("psnr", data_range)
    ratio = data_range * data_range / _mse_per_image(x, y)
    return float((10.0 * ratio.log10()).mean())


def ssim(x: Tensor, y: Tensor, data_range: float) -> float:
    """Structural similarity, the mean over channels, positions and images.

    As Wang, Bovik, Sheikh and Simoncelli define it (IEEE Trans. Image Processing 13(4), 2004): a Gaussian
    window of sigma 1.5, population covariance, K1 = 0.01, K2 = 0.03, positions whose window leaves the image
    left out. Computed by `skimage.metrics.structural_similarity`, channel by channel. Symmetric in x and y, 1
    for equal images.

    Errors: as `psnr`; ValueError for images under 11x11, the window; ImportError naming the extra if
    scikit-image is not installed.
    """
    _check_pair("ssim", x, y)
    data_range = _check_range("ssim", data_range)
    height, width = x.shape[-2:]
    if min(height, width) < _SSIM_WINDOW:
        raise ValueError(f"ssim: images must be at least 11x11 pixels, the window, got {height}x{width}")
    structural_similarity = require("skimage.metrics").structural_similarity
    total = 0.0
    for a, b in _chunks(x, y):
        for image, other in zip(a.numpy(), b.numpy(), strict=True):
            total += float(
                structural_similarity(
                    image,
                    other,
                    data_range=data_range,
                    channel_axis=0,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
            )
    return total / x.shape[0]


def luminance(x: Tensor, data_range: float) -> Tensor:
    """The Y of YCbCr (ITU-R BT.601, studio range) of RGB images on [0, data_range], float64 `(N, 1, H, W)`.

    `Y = (16 data_range + 65.481 R + 128.553 G + 24.966 B) / 255`, from 16/255 to 235/255 of the range: MATLAB's
    `rgb2ycbcr` without its rounding. Errors: TypeError or ValueError for images that are not real numbers of
    shape `(N, 3, H, W)`, or a `data_range` that is not finite and positive.
    """
    _check_pair("luminance", x, x)
    data_range = _check_range("luminance", data_range)
    if x.shape[1] != 3:
        raise ValueError(f"luminance: x must have shape (N, 3, H, W), got {tuple(x.shape)}")
    red, green, blue = x.detach().double().cpu().unbind(dim=1)
    return ((16 * data_range + 65.481 * red + 128.553 * green + 24.966 * blue) / 255).unsqueeze(1)


def luminance_psnr(x: Tensor, y: Tensor, data_range: float, border: int = 2) -> float:
    """`psnr` of the `luminance` of RGB images on [0, data_range] with `border` pixels left out at each edge.

    The usual measure of super-resolution, whose border is its scale. The range stays that of RGB although Y
    has less. Errors: as `psnr` and `luminance`; TypeError or ValueError for a border that is negative or
    leaves no pixel.
    """
    x, y = _inner_luminance("luminance_psnr", x, y, data_range, border)
    return psnr(x, y, data_range)


def luminance_ssim(x: Tensor, y: Tensor, data_range: float, border: int = 2) -> float:
    """`ssim` of the `luminance` of RGB images on [0, data_range] with `border` pixels left out at each edge.

    Errors: as `ssim` and `luminance_psnr`; what is left must be at least 11x11.
    """
    x, y = _inner_luminance("luminance_ssim", x, y, data_range, border)
    return ssim(x, y, data_range)


def _inner_luminance(
    function: str, x: Tensor, y: Tensor, data_range: float, border: int
) -> tuple[Tensor, Tensor]:
    _check_pair(function, x, y)
    if isinstance(border, bool) or not isinstance(border, int):
        raise TypeError(f"{function}: border must be an int, got {type(border).__name__}")
    height, width = x.shape[-2:]
    if not 0 <= 2 * border < min(height, width):
        raise ValueError(
            f"{function}: border must not be negative and leave some of {height}x{width} pixels, got {border}"
        )
    inner = slice(border, height - border), slice(border, width - border)
    return luminance(x, data_range)[..., *inner], luminance(y, data_range)[..., *inner]
