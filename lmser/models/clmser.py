"""`CLmser`: the reflection network on convolutional layers (001)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lmser.models.reflection import Pair, Reflected, ReflectionNetwork, channels_last, pair, same_batch, whole


class CLmser(ReflectionNetwork):
    """CNN based Lmser (001, "Deep CNN Based Lmser and Strengths of Two Built-In Dualities").

        h_l = f(conv(h_{l-1}, W_l) + conv_transpose(h_{l+1}, W_{l+1}) + b_l),   l = 1 ... L
        reconstruction = conv_transpose(h_1, W_1) + b_0

    with the passes and readings of `lmser.models.reflection`. 001's names: ``CLmser`` has both dualities,
    ``CLmser-w`` is ``dcw=False``, ``CLmser-n`` is ``dpn=False``, ``CAE`` is ``dcw=False, dpn=False``. STL10
    (Table 2): ``CLmser(3, (16, 32, 64, 128, 256), (1, 2, 2, 2, 2))``.

    in_channels: channels of the image
    channels:    of layers 1 ... L
    strides:     of the edges into layers 1 ... L, ints or pairs (height, width)
    kernel_size: of all edges, an int or a pair; padding is half of it, so that a stride s divides a size by s
                 (rounding up, for an odd kernel). A 1-D signal is ``(N, C, 1, W)`` with kernel ``(1, k)``
    dcw, dpn, reflections, num_classes, style_units, activation, slope, init, impl: as in `Lmser`; the logits
                 are the first channels of the top layer averaged over positions, and style units are channels

    The top-down pass pins every layer to its size on the way up, whatever the parity: 97x97 comes back as
    97x97. All states are channels-last inside; an image in another layout is converted once, and the
    reconstruction is channels-last. Weights are `nn.Conv2d`'s ``(C_out, C_in, kh, kw)``. Raises TypeError or
    ValueError naming the argument.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[int | Pair],
        *,
        kernel_size: int | Pair = 3,
        dcw: bool = True,
        dpn: bool = True,
        reflections: int = 1,
        num_classes: int | None = None,
        style_units: int = 0,
        activation: str = "relu",
        slope: float | None = None,
        init: str = "default",
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        whole("in_channels", in_channels)
        channels, strides = tuple(channels), tuple(strides)
        if not channels:
            raise ValueError("channels: expected at least one layer, got none")
        for width in channels:
            whole("channels", width)
        if len(strides) != len(channels):
            raise ValueError(
                f"strides: expected one for each of the {len(channels)} layers, got {len(strides)}"
            )
        kernel = pair("kernel_size", kernel_size)
        widths = (in_channels, *channels[:-1], channels[-1] + whole("style_units", style_units, least=0))
        super().__init__(
            [(above, below, *kernel) for below, above in pairwise(widths)],
            [pair("strides", stride) for stride in strides],
            dcw=dcw, dpn=dpn, reflections=reflections, num_classes=num_classes, style_units=style_units,
            activation=activation, slope=slope, init=init, impl=impl, device=device, dtype=dtype,
        )  # fmt: skip
        self.in_channels, self.channels = in_channels, channels

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Reflected:
        """Reflect images ``(N, in_channels, H, W)``.

        `generator` draws the noise of the style units in training mode; torch's global one by default.
        """
        reconstruction, top = self._reflect(channels_last(self._visible(x)), generator)
        return Reflected(reconstruction, top, self._logits(top))

    _only_passes = forward

    def decode(self, code: Tensor, size: Pair | None = None, *, image: Tensor | None = None) -> Tensor:
        """Images ``(N, in_channels, *size)`` of a code ``(N, C_L, H_L, W_L)``.

        Without an image neurons get no drive from below, as in `Lmser.decode`. `size` is then needed where
        strides do not tell it (28 -> 14 -> 7 -> 4 comes from 28, not from 32); by default the largest that
        gives a code of this size.

        With `image`, ``(N, in_channels, *size)``, the drives that it gives are held, as in `Lmser.decode`.
        """
        self._check(code, "code", len(self.biases[-1]))
        if image is None:
            return self._send_down(channels_last(code), self._sizes_below(code, size))
        self._check(image, "image", self.in_channels)
        same_batch(code, image)
        height, width = image.shape[2], image.shape[3]
        if size is not None and pair("size", size) != (height, width):
            raise ValueError(f"size: expected that of the image, {(height, width)}, got {size}")
        self._sizes_below(code, (height, width))  # checks that such images have such codes
        return self._reflect(channels_last(image), None, channels_last(code))[0]

    def loss(self, x: Tensor, y: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        # The comparison with the reconstruction does not run across two layouts.
        x = self._visible(x)
        plain = y is None and self._called_plainly()
        return super().loss(x if plain else channels_last(x), y, generator=generator)

    loss.__doc__ = ReflectionNetwork.loss.__doc__

    def _visible(self, x: Tensor) -> Tensor:
        self._check(x, "x", self.in_channels)
        return x

    def _sizes_below(self, code: Tensor, size: Pair | None) -> list[Pair]:
        top = (code.shape[2], code.shape[3])
        if size is not None:
            sizes = self.layer_sizes(pair("size", size))
            if sizes[-1] != top:
                raise ValueError(f"size: images of {size} have codes of {sizes[-1]}, but this code is {top}")
            return sizes
        sizes = [top]
        edges = zip(self.kernel_sizes, self.strides, self.paddings, strict=True)
        for (kh, kw), (sh, sw), (ph, pw) in reversed(list(edges)):
            height, width = sizes[-1]
            sizes.append((height * sh - 2 * ph + kh - 1, width * sw - 2 * pw + kw - 1))
        return sizes[::-1]

    @staticmethod
    def _check(x: Tensor, name: str, channels: int) -> None:
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"{name}: expected shape (N, {channels}, H, W), got {tuple(x.shape)}")
