from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmser.metrics import l1, luminance, luminance_psnr, luminance_ssim, mse, psnr, psnr_of_mse, ssim


def images(n: int = 3, c: int = 3, h: int = 24, w: int = 17, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, c, h // 4 + 1, w // 4 + 1, generator=generator, dtype=torch.float64)
    smooth = F.interpolate(coarse, (h, w), mode="bilinear")
    return (smooth + 0.1 * torch.rand(n, c, h, w, generator=generator, dtype=torch.float64)) / 1.1


def test_mse_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(2, 1, 1, 2)
    y = torch.tensor([0.0, 3.0, 2.0, 2.0]).reshape(2, 1, 1, 2)
    assert mse(x, y) == (0 + 4 + 0 + 1) / 4
    assert mse(x, x) == 0.0


def test_l1_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(2, 1, 1, 2)
    y = torch.tensor([0.0, 3.0, 2.0, 2.0]).reshape(2, 1, 1, 2)
    assert l1(x, y) == l1(y, x) == (0 + 2 + 0 + 1) / 4
    assert l1(x, x) == 0.0


def test_l1_of_many_images_in_any_type_and_layout() -> None:
    x, y = images(150, 3, 12, 12, seed=7), images(150, 3, 12, 12, seed=8)
    expected = float((x - y).abs().mean())
    assert l1(x.to(memory_format=torch.channels_last), y.requires_grad_()) == pytest.approx(
        expected, rel=1e-12
    )
    assert l1(x.float(), y.bfloat16()) == pytest.approx(expected, rel=1e-2)
    black, white = (
        torch.zeros(1, 1, 4, 4, dtype=torch.uint8),
        torch.full((1, 1, 4, 4), 255, dtype=torch.uint8),
    )
    assert l1(black, white) == 255.0  # bytes do not wrap around


def test_psnr_is_the_mean_over_images() -> None:
    x = torch.zeros(2, 1, 2, 2)
    y = torch.tensor([0.1, 0.01], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert psnr(x, y, 1.0) == pytest.approx((20 + 40) / 2, abs=1e-9)
    assert psnr_of_mse(mse(x, y), 1.0) == pytest.approx(-10 * math.log10((0.01 + 0.0001) / 2))
    assert psnr(x, y, 2.0) - psnr(x, y, 1.0) == pytest.approx(20 * math.log10(2))


def test_psnr_agrees_with_scikit_image() -> None:
    skimage_metrics = pytest.importorskip("skimage.metrics")
    x, y = images(seed=1), images(seed=2)
    expected = [
        skimage_metrics.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2.0)
        for a, b in zip(x, y, strict=True)
    ]
    assert psnr(x, y, 2.0) == pytest.approx(sum(expected) / len(expected), abs=1e-9)


def test_psnr_of_mse_is_never_above_psnr() -> None:
    x, noise = images(16), torch.randn(16, 3, 24, 17, dtype=torch.float64)
    y = x + noise * torch.linspace(0.01, 0.3, 16, dtype=torch.float64)[:, None, None, None]
    assert psnr_of_mse(mse(x, y), 1.0) < psnr(x, y, 1.0) - 1


def test_equal_images() -> None:
    x = images()
    assert psnr(x, x, 1.0) == math.inf
    assert psnr_of_mse(0.0, 1.0) == math.inf


@pytest.mark.parametrize(
    ("printed_mse", "printed_psnr"),
    [(0.0060, 28.60), (0.0090, 26.86), (0.0576, 18.78), (0.0779, 17.49), (0.0067, 28.11), (0.0847, 17.13)],
)
def test_the_ranges_that_001_table_4_can_have(printed_mse: float, printed_psnr: float) -> None:
    """Range 2 is half a decibel away, on Jensen's side of the PSNR of the mean MSE; range 1 is far off."""
    gap = printed_psnr - psnr_of_mse(printed_mse, 2.0)
    assert 0.3 < gap < 0.5
    assert printed_psnr - psnr_of_mse(printed_mse, 1.0) > 6


@pytest.mark.parametrize(("printed_mse", "printed_psnr"), [(0.6186e-3, 32.13), (0.00471, 23.29)])
def test_the_range_of_001_tables_5_and_8(printed_mse: float, printed_psnr: float) -> None:
    assert psnr_of_mse(printed_mse, 1.0) == pytest.approx(printed_psnr, abs=0.06)


def ssim_by_convolution(x: Tensor, y: Tensor, data_range: float) -> float:
    """Eq. (13) of Wang et al. 2004 with an explicit 11x11 Gaussian window, over the valid positions."""
    offset = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    line = line / line.sum()
    channels = x.shape[1]
    window = torch.outer(line, line).expand(channels, 1, 11, 11)

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, window, groups=channels)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(value.mean())


@pytest.mark.parametrize("data_range", [1.0, 2.0])
@pytest.mark.parametrize("shape", [(3, 3, 24, 17), (2, 1, 11, 11), (1, 2, 40, 12)])
def test_ssim_is_the_published_formula(data_range: float, shape: tuple[int, int, int, int]) -> None:
    pytest.importorskip("skimage")
    x = images(*shape, seed=3)
    y = (x + 0.2 * images(*shape, seed=4)) / 1.2
    value = ssim(x, y, data_range)
    assert 0.1 < value < 0.999
    assert value == pytest.approx(ssim_by_convolution(x, y, data_range), abs=1e-9)
    assert ssim(y, x, data_range) == pytest.approx(value, abs=1e-12)
    assert ssim(x, x, data_range) == pytest.approx(1.0, abs=1e-12)


def test_scaling_images_and_range_together_changes_nothing() -> None:
    pytest.importorskip("skimage")
    x, y = images(seed=5), images(seed=6)
    assert psnr(2 * x - 1, 2 * y - 1, 2.0) == pytest.approx(psnr(x, y, 1.0), abs=1e-9)
    assert ssim(2 * x, 2 * y, 2.0) == pytest.approx(ssim(x, y, 1.0), abs=1e-9)


def test_layout_dtype_gradient_and_many_images() -> None:
    x, y = images(150, 3, 12, 12, seed=7), images(150, 3, 12, 12, seed=8)
    expected = float(((x - y) ** 2).mean())
    assert mse(x, y) == pytest.approx(expected, rel=1e-12)
    assert mse(x.to(memory_format=torch.channels_last), y.requires_grad_()) == pytest.approx(
        expected, rel=1e-12
    )
    assert mse(x.float(), y.bfloat16()) == pytest.approx(expected, rel=1e-2)
    black, white = (
        torch.zeros(1, 1, 4, 4, dtype=torch.uint8),
        torch.full((1, 1, 4, 4), 255, dtype=torch.uint8),
    )
    assert mse(black, white) == 255.0**2  # bytes do not wrap around
    assert psnr(black, white, 255) == 0.0


def test_nan_comes_through() -> None:
    x, y = images(), images(seed=1)
    y[0, 0, 12, 8] = math.nan
    assert math.isnan(mse(x, y))
    assert math.isnan(l1(x, y))
    assert math.isnan(psnr(x, y, 1.0))


@pytest.mark.parametrize("metric", [l1, mse, lambda x, y: psnr(x, y, 1.0), lambda x, y: ssim(x, y, 1.0)])
def test_bad_images(metric) -> None:
    x = images()
    with pytest.raises(ValueError, match=r"y must have shape \(N, C, H, W\), got \(3, 24, 17\)"):
        metric(x, x[0])
    with pytest.raises(ValueError, match=r"one shape, got \(3, 3, 24, 17\) and \(2, 3, 24, 17\)"):
        metric(x, x[:2])
    with pytest.raises(ValueError, match="no pixel"):
        metric(x[:0], x[:0])
    with pytest.raises(TypeError, match="x must be a tensor, got ndarray"):
        metric(x.numpy(), x)
    with pytest.raises(TypeError, match=r"real numbers, got torch\.complex128"):
        metric(x, x + 1j)


@pytest.mark.parametrize("data_range", [0, -1.0, math.inf, math.nan])
def test_bad_ranges(data_range: float) -> None:
    x = images()
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="data_range must be finite and above 0"):
            metric(x, x, data_range)
    with pytest.raises(ValueError, match="data_range must be finite and above 0"):
        psnr_of_mse(0.1, data_range)


def test_other_errors() -> None:
    x = images(1, 1, 10, 40)
    with pytest.raises(ValueError, match="at least 11x11 pixels, the window, got 10x40"):
        ssim(x, x, 1.0)
    with pytest.raises(TypeError, match="data_range must be a number, got str"):
        psnr(x, x, "1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mse must not be negative"):
        psnr_of_mse(-0.1, 1.0)


def test_ssim_without_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    x = images()
    with pytest.raises(ImportError, match=r"lmser\[experiments\]"):
        ssim(x, x, 1.0)
    assert mse(x, x) == 0.0


def test_luminance_by_hand() -> None:
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 100, 0]], dtype=torch.uint8)
    y = luminance(colours.reshape(4, 3, 1, 1), 255.0)
    assert y.shape == (4, 1, 1, 1)
    assert y.dtype == torch.float64
    expected = [16, 235, 16 + 65.481, 16 + 128.553 * 100 / 255]
    torch.testing.assert_close(y.flatten(), torch.tensor(expected, dtype=torch.float64))
    x = images()
    torch.testing.assert_close(255 * luminance(x, 1.0), luminance(255 * x, 255.0))


def test_luminance_is_scikit_images() -> None:
    color = pytest.importorskip("skimage.color")
    x = images()
    expected = color.rgb2ycbcr(x.numpy(), channel_axis=1)[:, :1]
    torch.testing.assert_close(luminance(x, 1.0) * 255, torch.from_numpy(expected), rtol=0, atol=1e-9)


def test_the_border_is_left_out() -> None:
    pytest.importorskip("skimage")
    x, y = images(seed=1), images(seed=2)
    for border in (0, 2, 3):
        inside = (..., slice(border, 24 - border), slice(border, 17 - border))
        a, b = luminance(x, 1.0)[inside], luminance(y, 1.0)[inside]
        assert luminance_psnr(x, y, 1.0, border) == pytest.approx(psnr(a, b, 1.0), rel=1e-12)
        assert luminance_ssim(x, y, 1.0, border) == pytest.approx(ssim(a, b, 1.0), rel=1e-12)
    frame = x.clone()
    frame[:, :, :2] = frame[:, :, -2:] = frame[..., :2] = frame[..., -2:] = 0
    assert luminance_psnr(x, frame, 1.0) == math.inf
    assert luminance_psnr(x, frame, 1.0, border=1) < 40
    assert luminance_psnr(255 * x, 255 * y, 255.0) == pytest.approx(luminance_psnr(x, y, 1.0))


def test_what_luminance_refuses() -> None:
    x = images()
    with pytest.raises(
        ValueError, match=r"luminance: x must have shape \(N, 3, H, W\), got \(3, 1, 24, 17\)"
    ):
        luminance(x[:, :1], 1.0)
    with pytest.raises(ValueError, match="luminance: data_range must be finite and above 0, got 0"):
        luminance(x, 0.0)
    for function in (luminance_psnr, luminance_ssim):
        name = function.__name__
        with pytest.raises(ValueError, match=f"{name}: x and y must have one shape"):
            function(x, x[:2], 1.0)
        for border in (-1, 9):
            with pytest.raises(
                ValueError, match=f"{name}: border must not be negative and leave some of 24x17"
            ):
                function(x, x, 1.0, border)
        with pytest.raises(TypeError, match=f"{name}: border must be an int, got float"):
            function(x, x, 1.0, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ssim: images must be at least 11x11 pixels"):
        luminance_ssim(x, x, 1.0, 4)
