"""The network of 003's audio experiment (App. A.2), on waveforms as images of height 1."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from lmser.inversion import Activation, Step
from lmser_kernels.nn import Conv2dAddAct, MaxPool2dAct, TiedLinear

__all__ = ["AudioCNN", "Frames"]

_POOL = 4


class Frames(nn.Module):
    """Waveforms ``(N, 1, 1, samples)`` as frames of `hop` samples, which become channels: ``(N, hop, 1, frames)``.

        frames(x)[n, c, 0, p] = x[n, 0, 0, hop p + c - before],   0 beyond the waveform

    A convolution over samples with a stride of `hop` and a kernel of m hops is one over frames with a kernel of m: the
    same numbers, by kernels that have many channels to work on. The transpose puts the frames back in a row.

    Raises ValueError for a waveform of another length.
    """

    def __init__(self, samples: int, hop: int, before: int, frames: int) -> None:
        super().__init__()
        self.samples, self.hop, self.frames = samples, hop, frames
        # Zeros before and after; below 0 where samples are left out.
        self.margins = (before, frames * hop - before - samples)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (1, 1, self.samples):
            raise ValueError(f"x: expected shape (N, 1, 1, {self.samples}), got {tuple(x.shape)}")
        rows = F.pad(x, self.margins).view(len(x), self.frames, self.hop)
        return rows.transpose(1, 2).unsqueeze(2)

    def gated(self, x: Tensor, f: Activation | None) -> Step:
        """The way down (`lmser.inversion.Gated`)."""
        before, after = self.margins

        def pull(g: Tensor) -> Tensor:
            u = F.pad(g.squeeze(2).transpose(1, 2).reshape(len(x), 1, 1, -1), (-before, -after))
            return u if f is None else f.pull(u, x)

        return Step(self(x), None, pull)

    def extra_repr(self) -> str:
        return f"{self.samples}, hop={self.hop}, frames={self.frames}, margins={self.margins}"


class AudioCNN(nn.Sequential):
    """conv1d(1024, stride 512, 42) - maxpool1d(4, 2) - conv1d(3, stride 2, 42) - dense 32 - dropout 0.5 - dense 10.

    samples:     length of a waveform
    num_classes: number of logits
    kernel_size, stride: of the first convolution, the first a multiple of the second
    channels, units: of either convolution, and of the dense layer
    dropout:     share of the dense layer's units that training leaves out
    activation, slope: of all layers but the last, one of `lmser_kernels`' names; the paper names none

    Both convolutions are padded by half of their kernels, which the paper does not say: 500 ms at 8,000 Hz then are 8
    positions behind the first, 3 behind the pool and 2 behind the second; without padding the second would have
    nothing to read. The first is one over `Frames`, and linear, with its activation behind the pool: both are the same
    function. Weights start as Glorot's uniform ones and biases from 0, as the authors' programs do.

    Logits ``(N, num_classes)`` of waveforms ``(N, 1, 1, samples)``. A sequence of layers that `lmser.invert` sends
    back by the gated pass. Raises ValueError naming the argument.

    Source: "Semi-Supervised Learning via New Deep Network Inversion", App. A.2.
    """

    def __init__(
        self,
        samples: int = 4000,
        num_classes: int = 10,
        *,
        kernel_size: int = 1024,
        stride: int = 512,
        channels: int = 42,
        units: int = 32,
        dropout: float = 0.5,
        activation: str = "relu",
        slope: float | None = None,
    ) -> None:
        for name, count in (
            ("samples", samples),
            ("num_classes", num_classes),
            ("kernel_size", kernel_size),
            ("stride", stride),
            ("channels", channels),
            ("units", units),
        ):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected a positive int, got {count!r}")
        if kernel_size % stride:
            raise ValueError(f"kernel_size: expected a multiple of the stride {stride}, got {kernel_size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {dropout!r}")
        pad, hops = kernel_size // 2, kernel_size // stride
        first = (samples + 2 * pad - kernel_size) // stride + 1
        if first < _POOL:
            least = (_POOL - 1) * stride + kernel_size - 2 * pad
            raise ValueError(f"samples: expected at least {least}, for a window of the pool, got {samples}")
        last = ((first - _POOL) // 2) // 2 + 1
        super().__init__(
            Frames(samples, stride, pad, first - 1 + hops),
            Conv2dAddAct(stride, channels, (1, hops)),
            MaxPool2dAct((1, _POOL), (1, 2), 0, activation, slope),
            Conv2dAddAct(channels, channels, (1, 3), (1, 2), (0, 1), activation=activation, slope=slope),
            nn.Flatten(),
            TiedLinear(channels * last, units, activation=activation, slope=slope),
            nn.Dropout(dropout),
            TiedLinear(units, num_classes),
        )
        self.samples, self.num_classes = samples, num_classes
        for layer in self:
            if isinstance(layer, (Conv2dAddAct, TiedLinear)):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        # Of the convolution over samples, whose outputs a frame's channels are not.
        bound = math.sqrt(6 / ((1 + channels) * kernel_size))
        nn.init.uniform_(self._first.weight, -bound, bound)

    @property
    def _first(self) -> Conv2dAddAct:
        layer = self[1]
        assert isinstance(layer, Conv2dAddAct)
        return layer

    @property
    def filters(self) -> Tensor:
        """The weight of the first convolution as one over samples: ``(channels, 1, 1, kernel_size)``."""
        weight = self._first.weight
        return weight.transpose(1, 3).reshape(len(weight), 1, 1, -1)
