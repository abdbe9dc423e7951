"""Residual blocks and attention of PICNet (Zheng et al. 2019, Sec. 3.4 and supplement C and D).

Every convolution is spectrally normalised and starts orthogonal with biases of 0; the activation is a leaky
ReLU of slope 0.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def spectral(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """`layer`, orthogonal and spectrally normalised."""
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer)


class ResidualBlock(nn.Module):
    """The residual block that all networks of PICNet are made of.

        path      conv3(f(norm(conv3(f(norm(x))))))
        output    path + conv1(x)

    resample: ``""``: as above; ``"start"``, the first of an encoder: neither norm nor `f` before the first
              convolution, and half the size, the shortcut averaging before its convolution; ``"down"``: half
              the size, both branches averaged after their convolutions; ``"up"``: twice the size, the second
              convolution and the shortcut being transposed ones of kernel 3 and stride 2
    norm:     whether there is an instance normalisation with scale and shift; none in the encoders
    inner:    channels between the convolutions; default: those of the output
    """

    def __init__(
        self, below: int, above: int, *, resample: str = "", norm: bool = False, inner: int | None = None
    ) -> None:
        super().__init__()
        self.resample = resample
        inner = above if inner is None else inner
        self.first = spectral(nn.Conv2d(below, inner, 3, 1, 1))
        if resample == "up":
            self.second = spectral(nn.ConvTranspose2d(inner, above, 3, 2, 1, 1))
            self.shortcut = spectral(nn.ConvTranspose2d(below, above, 3, 2, 1, 1))
        else:
            self.second = spectral(nn.Conv2d(inner, above, 3, 1, 1))
            self.shortcut = spectral(nn.Conv2d(below, above, 1))
        self.norms = nn.ModuleList(
            nn.InstanceNorm2d(width, affine=True) if norm else nn.Identity() for width in (below, inner)
        )

    def forward(self, x: Tensor) -> Tensor:
        path = x if self.resample == "start" else leaky(self.norms[0](x))
        path = self.second(leaky(self.norms[1](self.first(path))))
        if self.resample == "start":
            return F.avg_pool2d(path, 2) + self.shortcut(F.avg_pool2d(x, 2))
        total: Tensor = path + self.shortcut(x)
        return F.avg_pool2d(total, 2) if self.resample == "down" else total


class SelfAttention(nn.Module):
    """The short-term half of the attention layer (Zheng et al. Eqs. 11 and 12).

        s_ij = Q(f_i)ᵀ Q(f_j),   β_ji = exp(s_ij) / Σ_i' exp(s_i'j),   c_j = Σ_i β_ji f_i
        y = gamma c + f,   gamma learned from 0

    with Q a 1x1 convolution to a quarter of the channels. Returns y, shaped like f ``(N, C, H, W)``, and β
    ``(N, HW, HW)``, whose rows j sum to 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = spectral(nn.Conv2d(channels, max(1, channels // 4), 1))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        query = self.query(f).flatten(2)
        attention = torch.bmm(query.transpose(1, 2), query).softmax(2)
        return self.gamma * attended(f, attention) + f, attention


class ShortLongAttention(nn.Module):
    """Attention within a decoder's layer and from it to an encoder's (Zheng et al. Sec. 3.4).

        y_d = gamma_d c_d + f_d               `SelfAttention` of f_d
        y_e = gamma_e (1 - M) c_e + M f_e     c_e = Σ_i β_ji f_e,i with the same β, M the visible share
        output = block(y_d ⊕ y_e)             gamma_d and gamma_e learned from 0

    decoder, encoder: channels of f_d and f_e. ``forward(f_d, f_e, visible)``: ``(N, C, H, W)``, ``(N, C', H,
    W)`` and ``(N, 1, H, W)``, the visible share of the pixels behind each position; returns a tensor shaped
    like f_d.
    """

    def __init__(self, decoder: int, encoder: int) -> None:
        super().__init__()
        self.short = SelfAttention(decoder)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.block = ResidualBlock(decoder + encoder, decoder)

    def forward(self, f_d: Tensor, f_e: Tensor, visible: Tensor) -> Tensor:
        y_d, attention = self.short(f_d)
        y_e = self.gamma * (1 - visible) * attended(f_e, attention) + visible * f_e
        joined: Tensor = self.block(torch.cat((y_d, y_e), dim=1))
        return joined


def attended(f: Tensor, attention: Tensor) -> Tensor:
    """Σ_i β_ji f_i at each position j of f ``(N, C, H, W)``."""
    return torch.bmm(f.flatten(2), attention.transpose(1, 2)).reshape(f.shape)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)
