"""Representation network, generator and discriminator of PICNet (Zheng et al. 2019, supplement C).

All take the number of halvings, `depth`, and `base`, the channels of the first level: encoders have `base`
times 1, 2, 4, 4, ... channels at the levels 1 ... depth, the generator the same at the levels 0 ... depth-1,
level l being 2^-l of the image's size; the latent variable has 4 times `base`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.baselines.picnet_layers import ResidualBlock, SelfAttention, ShortLongAttention, leaky, spectral

# Doublings from the deepest level to the one with attention: 32x32 of 256x256, whose deepest level is 8x8.
_ATTENTION = 2


class Gaussian(NamedTuple):
    """Means and standard deviations of independent normal variables, tensors of one shape."""

    mean: Tensor
    std: Tensor

    def detach(self) -> Gaussian:
        return Gaussian(self.mean.detach(), self.std.detach())

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """``mean + std ε``, ε from `generator` (on the same device) or torch's global one."""
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q ‖ p) of each variable: ln(s_p / s_q) + (s_q² + (m_q - m_p)²) / 2 s_p² - 1/2, m and s its mean
    and standard deviation."""
    return (
        torch.log(p.std / q.std) + (q.std.square() + (q.mean - p.mean).square()) / (2 * p.std.square()) - 0.5
    )


def level_channels(base: int, depth: int) -> list[int]:
    """Channels of the levels 1 ... depth of an encoder, 0 ... depth-1 of the generator."""
    return [base * min(2**level, 4) for level in range(depth)]


class RepresentationNetwork(nn.Module):
    """Features of partial images and the distributions read off them; see `PICNet`."""

    def __init__(self, base: int, depth: int) -> None:
        super().__init__()
        self.blocks = _encoder(base, depth)
        deepest, latent = level_channels(base, depth)[-1], 4 * base
        self.posterior_head = ResidualBlock(deepest, 2 * latent, inner=deepest)
        self.prior_head = nn.Sequential(
            *(ResidualBlock(deepest, deepest) for _ in range(6)),
            ResidualBlock(deepest, 2 * latent, inner=deepest),
        )

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of levels 1 ... depth of images ``(N, 3, H, W)`` whose other part is 0."""
        features = []
        for block in self.blocks:
            image = block(image)
            features.append(image)
        return features

    def posterior(self, hidden: Tensor) -> Gaussian:
        """q_ψ(z | I_c) from the deepest features of the missing part I_c."""
        return _gaussian(self.posterior_head(hidden))

    def prior(self, visible: Tensor) -> Gaussian:
        """p_φ(z | I_m) from the deepest features of the visible part I_m."""
        return _gaussian(self.prior_head(visible))


class Generator(nn.Module):
    """From latent variable and visible features to images at the last `scales` scales."""

    def __init__(self, base: int, depth: int, scales: int) -> None:
        super().__init__()
        channels = level_channels(base, depth)
        state = channels[-1]
        self.latent = ResidualBlock(4 * base, state)
        self.blocks, self.outputs = nn.ModuleList(), nn.ModuleList()
        for step in range(depth):
            level = depth - 1 - step  # a block leads to this level
            above = channels[level]
            earlier = 3 if level < scales - 1 else 0  # the prediction at the scale before
            self.blocks.append(ResidualBlock(state + earlier, above, resample="up", norm=True))
            self.outputs.append(_Output(above) if level < scales else nn.Identity())
            if step == _ATTENTION - 1:
                self.attention = ShortLongAttention(above, channels[depth - 1 - _ATTENTION])
            state = above
        self.depth, self.scales = depth, scales

    def forward(self, z: Tensor, features: list[Tensor], share: Tensor) -> list[Tensor]:
        """Images at 2^-(scales-1) ... 1/2 and 1 of the size, ``(N, 3, ·, ·)`` on [-1, 1].

        z: the latent variable; features: of the visible part, levels 1 ... depth; share: ``(N, 1, H, W)``, 1
        where a pixel is visible.
        """
        state = features[-1] + self.latent(z)
        images: list[Tensor] = []
        for step, (block, output) in enumerate(zip(self.blocks, self.outputs, strict=True)):
            state = block(state if not images else torch.cat((state, images[-1]), dim=1))
            if step == _ATTENTION - 1:
                context = features[self.depth - 1 - _ATTENTION]
                visible = F.avg_pool2d(share, share.shape[2] // context.shape[2])
                state = self.attention(state, context, visible)
            if self.depth - 1 - step < self.scales:
                images.append(output(state))
        return images


class _Output(nn.Module):
    """tanh(conv3(f(x))), reflected at the border."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = spectral(nn.Conv2d(channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(reflected(leaky(x))))


class ResidualDiscriminator(nn.Module):
    """Scores ``(N, 1, h, w)`` of the patches of images ``(N, 3, H, W)``, and self-attention on the way."""

    def __init__(self, base: int, depth: int) -> None:
        super().__init__()
        channels = level_channels(base, depth)
        self.blocks = _encoder(base, depth)
        self.attention = SelfAttention(channels[depth - 1 - _ATTENTION])
        self.last = ResidualBlock(channels[-1], channels[-1])
        self.score = spectral(nn.Conv2d(channels[-1], 1, 3))
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        for level, block in enumerate(self.blocks):
            x = block(x)
            if level == self.depth - 1 - _ATTENTION:
                x, _ = self.attention(x)
        scores: Tensor = self.score(leaky(self.last(x)))
        return scores


def reflected(x: Tensor) -> Tensor:
    """`x` with one pixel more on every side, as ``F.pad(x, (1, 1, 1, 1), "reflect")``, whose gradient is not
    deterministic on CUDA."""
    x = torch.cat((x[..., 1:2, :], x, x[..., -2:-1, :]), dim=-2)
    return torch.cat((x[..., 1:2], x, x[..., -2:-1]), dim=-1)


def _encoder(base: int, depth: int) -> nn.ModuleList:
    blocks = nn.ModuleList([ResidualBlock(3, base, resample="start")])
    for below, above in pairwise(level_channels(base, depth)):
        blocks.append(ResidualBlock(below, above, resample="down", inner=below))
    return blocks


def _gaussian(parameters: Tensor) -> Gaussian:
    mean, raw = parameters.chunk(2, dim=1)
    # softplus rounds to 0 far below 0, where the logarithm in the divergence would be infinite.
    return Gaussian(mean, F.softplus(raw) + 1e-6)
