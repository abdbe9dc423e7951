"""The reflection networks in plain eager PyTorch: the oracle of the fused ones, and what they are timed
against.

Both twins are built with the arguments of the network that they mirror, have its parameters under the same
names (so that a ``state_dict`` goes either way) and return what it returns. Nothing of `lmser_kernels` runs
here: the passes are 001 Eqs. (3)-(5) line by line, with nothing skipped that a later pass would find again.
The bias rides on the bottom-up convolution, as anybody would write it who cares for speed: `y_i + b_i` is
what is held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser.models.clmser import CLmser
from lmser.models.lmser import Lmser
from lmser.models.reflection import Pair, Reflected, ReflectionNetwork, reflection_loss


class _Eager(ReflectionNetwork, ABC):
    """The passes; a twin says what an edge does."""

    @abstractmethod
    def _bottom_up(self, layer: int, below: Tensor) -> Tensor:
        """`y_layer + b_layer` of the state below it."""

    @abstractmethod
    def _top_down(self, layer: int, above: Tensor, size: Pair, bias: Tensor | None) -> Tensor:
        """`u_layer`, plus the bias where one is given, of the state above it."""

    def _f(self, z: Tensor) -> Tensor:
        if self.activation == "relu":
            return F.relu(z)
        if self.activation == "sigmoid":
            return torch.sigmoid(z)
        if self.activation == "tanh":
            return torch.tanh(z)
        if self.activation == "leaky_relu":
            return F.leaky_relu(z, 0.01 if self.slope is None else self.slope)
        if self.activation == "leaky_sigmoid":
            alpha = 0.2 if self.slope is None else self.slope
            return torch.where(z > 1, alpha * (z - 1) + 1, torch.where(z < -1, alpha * (z + 1) - 1, z))
        return z

    def _top_state(self, z: Tensor, noise: Tensor | None) -> Tensor:
        classes, styles = self.num_classes or 0, self.style_units
        if classes == 0 and styles == 0:
            return self._f(z)
        logits, code, style = z.split([classes, z.shape[1] - classes - styles, styles], dim=1)
        return torch.cat([logits, self._f(code), style if noise is None else style + noise], dim=1)

    def _passes(
        self, x: Tensor, sizes: list[Pair], noise: Tensor | None, sent_down: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        depth = self.depth
        h: list[Tensor] = [x] * (depth + 1)
        y: list[Tensor] = [x] * (depth + 1)
        u: list[Tensor | None] = [None] * (depth + 1)  # None: no drive from above (yet)
        for reflection in range(self.reflections):
            for i in range(1, depth + 1):
                y[i] = self._bottom_up(i, h[i - 1])
                above = u[i]
                z = y[i] if above is None or not self.dpn else y[i] + above
                h[i] = self._f(z) if i < depth else self._top_state(z, noise)
            if sent_down is not None and reflection == self.reflections - 1:
                h[depth] = sent_down
            for i in range(depth - 1, 0, -1):
                if self.dpn:
                    u[i] = drive = self._top_down(i, h[i + 1], sizes[i], None)
                    h[i] = self._f(y[i] + drive)
                else:
                    h[i] = self._f(self._top_down(i, h[i + 1], sizes[i], self.biases[i - 1]))
        return self._top_down(0, h[1], sizes[0], self.reconstruction_bias), h[depth]

    def _down_from(self, top: Tensor, sizes: list[Pair]) -> Tensor:
        h = top
        for i in range(self.depth - 1, 0, -1):
            h = self._f(self._top_down(i, h, sizes[i], self.biases[i - 1]))
        return self._top_down(0, h, sizes[0], self.reconstruction_bias)


class EagerLmser(_Eager, Lmser):
    """`lmser.Lmser` as matrix products and additions."""

    def _bottom_up(self, layer: int, below: Tensor) -> Tensor:
        return F.linear(below, self.weights[layer - 1], self.biases[layer - 1])

    def _top_down(self, layer: int, above: Tensor, size: Pair, bias: Tensor | None) -> Tensor:
        weight = (self.weights if self.decoder_weights is None else self.decoder_weights)[layer]
        return F.linear(above, weight.t(), bias)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Reflected:
        """As `lmser.Lmser.forward`."""
        visible = self._units(x, "x", self.sizes[0])
        noise = self._style_noise(visible, generator)
        noise = None if noise is None else noise.flatten(1)
        reconstruction, top = self._passes(visible.flatten(1), [(1, 1)] * (self.depth + 1), noise)
        logits = None if self.num_classes is None else top[:, : self.num_classes]
        return Reflected(reconstruction.reshape(x.shape), top, logits)

    def decode(self, code: Tensor, *, image: Tensor | None = None) -> Tensor:
        """As `lmser.Lmser.decode`."""
        top = self._units(code, "code", len(self.biases[-1])).flatten(1)
        if image is None:
            return self._down_from(top, [(1, 1)] * self.depth)
        visible = self._units(image, "image", self.sizes[0]).flatten(1)
        return self._passes(visible, [(1, 1)] * (self.depth + 1), None, top)[0]


class EagerCLmser(_Eager, CLmser):
    """`lmser.CLmser` as convolutions, transposed convolutions and additions.

    Runs in the memory format that image and weights come in: ``model.to(memory_format=torch.channels_last)``
    with a channels-last image is the channels-last baseline.
    """

    def _bottom_up(self, layer: int, below: Tensor) -> Tensor:
        edge = layer - 1
        return F.conv2d(below, self.weights[edge], self.biases[edge], self.strides[edge], self.paddings[edge])

    def _top_down(self, layer: int, above: Tensor, size: Pair, bias: Tensor | None) -> Tensor:
        weight = (self.weights if self.decoder_weights is None else self.decoder_weights)[layer]
        stride, padding, kernel = self.strides[layer], self.paddings[layer], self.kernel_sizes[layer]
        extra = [
            size[d] - ((above.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + kernel[d]) for d in (0, 1)
        ]
        return F.conv_transpose2d(above, weight, bias, stride, padding, extra)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Reflected:
        """As `lmser.CLmser.forward`, in the layout of `x`."""
        self._check(x, "x", self.in_channels)
        sizes = self.layer_sizes((x.shape[2], x.shape[3]))
        reconstruction, top = self._passes(x, sizes, self._style_noise(x, generator))
        return Reflected(reconstruction, top, self._logits(top))

    def decode(self, code: Tensor, size: Pair | None = None, *, image: Tensor | None = None) -> Tensor:
        """As `lmser.CLmser.decode`."""
        if image is None:
            return self._down_from(code, self._sizes_below(code, size))
        return self._passes(image, self.layer_sizes((image.shape[2], image.shape[3])), None, code)[0]

    def loss(self, x: Tensor, y: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """As `lmser.CLmser.loss`, without a change of layout."""
        return reflection_loss(self(x, generator=generator), x, y)
