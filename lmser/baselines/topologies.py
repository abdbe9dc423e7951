"""The twelve topologies of 003 Table 2: four networks, each with mean pools, max pools, or inhibitor connections.

The paper gives no sizes. SmallCNN is the network of the authors' own program for inversion, LargeCNN that of their
program for its theory ("A Spline Theory of Deep Networks") without batch normalisation, which 003 excludes (App. A.2).
The names of the residual ones are read as depth-width: "Resnet2-32" has 2 blocks of Eq. (3) at each of three
resolutions, of 32, 64 and 128 channels. As in the authors' program for inversion all end in a global mean pool,
whichever pools are before it, and a linear layer, and start from Glorot's uniform weights and zero biases. The
activation is relu, as there; 003 does not say. Networks with inhibitor connections have mean pools and no biases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from lmser.baselines.residual import InhibitorConv2d, ResidualBlock
from lmser.inversion.step import Activation, Step
from lmser_kernels.nn import Conv2dAddAct, MaxPool2dAct

__all__ = ["POOLINGS", "TOPOLOGIES", "LargeCNN", "ResNet", "SmallCNN"]

POOLINGS = ("mean", "max", "inhibitor")


class _Logits(nn.Flatten):
    """The one pixel that the global pool leaves, as rows. ValueError where images of another size left several."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (1, 1):
            raise ValueError(
                f"x: expected images of the `size` that the network was built for, got such that leave {x.shape[2]}x"
                f"{x.shape[3]} pixels behind its global pool"
            )
        return super().forward(x)

    def gated(self, x: Tensor, f: Activation | None) -> Step:
        return Step(self(x), f, lambda g: g.view(x.shape))


class _Topology(nn.Sequential):
    """What the three share: layers are appended one by one, a pool waiting for the convolution that takes it in."""

    def __init__(
        self, in_channels: int, num_classes: int, pooling: str, activation: str, slope: float | None
    ) -> None:
        super().__init__()
        for name, count in (("in_channels", in_channels), ("num_classes", num_classes)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected a positive int, got {count!r}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.num_classes, self.pooling = num_classes, pooling
        self._channels, self._activation, self._slope = in_channels, activation, slope

    def _conv(self, channels: int, kernel: int, padding: int, pool: int = 1, then: int = 1) -> None:
        """A convolution behind an average pool; `then` is the pool behind it, which is a layer where it is a max."""
        by_max = self.pooling == "max" and then > 1
        activation, slope = ("identity", None) if by_max else (self._activation, self._slope)
        layer = InhibitorConv2d if self.pooling == "inhibitor" else Conv2dAddAct
        pool = 1 if self.pooling == "max" else pool
        self.append(
            layer(self._channels, channels, kernel, 1, padding, activation=activation, slope=slope, pool=pool)
        )
        if by_max:
            self.append(MaxPool2dAct(then, activation=self._activation, slope=self._slope))
        self._channels = channels

    def _head(self, pool: int) -> None:
        bias = self.pooling != "inhibitor"
        self.append(Conv2dAddAct(self._channels, self.num_classes, 1, bias=bias, pool=pool))
        self.append(_Logits())
        for module in self.modules():
            if isinstance(module, Conv2dAddAct):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class SmallCNN(_Topology):
    """conv 5x5 (32) - pool 2 - conv 3x3 (64) - pool 2 - conv 3x3 (128) - global mean - linear, none of them padded.

    in_channels, num_classes: of the images and of the logits
    pooling:     ``"mean"``, ``"max"`` or ``"inhibitor"``
    activation, slope: of the convolutions, one of `lmser_kernels`' names
    size:        height and width of the images

    Logits `(N, num_classes)` of images `(N, in_channels, size, size)`. Raises ValueError naming the argument.

    Source: 003 Table 2, SmallCNNmean, SmallCNNmax, SmallUCNN.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        *,
        pooling: str = "mean",
        activation: str = "relu",
        slope: float | None = None,
        size: int = 28,
    ) -> None:
        super().__init__(in_channels, num_classes, pooling, activation, slope)
        top = ((size - 4) // 2 - 2) // 2 - 2
        if top < 1:
            raise ValueError(f"size: expected images of at least 20 pixels, got {size}")
        self._conv(32, 5, 0, then=2)
        self._conv(64, 3, 0, pool=2, then=2)
        self._conv(128, 3, 0, pool=2)
        self._head(top)


class LargeCNN(_Topology):
    """Three convolutions of 96 channels, three of 192, and two more of 192, a pool by 2 behind either three, a
    global one at the end; 3x3 but for the last, which is 1x1; paddings same, full, full, none, full, none, none.

    Arguments as `SmallCNN`'s. Source: 003 Table 2, LargeCNNmean, LargeCNNmax, LargeUCNN.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        *,
        pooling: str = "mean",
        activation: str = "relu",
        slope: float | None = None,
        size: int = 28,
    ) -> None:
        super().__init__(in_channels, num_classes, pooling, activation, slope)
        top = ((size + 4) // 2 - 2) // 2 - 2
        if top < 1:
            raise ValueError(f"size: expected images of at least 12 pixels, got {size}")
        self._conv(96, 3, 1)
        self._conv(96, 3, 2)
        self._conv(96, 3, 2, then=2)
        self._conv(192, 3, 0, pool=2)
        self._conv(192, 3, 2)
        self._conv(192, 3, 0, then=2)
        self._conv(192, 3, 0, pool=2)
        self._conv(192, 1, 0)
        self._head(top)


class ResNet(_Topology):
    """conv 3x3 (width) - `depth` blocks of `width` channels - pool 2 - `depth` of twice, pool 2, of four times as many
    - global mean - linear. The blocks are `ResidualBlock`s (003 Eq. 3).

    Other arguments as `SmallCNN`'s. Source: 003 Table 2, Resnet2-32 and Resnet3-16 with their variants.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        in_channels: int = 1,
        num_classes: int = 10,
        *,
        pooling: str = "mean",
        activation: str = "relu",
        slope: float | None = None,
        size: int = 28,
    ) -> None:
        super().__init__(in_channels, num_classes, pooling, activation, slope)
        for name, count in (("depth", depth), ("width", width)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected a positive int, got {count!r}")
        if size < 4:
            raise ValueError(f"size: expected images of at least 4 pixels, got {size}")
        self._conv(width, 3, 1)
        for group in range(3):
            for block in range(depth):
                self._block(width << group, pool=2 if group and not block else 1)
        self._head(size // 4)

    def _block(self, channels: int, pool: int) -> None:
        if self.pooling == "max" and pool > 1:
            self.append(MaxPool2dAct(pool))
            pool = 1
        self.append(
            ResidualBlock(
                self._channels,
                channels,
                pool=pool,
                activation=self._activation,
                slope=self._slope,
                inhibitor=self.pooling == "inhibitor",
            )
        )
        self._channels = channels


def _named() -> dict[str, Callable[..., _Topology]]:
    networks: dict[str, Callable[..., _Topology]] = {
        "SmallCNN": SmallCNN,
        "LargeCNN": LargeCNN,
        "Resnet2-32": functools.partial(ResNet, 2, 32),
        "Resnet3-16": functools.partial(ResNet, 3, 16),
    }
    found: dict[str, Callable[..., _Topology]] = {}
    for name, network in networks.items():
        inhibited = name.replace("CNN", "UCNN") if "CNN" in name else f"U{name}"
        for pooling, title in (("mean", f"{name}mean"), ("max", f"{name}max"), ("inhibitor", inhibited)):
            found[title] = functools.partial(network, pooling=pooling)
    return found


TOPOLOGIES: Mapping[str, Callable[..., nn.Sequential]] = MappingProxyType(_named())
"""The twelve by their names in 003 Table 2: `TOPOLOGIES["SmallUCNN"](in_channels=1, num_classes=10)`."""
