"""PConv: inpainting by a U-Net of partial convolutions (Liu et al. 2018; 001 Tables 5 and 6).

Liu, Reda, Shih, Wang, Tao and Catanzaro, "Image inpainting for irregular holes using partial convolutions",
ECCV 2018, arXiv:1804.07723; its equations, its Sec. 3 and the table of its supplement are what is built here.

A mask is True where a pixel is **missing**, in `PConvUNet` as everywhere else in this package. The paper's M
is its opposite, 1 where a pixel is valid; inside, M is called `valid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.models.reflection import whole

# Encoder of the paper's supplement: channels and kernels of layers 1, 2, ...; deeper ones repeat the last.
_CHANNELS, _KERNELS = (64, 128, 256, 512), (7, 5, 3)


class PartialConv2d(nn.Module):
    """Convolution of the valid values, renormalised, and the mask that it leaves (Liu et al. Eqs. 1 and 2).

        x' = Wᵀ(X ⊙ M) sum(1) / sum(M) + b   where sum(M) > 0 in the window, else 0
        m' = 1                               where sum(M) > 0 in the window, else 0

    Values outside the image are holes, so a window over the border is renormalised too (Liu et al. Sec. 3.2).
    What is stored in a hole, NaN included, changes nothing, and no gradient reaches it.

    sources:     channels of the tensors that are concatenated to X, each with one mask for all its channels
    out_channels, kernel_size (odd), stride, bias: as `nn.Conv2d`'s; padding is half of the kernel

    ``forward(x, valid)``: x ``(N, sum(sources), H, W)``, valid ``(N, len(sources), H, W)`` bool; returns x'
    ``(N, out_channels, H', W')`` and m' ``(N, 1, H', W')`` bool. Weights are drawn by He's rule, as in the
    paper, biases start at zero.
    """

    def __init__(
        self,
        sources: Sequence[int],
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.sources = tuple(whole("sources", channels) for channels in sources)
        if not self.sources:
            raise ValueError("sources: expected at least one, got none")
        self.stride = whole("stride", stride)
        if whole("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.padding = kernel_size // 2
        shape = (whole("out_channels", out_channels), sum(self.sources), kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() != 4 or x.shape[1] != sum(self.sources):
            raise ValueError(f"x: expected shape (N, {sum(self.sources)}, H, W), got {tuple(x.shape)}")
        expected = (len(x), len(self.sources), *x.shape[2:])
        if tuple(valid.shape) != expected or valid.dtype is not torch.bool:
            raise ValueError(
                f"valid: expected a bool tensor {expected}, got {tuple(valid.shape)} of {valid.dtype}"
            )
        known = torch.cat(
            [
                part.masked_fill(~mask, 0)
                for part, mask in zip(x.split(self.sources, 1), valid.split(1, 1), strict=True)
            ],
            dim=1,
        )
        drive = F.conv2d(known, self.weight, None, self.stride, self.padding)
        share = self._valid_share(valid)
        reached = share > 0
        out = drive * torch.where(reached, 1 / share, 0).to(drive.dtype)
        if self.bias is not None:
            out = out + self.bias.reshape(1, -1, 1, 1) * reached
        return out, reached

    def _valid_share(self, valid: Tensor) -> Tensor:
        """sum(M) / sum(1) of every window, ``(N, 1, H', W')``: a mask counts for all channels of its source.

        By a pooling, which autocast leaves alone; in half precision the sum of a window would not be exact.
        """
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        # Filled on the device: numbers that came from the host would have to be waited for.
        shares = [
            torch.full((1, 1, 1, 1), channels / sum(self.sources), dtype=dtype, device=valid.device)
            for channels in self.sources
        ]
        known = (valid * torch.cat(shares, 1)).sum(1, keepdim=True)
        return F.avg_pool2d(known, self.weight.shape[2], self.stride, self.padding)

    def extra_repr(self) -> str:
        return f"{self.sources}, {len(self.weight)}, kernel_size={self.weight.shape[2]}, stride={self.stride}"


class _Layer(nn.Module):
    """Partial convolution, batch normalisation where asked for, leaky ReLU of slope `leak` (1: none)."""

    def __init__(
        self,
        sources: Sequence[int],
        out_channels: int,
        kernel_size: int,
        stride: int,
        norm: bool,
        leak: float,
    ) -> None:
        super().__init__()
        self.conv = PartialConv2d(sources, out_channels, kernel_size, stride, bias=not norm)
        self.norm = nn.BatchNorm2d(out_channels) if norm else None
        self.leak = leak

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        x, valid = self.conv(x, valid)
        if self.norm is not None:
            x = self.norm(x)
        return (x if self.leak == 1 else F.leaky_relu(x, self.leak)), valid


class PConvUNet(nn.Module):
    """U-Net of partial convolutions (Liu et al. 2018, Sec. 3.2 and supplement).

        up      (h_l, m_l) = relu(norm(pconv(h_{l-1}, m_{l-1})))                     l = 1 ... L, stride 2
        down    (d_l, k_l) = leaky(norm(pconv(cat(near(d_{l+1}), h_l))))             l = L-1 ... 0

    from h_0 the image, m_0 its valid pixels and d_L = h_L. `near` is nearest upsampling to the size of h_l,
    which is thereby free to be odd; masks go the way of their features. Layers 1 ... L have 64, 128, 256,
    512, 512, ... channels and kernels of 7, 5, 3, 3, ...; d_l has as many channels as h_l and a kernel of 3.
    The leak is 0.2. The first layer has no normalisation, d_0, the reconstruction, neither that nor an
    activation. Where a batch normalisation follows there is no bias b, which it would take away again.

    channels:      of the image
    depth:         L: 8 for the paper's 512x512, 7 for 256x256 (as in the implementation that 001 used, and
                   the default), one less for every halving; images must be at least ``2**(L - 1)`` + 1 wide
                   and high, so that the deepest layer still halves something
    width:         factor on the inner channels, for short runs; 1 is the paper's
    freeze_encoder_norms: keep the encoder's batch normalisations as they are, statistics and parameters, also
                   in training mode: the paper's fine-tuning phase, which makes up for the statistics that
                   holes have spoiled

    ``forward(image, mask)``: image ``(N, channels, H, W)``, on [0, 1] as the loss expects; mask ``(N, 1, H,
    W)`` bool, **True where a pixel is missing**. Returns the reconstruction of every pixel, missing or not,
    shaped like the image; what stands in missing pixels has no influence. Train it by
    `lmser.baselines.InpaintingLoss`. Raises TypeError or ValueError naming the argument.
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        depth: int = 7,
        width: float = 1.0,
        freeze_encoder_norms: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.depth = whole("channels", channels), whole("depth", depth, least=2)
        if isinstance(width, bool) or not isinstance(width, (int, float)) or not width > 0:
            raise ValueError(f"width: expected a number above 0, got {width!r}")
        self.freeze_encoder_norms = freeze_encoder_norms
        wide = [max(1, round(width * _repeat(_CHANNELS, layer))) for layer in range(depth)]
        widths = (channels, *wide)
        self.encoder = nn.ModuleList(
            _Layer((below,), above, _repeat(_KERNELS, layer), 2, norm=layer > 0, leak=0)
            for layer, (below, above) in enumerate(pairwise(widths))
        )
        # decoder[l] makes d_l.
        self.decoder = nn.ModuleList(
            _Layer((above, below), below, 3, 1, norm=layer > 0, leak=0.2 if layer > 0 else 1)
            for layer, (below, above) in enumerate(pairwise(widths))
        )
        if freeze_encoder_norms:
            for norm in self._encoder_norms():
                norm.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> PConvUNet:
        super().train(mode)
        if self.freeze_encoder_norms:
            for norm in self._encoder_norms():
                norm.eval()
        return self

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct `image` ``(N, channels, H, W)`` where `mask` ``(N, 1, H, W)``, and everywhere else."""
        self._check(image, mask)
        states = [(image, ~mask)]
        for layer in self.encoder:
            states.append(layer(*states[-1]))
        state, valid = states[-1]
        for layer, (skip, skip_valid) in zip(reversed(self.decoder), reversed(states[:-1]), strict=True):
            size = skip.shape[2:]
            raised = F.interpolate(valid.to(state.dtype), size) > 0  # nearest; there is none for bool
            state = torch.cat((F.interpolate(state, size), skip), dim=1)
            state, valid = layer(state, torch.cat((raised, skip_valid), dim=1))
        return state

    def _encoder_norms(self) -> list[nn.Module]:
        return [module for module in self.encoder.modules() if isinstance(module, nn.BatchNorm2d)]

    def _check(self, image: Tensor, mask: Tensor) -> None:
        if image.dim() != 4 or image.shape[1] != self.channels:
            raise ValueError(f"image: expected shape (N, {self.channels}, H, W), got {tuple(image.shape)}")
        if min(image.shape[2:]) <= 2 ** (self.depth - 1):
            raise ValueError(
                f"image: {self.depth} layers of stride 2 need at least {2 ** (self.depth - 1) + 1} pixels "
                f"each way, got {image.shape[2]}x{image.shape[3]}"
            )
        check_mask(image, mask)


def check_mask(image: Tensor, mask: Tensor) -> None:
    """Raise unless `mask` is bool and ``(N, 1, H, W)`` for `image` ``(N, C, H, W)``."""
    if mask.dtype is not torch.bool:
        raise TypeError(f"mask: expected bool, True where a pixel is missing, got {mask.dtype}")
    expected = (len(image), 1, *image.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask: expected shape {expected}, got {tuple(mask.shape)}")


def _repeat(values: Sequence[int], index: int) -> int:
    """`values` at `index`, the last one beyond their end."""
    return values[min(index, len(values) - 1)]
