"""Convolutional denoising VAE, what 004 calls CD-VAE (Sect. 4.3, App. D.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.models.reflection import channels_last, whole
from lmser_kernels.nn import Conv2dAddAct, ConvTranspose2dAddAct

_KERNEL, _STRIDE, _PADDING = 4, 2, 1


class DenoisingVAE(nn.Module):
    """A VAE whose encoder sees the damaged image and whose decoder is held against the whole one.

        encoder   h_l = relu(conv(h_{l-1})), stride 2; m, v: two linear maps of the last one
        code      z = m + exp(v / 2) * noise, noise ~ N(0, 1); z = m in evaluation mode
        decoder   relu(linear(z)), then relu(conv_transpose), stride 2; logits a at the image's size
        output    2 sigmoid(a) - 1, on [-1, 1]
        loss      sum over pixels of cross_entropy((y + 1) / 2, sigmoid(a)) + KL(N(m, exp(v)) from N(0, 1)),
                  mean over the batch

    The loss is the bound of Im, Ahn, Memisevic and Bengio, "Denoising Criterion for Variational Auto-Encoding
    Framework" (AAAI 2017), with one draw of the damaged image: the code is inferred from it, the likelihood is of
    the whole image y. 004 gives no layers: its code is "based on" a notebook (sksq96/pytorch-vae, vae-cnn) with
    four convolutions of 32, 64, 128 and 256 channels, kernel 4, stride 2, a code of 32 units and binary cross-entropy,
    for images of 64x64. The default here is that without the last layer, so that 28x28 and 32x32 come down to 3x3
    and 4x4. Chosen here: padding 1, the mirrored decoder, relu after its linear layer, a KL that is summed over the
    code as in the bound (the notebook averages it over batch and units), and `hole` in damaged pixels.

    Args:
        in_channels: of the images.
        size: height and width of the images, one number or two.
        channels: of the convolutions, each of stride 2.
        code: units of z.
        hole: value of a pixel that is not observed.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        in_channels: int,
        size: int | Sequence[int],
        *,
        channels: Sequence[int] = (32, 64, 128),
        code: int = 32,
        hole: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sides = (size, size) if isinstance(size, int) else tuple(size)
        channels = tuple(channels)
        whole("in_channels", in_channels)
        whole("code", code)
        if not channels:
            raise ValueError("channels: expected at least one layer, got none")
        if len(sides) != 2:
            raise ValueError(f"size: expected one number or two, got {size!r}")
        for name, values in (("size", sides), ("channels", channels)):
            for value in values:
                whole(name, value)
        if min(sides) < _STRIDE ** len(channels):
            raise ValueError(
                f"size: expected at least {_STRIDE ** len(channels)} for {len(channels)} layers of stride {_STRIDE}, "
                f"got {size}"
            )
        if not math.isfinite(hole):
            raise ValueError(f"hole: expected a finite number, got {hole}")
        self.in_channels, self.hole = in_channels, hole
        self._sizes: list[tuple[int, int]] = [(sides[0], sides[1])]
        for _ in channels:
            height, breadth = self._sizes[-1]
            self._sizes.append((height // _STRIDE, breadth // _STRIDE))
        widths = (in_channels, *channels)
        self._top = (channels[-1], *self._sizes[-1])
        flat = channels[-1] * self._sizes[-1][0] * self._sizes[-1][1]
        self.encoder = nn.ModuleList(
            Conv2dAddAct(low, high, _KERNEL, _STRIDE, _PADDING, activation="relu", device=device, dtype=dtype)
            for low, high in pairwise(widths)
        )
        self.mean = nn.Linear(flat, code, device=device, dtype=dtype)
        self.log_variance = nn.Linear(flat, code, device=device, dtype=dtype)
        self.expand = nn.Linear(code, flat, device=device, dtype=dtype)
        self.decoder = nn.ModuleList(
            ConvTranspose2dAddAct(
                widths[level],
                widths[level - 1],
                _KERNEL,
                _STRIDE,
                _PADDING,
                activation="relu" if level > 1 else "identity",
                device=device,
                dtype=dtype,
            )
            for level in range(len(channels), 0, -1)
        )

    def encode(self, evidence: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the code, each ``(N, code)``; arguments as of `forward`."""
        expected = (self.in_channels, *self._sizes[0])
        if evidence.dim() != 4 or tuple(evidence.shape[1:]) != expected:
            raise ValueError(
                f"evidence: expected shape (N, {', '.join(map(str, expected))}), got {tuple(evidence.shape)}"
            )
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}")
        h = channels_last(evidence.masked_fill(~mask, self.hole))
        for layer in self.encoder:
            h = channels_last(layer(h))
        h = h.flatten(1)
        return self.mean(h), self.log_variance(h)

    def decode(self, code: Tensor) -> Tensor:
        """Logits of the pixels ``(N, in_channels, H, W)``."""
        h = channels_last(F.relu(self.expand(code)).unflatten(1, self._top))
        for layer, size in zip(self.decoder, self._sizes[-2::-1], strict=True):
            h = channels_last(layer(h, output_size=size))
        return h

    def forward(self, evidence: Tensor, mask: Tensor) -> Tensor:
        """What the network makes of all pixels, on [-1, 1].

        Args:
            evidence: ``(N, in_channels, H, W)``; not looked at where nothing is observed.
            mask: bool, True where a pixel is observed, of a shape that broadcasts to `evidence`'s.
        """
        mean, log_variance = self.encode(evidence, mask)
        return 2 * self.decode(self._drawn(mean, log_variance)).sigmoid() - 1

    def loss(self, target: Tensor, mask: Tensor) -> Tensor:
        """The negative bound, 0-d: of the whole images `target` on [-1, 1], of which the encoder sees what `mask`
        observes."""
        mean, log_variance = self.encode(target, mask)
        logits = self.decode(self._drawn(mean, log_variance))
        wrong = F.binary_cross_entropy_with_logits(logits, (target + 1) / 2, reduction="sum")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return (wrong + divergence) / len(target)

    def _drawn(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        if not self.training:
            return mean
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
