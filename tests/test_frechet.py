"""The Fréchet distance against closed forms and scipy, and that its name says what made it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lmser.data import BadData, MissingData
from lmser.features import VGG16Features
from lmser.frechet import FrechetDistance, InceptionFeatures, PooledVGG16, frechet_distance


def whitened(n: int, d: int) -> Tensor:
    """`n` samples whose mean is 0 and whose covariance is the identity, exactly."""
    x = torch.randn(n, d, dtype=torch.float64)
    x = x - x.mean(0)
    return torch.linalg.qr(x).Q * math.sqrt(n - 1)


def test_closed_form_of_diagonal_gaussians() -> None:
    """‖m - m'‖² + Σ (s - s')² for standard deviations s and s'."""
    s, t = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 2.0, 0.0, 1.0]).double()
    shift = torch.tensor([1.0, 0.0, -2.0, 0.5]).double()
    x, y = whitened(50, 4) * s, whitened(40, 4) * t + shift
    assert frechet_distance(x, y) == pytest.approx((1 + 4 + 0.25) + (1 + 0 + 0.25 + 4), rel=1e-12)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-12)


def test_invariant_under_rotation_and_shift() -> None:
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randn(70, 5, dtype=torch.float64) * 2
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    moved = frechet_distance(x @ rotation + 3, y @ rotation + 3)
    assert moved == pytest.approx(frechet_distance(x, y), rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 6), (100, 5, 8), (4, 5, 8), (2, 2, 3), (7, 7, 7)])
@pytest.mark.filterwarnings("ignore:frechet_distance:UserWarning")
def test_against_the_matrix_root(n: int, m: int, d: int) -> None:
    x = torch.randn(n, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64)
    y = torch.randn(m, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64) + 1
    c, k = x.T.cov(), y.T.cov()
    values, vectors = torch.linalg.eigh(c)
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ k @ root).clamp(min=0).sqrt()
    expected = (x.mean(0) - y.mean(0)).square().sum() + c.trace() + k.trace() - 2 * overlap.sum()
    # The root of a singular matrix has half the digits; the singular values have them all.
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-10 if min(n, m) > d else 1e-6)


def test_against_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x = torch.randn(40, 6, dtype=torch.float64)
    y = torch.randn(30, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 1
    c, k = x.T.cov().numpy(), y.T.cov().numpy()
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + (c + k - 2 * linalg.sqrtm(c @ k).real).trace()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.filterwarnings("ignore:frechet_distance:UserWarning")
@pytest.mark.parametrize("n", [3, 300])
def test_a_set_is_at_no_distance_from_itself(n: int) -> None:
    x = torch.randn(n, 20) * 100
    assert 0 <= frechet_distance(x, x) < 1e-9
    assert 0 <= frechet_distance(x, x.flip(0)) < 1e-9


def test_few_samples_are_biased_and_said_to_be() -> None:
    few, others, many = torch.randn(8, 64), torch.randn(8, 64), torch.randn(4000, 64)
    message = (
        r"8 and 8 samples of 64 features: the covariances are singular and the distance is biased upwards"
    )
    with pytest.warns(UserWarning, match=message):
        biased = frechet_distance(few, others)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        better = frechet_distance(many, torch.randn(4000, 64))
    assert biased > 20 * better  # both pairs are of one distribution


def test_nan_comes_through() -> None:
    x = torch.randn(30, 4)
    for spoilt in (math.nan, math.inf):
        y = x.clone()
        y[3, 2] = spoilt
        assert math.isnan(frechet_distance(x, y))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(5, 3), torch.randn(5, 4), "y: expected 3 features as in x, got 4"),
        (torch.randn(1, 3), torch.randn(5, 3), r"x: expected shape \(samples, features\), at least 2 and 1"),
        (torch.randn(5, 3), torch.randn(5), r"y: expected shape \(samples, features\), .* got \(5,\)"),
        (
            torch.ones(5, 3, dtype=torch.int64),
            torch.randn(5, 3),
            r"x: .* floating point tensor, got torch\.int64",
        ),
        (torch.randn(5, 3), [1.0], "y: expected a floating point tensor, got list"),
    ],
)
def test_refuses_bad_features(x, y, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        frechet_distance(x, y)


# ------------------------------------------------------------------------------------------- of images


class Fake(nn.Module):
    """Has the interface of the Inception file: bytes in, features out where they are asked for."""

    def __init__(self, features: int = 2048) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8, "not bytes"
        means = x.to(torch.float32).mean((2, 3))
        features = means.repeat(1, self.features)[:, : self.features]
        return features if return_features else features[:, :10]


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def script(module: nn.Module, file: Path) -> Path:
    file.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script
        torch.jit.script(module).save(file)
    return file


@pytest.mark.filterwarnings("ignore:frechet_distance:UserWarning")
def test_fid_with_the_users_inception_file(tmp_path: Path) -> None:
    file = script(Fake(), tmp_path / "weights" / "inception-2015-12-05.pt")
    distance = FrechetDistance(tmp_path)
    assert (distance.name, distance.num_features, distance.file) == ("FID", 2048, file)
    assert distance.sha256 is not None
    assert len(distance.sha256) == 64
    images = torch.rand(50, 3, 6, 5)
    rows = distance.features(images, batch_size=7)
    levels = (images * 255).round().double().mean((2, 3))
    assert rows.dtype is torch.float64
    torch.testing.assert_close(rows, levels.repeat(1, 683)[:, :2048], rtol=1e-6, atol=0)
    # Darker by 30 levels in every channel: the covariances agree, 2048 means differ by 30.
    images = (images * 200).round() / 255
    assert distance(images, images + 30 / 255) == pytest.approx(2048 * 30**2, rel=1e-4)
    again = FrechetDistance(weights=file)
    assert again.name == "FID"
    assert torch.equal(again.features(images[:, :1]), again.features(images[:, :1].expand(-1, 3, -1, -1)))


@pytest.mark.filterwarnings("ignore:frechet_distance:UserWarning")
def test_the_substitute_never_calls_itself_fid(tmp_path: Path) -> None:
    distance = FrechetDistance(tmp_path)
    assert distance.name == "Fréchet distance (pooled VGG-16, random weights (seed 0))"
    assert (distance.file, distance.sha256, distance.num_features) == (None, None, 448)
    images = torch.rand(12, 3, 16, 16)
    rows = distance.features(images, batch_size=5)
    pools = VGG16Features()(images)
    expected = torch.cat([pool.mean((2, 3)) for pool in pools], 1).double()
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(PooledVGG16(VGG16Features())(images).double(), expected)
    noisy = [(images + amount * torch.randn_like(images)).clamp(0, 1) for amount in (0.0, 0.05, 0.2)]
    distances = [distance(images, other) for other in noisy]
    assert distances[0] < 1e-9
    assert distances[0] < distances[1] < distances[2]
    assert "12 and 12 samples of 448 features" in distance.note(12, 12)
    assert distance.note(449, 500) == ""


def test_nan_images_give_nan_features(tmp_path: Path) -> None:
    file = script(Fake(), tmp_path / "inception.pt")
    images = torch.rand(4, 3, 8, 8)
    images[2, 1, 0, 0] = math.nan
    for distance in (FrechetDistance(weights=file), FrechetDistance()):
        assert distance.features(images).isnan().any(1).tolist() == [False, False, True, False]


def test_refuses_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="weights: there is no file"):
        FrechetDistance(weights=tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("not a program")
    with pytest.raises(BadData, match=r"text\.pt: not the TorchScript of the FID's Inception network"):
        InceptionFeatures(tmp_path / "text.pt")
    with pytest.raises(BadData, match=r"foreign\.pt: not the TorchScript of the FID's Inception network"):
        InceptionFeatures(script(Foreign(), tmp_path / "foreign.pt"))
    with pytest.raises(BadData, match=r"short\.pt: expected 2048 features, got shape \(1, 1000\)"):
        InceptionFeatures(script(Fake(1000), tmp_path / "short.pt"))


def test_refuses_bad_images() -> None:
    distance, images = FrechetDistance(), torch.rand(4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"images: expected shape \(N, 1 or 3, H, W\), got \(4, 2, 8, 8\)"):
        distance.features(images[:, :2])
    with pytest.raises(ValueError, match=r"images: expected shape .* got \(0, 3, 8, 8\)"):
        distance.features(images[:0])
    with pytest.raises(
        TypeError, match=r"images: expected floating point values on \[0, 1\], got torch\.uint8"
    ):
        distance.features((images * 255).byte())
    with pytest.raises(ValueError, match=r"images: expected values on \[0, 1\], got -1 to"):
        distance.features(torch.cat((-torch.ones(1, 3, 8, 8), images)))
