"""Adversarial losses on patch scores, and a discriminator that gives them.

A discriminator returns one score per patch, ``(N, 1, h, w)``, without an activation; losses are means over
patches and batch. Half of the sum over real and completed images is what a discriminator descends.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E max(0, 1 - real) + E max(0, 1 + fake)) of a discriminator's scores."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-E fake: what a generator descends against a hinge discriminator."""
    return -fake.mean()


def least_squares_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E (real - 1)² + E fake²) (LSGAN: Mao et al. 2017, Eq. 9)."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def least_squares_generator_loss(fake: Tensor) -> Tensor:
    """E (fake - 1)²: what a generator descends against an LSGAN discriminator, without LSGAN's ½."""
    return (fake - 1).square().mean()


def real_and_fake(discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of both in one pass: one power iteration of the spectral normalisation, not two."""
    scores: Tensor = discriminator(torch.cat((real, fake)))
    return scores[: len(real)], scores[len(real) :]


class PatchDiscriminator(nn.Module):
    """Spectrally normalised PatchGAN discriminator of 5x5 convolutions.

        h_l = leaky_relu(conv(h_{l-1})),  l = 1 ... 4, strides 2, 2, 2, 1, slope 0.2, no bias
        score = conv(h_4), with bias and not normalised

    channels: of h_1 ... h_4; std: of the weights' normal initialisation. ``(N, 3, H, W)`` on [-1, 1] to
    scores ``(N, 1, H/8, W/8)``, rounded up. Padding is half of the kernel.
    """

    def __init__(self, channels: tuple[int, int, int, int], std: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        below = 3
        for above, stride in zip(channels, (2, 2, 2, 1), strict=True):
            layer = nn.Conv2d(below, above, 5, stride, 2, bias=False)
            self.layers.append(spectral_norm(initialised(layer, std)))
            below = above
        self.score = initialised(nn.Conv2d(below, 1, 5, 1, 2), std)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        scores: Tensor = self.score(x)
        return scores


def initialised(layer: nn.Conv2d, std: float) -> nn.Conv2d:
    """`layer` with weights drawn from N(0, std²) and biases of 0."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
