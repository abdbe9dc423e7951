"""Fréchet distance between two sets of images, as the distance of Gaussians fitted to their features.

    d² = ‖m_1 - m_2‖² + tr(C_1 + C_2 - 2 (C_1 C_2)^½)

(Dowson and Landau 1982), with the mean m and the covariance C (of n - 1) of a feature per image. With the
2048 features of the Inception network it is the Fréchet Inception Distance, FID (Heusel et al. 2017; 001
Table 5). With any other network it is not, whatever it looks like: `FrechetDistance.name` says which one a
number is, and a number is never printed without it.

Few images: n images span n - 1 directions, so with no more images than features the covariances are
singular. The distance of the fitted Gaussians is still exactly defined, but as an estimate it is far too
large, also for two sets of one distribution, and larger the fewer the images. Only distances between sets of
the same sizes can then be compared with each other, and none with a published one.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lmser.data.integrity import BadData, MissingData, sha256_of
from lmser.features import VGG16Features, find_weights

__all__ = ["FrechetDistance", "InceptionFeatures", "PooledVGG16", "frechet_distance"]

# The Inception network of the original FID as TorchScript, as distributed with StyleGAN2-ADA (NVIDIA).
_FILE = "inception-2015-12-05.pt"


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance (squared, as usual) of the Gaussians fitted to features `x` ``(N, D)`` and `y`
    ``(M, D)``, N and M at least 2.

    In float64 and without a matrix root: where ``A`` are the centred features over sqrt(N - 1), so that ``C_1
    = AᵀA``, and ``B`` those of `y`, the trace of ``(C_1 C_2)^½`` is the sum of the singular values of ``ABᵀ``.
    Singular covariances need no jitter then, and lose no digits; equal features give 0 to rounding. NaN and
    Inf give NaN.

    Warns where there are no more samples than features (see the module). Raises TypeError or ValueError
    naming the argument.
    """
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating point tensor, got {kind}")
        if value.dim() != 2 or len(value) < 2 or value.shape[1] == 0:
            raise ValueError(
                f"{name}: expected shape (samples, features), at least 2 and 1, got {tuple(value.shape)}"
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"y: expected {x.shape[1]} features as in x, got {y.shape[1]}")
    note = few_samples(len(x), len(y), x.shape[1])
    if note:
        warnings.warn(f"frechet_distance: {note}", stacklevel=2)
    x, y = x.detach().to("cpu", torch.float64), y.detach().to("cpu", torch.float64)
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = _factor(x - mean_x), _factor(y - mean_y)
    overlap = torch.linalg.svdvals(a @ b.T).sum()
    distance = (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum() - 2 * overlap
    return max(float(distance), 0.0)  # equal sets come out at ± one rounding


def _factor(centred: Tensor) -> Tensor:
    """``A`` with ``AᵀA`` the covariance of `centred`, of as few rows as that takes."""
    a = centred / math.sqrt(len(centred) - 1)
    return torch.linalg.qr(a, mode="r").R if a.shape[0] > a.shape[1] else a


def few_samples(samples: int, others: int, features: int) -> str:
    """What to say beside a distance of so few samples, or "" where there are more samples than features."""
    if min(samples, others) > features:
        return ""
    return (
        f"{samples} and {others} samples of {features} features: the covariances are singular and the distance "
        f"is biased upwards; compare it only with distances between sets of these sizes"
    )


class _FeatureNetwork(Protocol):
    """Images ``(N, 3, H, W)`` on [0, 1] to features ``(N, num_features)``."""

    name: str
    num_features: int
    file: Path | None
    sha256: str | None

    def __call__(self, images: Tensor) -> Tensor: ...


class InceptionFeatures:
    """The 2048 features of the Inception network of the original FID, from a local TorchScript file.

    Images are rounded to bytes, as if they had been saved, and the file's network resizes them to 299x299
    itself. TorchScript is a program: load only a file that you trust. Raises MissingData where there is no
    such file, BadData for one that is no TorchScript, does not take ``return_features=True``, or has not 2048
    features.
    """

    name, num_features = "Inception (2015-12-05)", 2048

    def __init__(self, file: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        self.file: Path | None = Path(file)
        if not self.file.is_file():
            raise MissingData(f"weights: there is no file {self.file}")
        self.sha256: str | None = sha256_of(self.file)
        try:
            with warnings.catch_warnings():
                # Deprecated, and the only reader of the format that this file is distributed in.
                warnings.filterwarnings("ignore", message="`torch.jit.load`", category=DeprecationWarning)
                self._network = torch.jit.load(self.file, map_location=device).eval()
            shape = tuple(self._network(_black(device), return_features=True).shape)
        except RuntimeError as error:
            what = str(error).strip().splitlines()[0]
            raise BadData(
                self.file, f"not the TorchScript of the FID's Inception network ({what})"
            ) from error
        if shape != (1, self.num_features):
            raise BadData(self.file, f"expected {self.num_features} features, got shape {shape}")

    def __call__(self, images: Tensor) -> Tensor:
        levels = (images.nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
        features: Tensor = self._network(levels, return_features=True)
        return features.masked_fill(images.isnan().any(1).any(1).any(1)[:, None], math.nan)


def _black(device: torch.device | str) -> Tensor:
    return torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)


class PooledVGG16:
    """The stand-in for `InceptionFeatures`: the 64 + 128 + 256 channels of `VGG16Features`' three pools, each
    averaged over positions; images are not resized.
    """

    def __init__(self, network: VGG16Features) -> None:
        self._network = network
        self.name = f"pooled {network.name}"
        self.num_features = sum(network.channels)
        self.file, self.sha256 = network.file, network.sha256

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([pool.mean((2, 3)) for pool in self._network(images)], dim=1)


class FrechetDistance:
    """Fréchet distance between sets of images; FID where the user has the Inception network's file.

    data:    the data folder. Its ``weights/inception-2015-12-05.pt`` is taken if it is there; otherwise
             `PooledVGG16` stands in, with the ImageNet weights in ``weights/vgg16-397923af.pth`` if those are
             there and seeded random ones if not
    weights: path of the Inception file, in place of the one in `data`
    device:  where the features are computed

    ``name`` is ``"FID"`` with the Inception network and ``"Fréchet distance (pooled VGG-16, ...)"`` with a
    stand-in. ``file`` and ``sha256`` are those of the weights, None for random ones. Raises as
    `InceptionFeatures` and `VGG16Features`.

        distance = FrechetDistance(data)
        reference = distance.features(photographs)
        print(distance.name, frechet_distance(reference, distance.features(reconstructions)))
        print(distance.note(len(photographs), len(reconstructions)))
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        file = find_weights(data, _FILE) if weights is None else weights
        self._network: _FeatureNetwork
        if file is not None:
            self._network = InceptionFeatures(file, self.device)
            self.name = "FID"
        else:
            self._network = PooledVGG16(VGG16Features(data, device=self.device))
            self.name = f"Fréchet distance ({self._network.name})"
        self.file, self.sha256 = self._network.file, self._network.sha256
        self.num_features = self._network.num_features

    @torch.no_grad()
    def features(self, images: Tensor, *, batch_size: int = 32) -> Tensor:
        """Features ``(N, num_features)``, float64 on the CPU, of floating point images ``(N, C, H, W)`` on
        [0, 1] with one channel, which stands for three equal ones, or three.

        Raises TypeError or ValueError naming the argument. Values outside [0, 1] are refused, since the
        networks would take images on [-1, 1] without complaint: clip a reconstruction first. NaN in, NaN out.
        """
        if not images.is_floating_point():
            raise TypeError(f"images: expected floating point values on [0, 1], got {images.dtype}")
        if images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
            raise ValueError(f"images: expected shape (N, 1 or 3, H, W), got {tuple(images.shape)}")
        low, high = images.aminmax()
        if low < 0 or high > 1:
            raise ValueError(f"images: expected values on [0, 1], got {float(low):.4g} to {float(high):.4g}")
        rows = [
            self._network(batch.to(self.device, torch.float32).expand(-1, 3, -1, -1))
            for batch in images.split(batch_size)
        ]
        return torch.cat([row.to("cpu", torch.float64) for row in rows])

    def __call__(self, x: Tensor, y: Tensor) -> float:
        """Distance of images `x` to images `y`, both ``(N, C, H, W)`` on [0, 1], N at least 2."""
        return frechet_distance(self.features(x), self.features(y))

    def note(self, samples: int, others: int) -> str:
        """What belongs beside the distance of sets of so many images (see the module), or ""."""
        return few_samples(samples, others, self.num_features)
