"""VGG-16's first three blocks, as the feature network of perceptual losses and of a Fréchet distance.

ImageNet weights are not part of this package and never downloaded: a user who has torchvision's file
``vgg16-397923af.pth`` puts it into ``DATA/weights/``. Without it the same network stands in with random
weights: edges, textures and scales still move its outputs, categories of objects do not. Which of the two a
network is it says in `VGG16Features.name`, and whatever is printed about its outputs prints that name.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.data.integrity import BadData, MissingData, sha256_of

__all__ = ["VGG16Features", "VGG16Pools", "find_weights"]

# torchvision names a file after the first eight digits of its sha256.
_FILE, _SHA256_STARTS = "vgg16-397923af.pth", "397923af"

# Number of each convolution in torchvision's `features`, its input channels and its output channels.
_BLOCKS = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
)

# Mean and standard deviation per channel of ImageNet's training images on [0, 1], which the weights expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG16Pools(NamedTuple):
    """Outputs of VGG-16's first three pools for images ``(N, 3, H, W)``.

    pool1: ``(N, 64, H // 2, W // 2)``
    pool2: ``(N, 128, H // 4, W // 4)``
    pool3: ``(N, 256, H // 8, W // 8)``
    """

    pool1: Tensor
    pool2: Tensor
    pool3: Tensor


def find_weights(data: str | os.PathLike[str] | None, name: str) -> Path | None:
    """``DATA/weights/NAME`` if that file exists, None if it does not or `data` is None."""
    if data is None:
        return None
    path = Path(data) / "weights" / name
    return path if path.is_file() else None


class VGG16Features(nn.Module):
    """VGG-16 (Simonyan and Zisserman 2015, configuration D) up to its third pool, fixed.

    data:    the data folder; its ``weights/vgg16-397923af.pth`` is taken if it is there
    weights: a file of your own in place of it: a ``state_dict`` with torchvision's names ``features.N.weight``
             and ``features.N.bias``. Read with ``weights_only=True``
    seed:    of the random weights where there is no file: He et al. 2015's normal distribution of variance
             ``2 / fan_in``, drawn on the CPU so that they do not depend on the device, and zero biases

    ``name`` is ``"VGG-16, ImageNet weights"`` for torchvision's own file, told by its sha256, ``"VGG-16,
    weights of FILE"`` for another one, and ``"VGG-16, random weights (seed 0)"`` without any. ``file`` and
    ``sha256`` are None in the last case.

    ``forward`` takes float images ``(N, 3, H, W)`` on [0, 1], H and W at least 8, normalises them by
    ImageNet's mean and standard deviation, and returns `VGG16Pools`. Gradients reach the images, never the
    weights.

    Raises MissingData if `weights` is given and does not exist; BadData for a file that lacks a tensor or has
    one of another shape, and for a file under torchvision's name that is not torchvision's.
    """

    channels = (64, 128, 256)

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        weights: str | os.PathLike[str] | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if weights is not None and not Path(weights).is_file():
            raise MissingData(f"weights: there is no file {os.fspath(weights)}")
        self.file = find_weights(data, _FILE) if weights is None else Path(weights)
        self.sha256 = None if self.file is None else sha256_of(self.file)
        self.layers = nn.ModuleDict(
            {
                # Without nn.Conv2d's own start, which would draw from the global generator.
                str(number): nn.utils.skip_init(nn.Conv2d, below, above, 3, padding=1)
                for block in _BLOCKS
                for number, below, above in block
            }
        )
        if self.file is None or self.sha256 is None:
            self._draw(seed)
            self.name = f"VGG-16, random weights (seed {seed})"
        else:
            self.name = _name_of(self.file, self.sha256)
            self._load(self.file)
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).reshape(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(device)

    def forward(self, images: Tensor) -> VGG16Pools:
        """Outputs of the three pools for `images` ``(N, 3, H, W)`` on [0, 1]."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected shape (N, 3, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"images: expected floating point values on [0, 1], got {images.dtype}")
        if min(images.shape[2:]) < 8:
            raise ValueError(f"images: expected at least 8x8 pixels, got {images.shape[2]}x{images.shape[3]}")
        state, pools = (images - self._mean) / self._std, []
        for block in _BLOCKS:
            for number, _, _ in block:
                state = F.relu(self.layers[str(number)](state))
            state = F.max_pool2d(state, 2)
            pools.append(state)
        return VGG16Pools(*pools)

    def extra_repr(self) -> str:
        return self.name

    def _draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.layers.parameters():
            if parameter.dim() == 4:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            else:
                nn.init.zeros_(parameter)

    def _load(self, file: Path) -> None:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise BadData(file, f"not a file of weights that PyTorch can read ({error})") from error
        if not isinstance(state, dict):
            raise BadData(file, f"expected a state_dict, got {type(state).__name__}")
        with torch.no_grad():
            for name, parameter in self.layers.named_parameters():
                value = state.get(f"features.{name}")
                if not isinstance(value, Tensor) or value.shape != parameter.shape:
                    found = tuple(value.shape) if isinstance(value, Tensor) else "nothing"
                    raise BadData(file, f"features.{name}: expected {tuple(parameter.shape)}, got {found}")
                parameter.copy_(value)


def _name_of(file: Path, sha256: str) -> str:
    if sha256.startswith(_SHA256_STARTS):
        return "VGG-16, ImageNet weights"
    if file.name == _FILE:
        raise BadData(
            file, f"its sha256 should start with {_SHA256_STARTS} but is {sha256}: not torchvision's"
        )
    return f"VGG-16, weights of {file.name}"
