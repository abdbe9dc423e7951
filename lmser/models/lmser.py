"""`Lmser`: the reflection network on fully connected layers (000)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lmser.models.reflection import Reflected, ReflectionNetwork, same_batch, whole


class Lmser(ReflectionNetwork):
    """Reflection network of fully connected layers (000, "Revisit Lmser and implement it on multiple ...").

        h_l = f(W_l h_{l-1} + W_{l+1}ᵀ h_{l+1} + b_l),   l = 1 ... L
        reconstruction = W_1ᵀ h_1 + b_0

    with the passes and readings of `lmser.models.reflection`. 000's names: ``Lmser(un)`` and ``Lmser(sup)``
    (with `num_classes`) have both dualities, ``Lmser(un-n)`` is ``dpn=False``, ``AE`` is ``dcw=False,
    dpn=False``.

    sizes:       units of layers 0 ... L, e.g. ``(784, 300, 100, 10)``
    dcw:         duality in connection weights: one weight per edge serves both directions. False: a free
                 decoder weight of the same shape
    dpn:         duality in paired neurons: a neuron adds both drives. False: a neuron of the decoder is
                 `f(u_l + b_l)`, and reflections beyond the first change nothing
    reflections: k >= 1 bottom-up and top-down passes
    num_classes: the first so many units of the top layer are class logits, sent down with the others
    style_units: so many further units on top of ``sizes[-1]`` that take standard Gaussian noise in training
                 mode before they go down; the encoder gives their mean (000, Generation)
    activation:  one of identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid; `slope` is the leak of the
                 leaky ones
    init:        ``"default"``, ``"isometric"`` or ``"balanced"``, see `lmser.models.initialisation`
    impl:        handed to every operation of `lmser_kernels`

    Weights are ``(sizes[l], sizes[l-1])``, as `nn.Linear`'s. Raises TypeError or ValueError naming the
    argument.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
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
        sizes = tuple(sizes)
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected at least two layers, got {sizes}")
        for size in sizes:
            whole("sizes", size)
        widths = (*sizes[:-1], sizes[-1] + whole("style_units", style_units, least=0))
        super().__init__(
            [(above, below) for below, above in pairwise(widths)],
            [(1, 1)] * (len(sizes) - 1),
            dcw=dcw, dpn=dpn, reflections=reflections, num_classes=num_classes, style_units=style_units,
            activation=activation, slope=slope, init=init, impl=impl, device=device, dtype=dtype,
        )  # fmt: skip
        self.sizes = sizes

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Reflected:
        """Reflect `x`: ``(N, sizes[0])`` or anything that flattens to it, e.g. ``(N, 1, 28, 28)``.

        `generator` draws the noise of the style units in training mode; torch's global one by default.
        """
        reconstruction, top = self._reflect(self._visible(x), generator)
        return Reflected(reconstruction.reshape(x.shape), top.flatten(1), self._logits(top))

    _only_passes = forward

    def _visible(self, x: Tensor) -> Tensor:
        return self._units(x, "x", self.sizes[0])

    def decode(self, code: Tensor, *, image: Tensor | None = None) -> Tensor:
        """Reconstruction ``(N, sizes[0])`` of a code ``(N, sizes[-1] + style_units)``.

        Without an image neurons get no drive from below: `h_l = f(u_l + b_l)`. With `dpn=False`,
        ``decode(code)`` of the code that an image gave is that image's reconstruction.

        With `image`, ``(N, sizes[0])`` or anything that flattens to it, the drives `y_l` that it gives are
        held: `h_l = f(y_l + u_l + b_l)`, the reflection of the image with `code` sent down in place of its
        own. ``decode(network(x).code, image=x)`` is the reconstruction of `x`.
        """
        top = self._units(code, "code", len(self.biases[-1]))
        if image is None:
            return self._send_down(top, [(1, 1)] * self.depth).flatten(1)
        visible = self._units(image, "image", self.sizes[0])
        same_batch(code, image)
        return self._reflect(visible, None, top)[0].flatten(1)

    def _units(self, x: Tensor, name: str, expected: int) -> Tensor:
        if x.dim() < 2 or math.prod(x.shape[1:]) != expected:
            raise ValueError(
                f"{name}: expected shape (N, {expected}) or one that flattens to it, got {tuple(x.shape)}"
            )
        return x.reshape(len(x), expected, 1, 1)
