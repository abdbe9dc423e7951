"""Feed-forward classifiers of the reflection networks' layers: what Lmser(sup) and CLmser are compared with.

000 (Recognition) names the fully connected one FCN and the convolutional one CNN, 001 Table 7 compares with a
CNN; neither paper says more. Both here are the first bottom-up pass of the reflection network of the same
layers, read where that network reads its class units and trained by the cross-entropy alone: what differs in
such a comparison is the reflection and the reconstruction error, nothing else. They run on the same kernels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.models.reflection import Pair, channels_last, pair, whole
from lmser_kernels import activation as activations
from lmser_kernels.nn import Conv2dAddAct, TiedLinear

HEADS = ("mean", "linear")


class Classifier(nn.Module, ABC):
    """What `FCN` and `CNN` share; build one of those."""

    num_classes: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the logits for `x`, averaged over the batch: a 0-d tensor (000 Eq. 4, the second
        term).

        y: ``(N,)`` int64 labels or ``(N, num_classes)`` probabilities. Half precision is summed in float32.
        """
        logits = self(x)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return F.cross_entropy(logits, y)


class FCN(Classifier):
    """Fully connected classifier of `Lmser`'s layers (000, Recognition).

        h_l = f(W_l h_{l-1} + b_l),   l = 1 ... L-1
        logits = W_L h_{L-1} + b_L

    which are the logits of ``Lmser(sizes, num_classes=sizes[-1])`` with the same weights and one reflection.

    sizes:      units of layers 0 ... L; the last are the classes
    activation: `f`, one of `lmser_kernels`' names; `slope` is the leak of the leaky ones

    Starts as `nn.Linear` does, from torch's global generator. Raises TypeError or ValueError naming the
    argument.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (784, 300, 100, 10),
        *,
        activation: str = "relu",
        slope: float | None = None,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        activations.check(activation, slope)
        self.sizes = tuple(sizes)
        if len(self.sizes) < 2:
            raise ValueError(f"sizes: expected at least two layers, got {self.sizes}")
        for size in self.sizes:
            whole("sizes", size)
        self.num_classes = self.sizes[-1]
        top = len(self.sizes) - 2
        self.layers = nn.Sequential()
        for edge, (below, above) in enumerate(pairwise(self.sizes)):
            f, leak = ("identity", None) if edge == top else (activation, slope)
            self.layers.append(
                TiedLinear(below, above, activation=f, slope=leak, device=device, dtype=dtype, impl=impl)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, sizes[-1])`` of `x`: ``(N, sizes[0])`` or anything that flattens to it."""
        if x.dim() < 2 or math.prod(x.shape[1:]) != self.sizes[0]:
            raise ValueError(
                f"x: expected shape (N, {self.sizes[0]}) or one that flattens to it, got {tuple(x.shape)}"
            )
        logits: Tensor = self.layers(x.flatten(1))
        return logits


class CNN(Classifier):
    """Convolutional classifier of `CLmser`'s layers (000, Recognition; 001 Table 7).

        h_l = f(conv(h_{l-1}, W_l) + b_l)

    in_channels, channels, strides, kernel_size: as in `lmser.CLmser`, padding being half of the kernel
    num_classes: number of logits
    head:        ``"mean"`` (used by the experiments): the top layer is linear, and its channels averaged over
                 positions are the logits. These are those of ``CLmser(..., num_classes=num_classes)`` with
                 the same weights and one reflection; the top layer has `num_classes` channels in place of
                 ``channels[-1]``, because the others serve CLmser's reconstruction only.
                 ``"linear"``, the usual CNN: all of ``channels[-1]`` behind `f`, flattened, and one linear
                 layer to the logits; needs `size`
    size:        height and width of the images (an int is both), with ``head="linear"`` only
    activation:  `f`, one of `lmser_kernels`' names; `slope` is the leak of the leaky ones

    Starts as `nn.Conv2d` and `nn.Linear` do, from torch's global generator. States are channels-last inside.
    Raises TypeError or ValueError naming the argument.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[int | Pair],
        num_classes: int,
        *,
        kernel_size: int | Pair = 3,
        head: str = "mean",
        size: int | Pair | None = None,
        activation: str = "relu",
        slope: float | None = None,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        activations.check(activation, slope)
        whole("in_channels", in_channels)
        channels, steps = tuple(channels), [pair("strides", stride) for stride in strides]
        if not channels:
            raise ValueError("channels: expected at least one layer, got none")
        for width in channels:
            whole("channels", width)
        if len(steps) != len(channels):
            raise ValueError(
                f"strides: expected one for each of the {len(channels)} layers, got {len(steps)}"
            )
        if head not in HEADS:
            raise ValueError(f"head: expected one of {', '.join(map(repr, HEADS))}, got {head!r}")
        if head == "mean" and whole("num_classes", num_classes) > channels[-1]:
            raise ValueError(
                f"num_classes: {num_classes} class units do not fit into a top layer of {channels[-1]}"
            )
        if (size is None) == (head == "linear"):
            raise ValueError(
                f"size: expected with head='linear' and only there, got {size} with head={head!r}"
            )
        self.in_channels, self.channels, self.head = in_channels, channels, head
        self.num_classes = whole("num_classes", num_classes)
        kernel = pair("kernel_size", kernel_size)
        padding = (kernel[0] // 2, kernel[1] // 2)
        widths = (in_channels, *channels[:-1], num_classes if head == "mean" else channels[-1])
        self.layers = nn.ModuleList()
        for (below, above), stride in zip(pairwise(widths), steps, strict=True):
            is_logits = head == "mean" and len(self.layers) == len(channels) - 1
            f, leak = ("identity", None) if is_logits else (activation, slope)
            layer = Conv2dAddAct(
                below, above, kernel, stride, padding,
                activation=f, slope=leak, device=device, dtype=dtype, impl=impl,
            )  # fmt: skip
            self.layers.append(layer)
        self.size: Pair | None = None
        self.readout: TiedLinear | None = None
        if size is not None:
            self.size = height, width = pair("size", size)
            for vertical, horizontal in steps:
                height = (height + 2 * padding[0] - kernel[0]) // vertical + 1
                width = (width + 2 * padding[1] - kernel[1]) // horizontal + 1
            self.readout = TiedLinear(
                channels[-1] * height * width, num_classes, device=device, dtype=dtype, impl=impl
            )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, in_channels, H, W)``."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected shape (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            raise ValueError(f"x: expected images of {self.size}, got {tuple(x.shape[2:])}")
        state = x
        for layer in self.layers:
            state = layer(channels_last(state))
        if self.readout is None:
            return state.mean((2, 3))
        logits: Tensor = self.readout(state.flatten(1))
        return logits
