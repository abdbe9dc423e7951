"""Reflection: passes up and down through tied weights, one operation for all of them (001 Eqs. 3-5).

Layers 0 ... L, layer 0 visible, edge l between layers l-1 and l:

    bottom-up drive   y_l = conv(h_{l-1}, W_l)
    top-down drive    u_l = conv_transpose(h_{l+1}, W_{l+1})
    neuron            h_l = f(y_l + u_l + b_l)
    reconstruction    u_0 + b_0, no activation

The first bottom-up pass has all `u = 0`; a top-down pass runs l = L-1 ... 1 with the `y` of the last
bottom-up pass, the next bottom-up pass runs with the `u` of the last top-down pass. One of each is a
reflection.

Readings where the papers leave a choice (a slow test in tests/test_lmser.py holds them to their numbers on
MNIST at 500 steps):

- `f` acts on every layer above the visible one, the code layer included, as 001 Eq. (3) says for all i > 0.
  With a linear code AE comes out at 0.032 in place of 0.038, still further from 000's 0.071.
- One bias per channel and layer, the same in both directions and also where the neurons are not paired.
- Class logits (000 Eq. 4) and style units (000, Generation) are read and sent down linearly: a logit and the
  mean of a Gaussian have either sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.models.initialisation import SCHEMES, initialise
from lmser_kernels import activation as activations
from lmser_kernels import conv_transpose2d_add_act, reflect, reflect_loss
from lmser_kernels.layout import channels_last
from lmser_kernels.reflect.loss import half_squared_error

Pair = tuple[int, int]


class Reflected(NamedTuple):
    """What a forward pass returns.

    reconstruction: `u_0 + b_0`, shaped like the input
    code:           state of the top layer as it was sent down: ``(N, C_L)`` of an `Lmser`, ``(N, C_L, H_L,
                    W_L)`` of a `CLmser`. Its first `num_classes` channels are the logits, its last
                    `style_units` the style units (with their noise in training mode), both linear; the others
                    are `f` of their drive
    logits:         ``(N, num_classes)``, averaged over positions; None without `num_classes`
    """

    reconstruction: Tensor
    code: Tensor
    logits: Tensor | None


def reflection_loss(output: Reflected, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Loss of a batch (001 Eq. 1, 000 Eq. 4), a 0-d tensor.

        J = 1/N sum_n (1/2 ||x_n - reconstruction_n||² + cross_entropy(logits_n, y_n))

    The square is summed over all values of a sample, not averaged: with Adam the scale matters only beside
    the cross-entropy, and there only the sum reproduces 000 Table 1. Per-value MSE is `2 J / x[0].numel()` of
    the unsupervised loss. Half precision is summed in float32.

    x: what was to be reconstructed, shaped like ``output.reconstruction``. y: ``(N,)`` int64 labels, or ``(N,
    num_classes)`` probabilities, or None to leave the second term out.

    Raises ValueError where the shapes differ and where labels come without logits.
    """
    reconstruction, _, logits = output
    if reconstruction.shape != x.shape:
        raise ValueError(
            f"x: expected the reconstruction's shape {tuple(reconstruction.shape)}, got {tuple(x.shape)}"
        )
    loss = half_squared_error(reconstruction, x)
    if y is None:
        return loss
    if logits is None:
        raise ValueError("y: labels were given but the network has no class units (num_classes=None)")
    return loss + F.cross_entropy(logits, y)


class ReflectionNetwork(nn.Module):
    """What `Lmser` and `CLmser` share; build one of those.

    Parameters (names of the ``state_dict``): ``weights.0 ... weights.L-1`` (edge l-1 -> l is number l-1),
    ``biases.0 ... biases.L-1`` (layers 1 ... L), ``reconstruction_bias`` (layer 0), and without DCW
    ``decoder_weights.0 ... decoder_weights.L-1``, shaped like `weights`.
    """

    def __init__(
        self,
        weight_shapes: Sequence[tuple[int, ...]],
        strides: Sequence[Pair],
        *,
        dcw: bool,
        dpn: bool,
        reflections: int,
        num_classes: int | None,
        style_units: int,
        activation: str,
        slope: float | None,
        init: str,
        impl: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        whole("reflections", reflections)
        if num_classes is not None:
            whole("num_classes", num_classes)
        whole("style_units", style_units, least=0)
        if (num_classes or 0) + style_units > weight_shapes[-1][0]:
            raise ValueError(
                f"num_classes: {num_classes} class units and {style_units} style units do not fit into a "
                f"top layer of {weight_shapes[-1][0]}"
            )
        if init not in SCHEMES:
            raise ValueError(f"init: expected one of {', '.join(map(repr, SCHEMES))}, got {init!r}")
        activations.check(activation, slope)
        self.activation, self.slope, self.init, self.impl = activation, slope, init, impl
        self.dcw, self.dpn = bool(dcw), bool(dpn)
        self.reflections, self.num_classes, self.style_units = reflections, num_classes, style_units
        self.strides = tuple(strides)
        # A 2-D weight is a fully connected edge, the 1x1 case.
        kernels = [shape[2:] if len(shape) == 4 else (1, 1) for shape in weight_shapes]
        self.kernel_sizes: tuple[Pair, ...] = tuple((height, width) for height, width in kernels)
        self.paddings: tuple[Pair, ...] = tuple((kh // 2, kw // 2) for kh, kw in self.kernel_sizes)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weights = nn.ParameterList([empty(*shape) for shape in weight_shapes])
        self.biases = nn.ParameterList([empty(shape[0]) for shape in weight_shapes])
        self.reconstruction_bias = empty(weight_shapes[0][1])
        self.decoder_weights = None if dcw else nn.ParameterList([empty(*shape) for shape in weight_shapes])
        self.reset_parameters()

    @property
    def depth(self) -> int:
        """L, the number of layers above the visible one."""
        return len(self.weights)

    def reset_parameters(self) -> None:
        """Draw all parameters anew by the scheme `init`, from torch's global generator."""
        initialise(self, self.init)

    def extra_repr(self) -> str:
        widths = [self.reconstruction_bias.numel(), *(b.numel() for b in self.biases)]
        return (
            f"{'-'.join(map(str, widths))}, dcw={self.dcw}, dpn={self.dpn}, reflections={self.reflections}, "
            f"num_classes={self.num_classes}, style_units={self.style_units}, activation={self.activation!r}"
        )

    def _style_noise(self, visible: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if not (self.training and self.style_units):
            return None
        shape = (len(visible), self.style_units, *self.layer_sizes((visible.shape[2], visible.shape[3]))[-1])
        return torch.randn(shape, generator=generator, device=visible.device, dtype=visible.dtype)

    def _reflect(
        self, visible: Tensor, generator: torch.Generator | None, sent_down: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(u_0 + b_0, h_L)`` of a visible state ``(N, C_0, H_0, W_0)``.

        `sent_down` takes the place of h_L in the last top-down pass.
        """
        return reflect(**self._arguments(visible, generator), sent_down=sent_down)

    def _arguments(self, visible: Tensor, generator: torch.Generator | None) -> dict[str, Any]:
        """The arguments of `lmser_kernels.reflect` for a visible state."""
        free = self.decoder_weights
        return {
            "x": visible,
            "weights": _entries(self.weights),
            "biases": [self.reconstruction_bias, *_entries(self.biases)],
            "decoder_weights": None if free is None else _entries(free),
            "stride": list(self.strides),
            "padding": list(self.paddings),
            "paired": self.dpn,
            "reflections": self.reflections,
            "linear": (self.num_classes or 0, self.style_units),
            "noise": self._style_noise(visible, generator),
            "activation": self.activation,
            "slope": self.slope,
            "impl": self.impl,
        }

    def _send_down(self, top: Tensor, sizes: Sequence[Pair]) -> Tensor:
        """Reconstruction from a top state alone: no drive from below, `h_l = f(u_l + b_l)`."""
        weights = self.weights if self.decoder_weights is None else self.decoder_weights
        state = top
        for layer in range(self.depth - 1, -1, -1):
            activation = "identity" if layer == 0 else self.activation
            state = channels_last(
                conv_transpose2d_add_act(
                    state,
                    four_dimensional(weights[layer]),
                    None,
                    self.reconstruction_bias if layer == 0 else self.biases[layer - 1],
                    stride=self.strides[layer],
                    padding=self.paddings[layer],
                    output_size=sizes[layer],
                    activation=activation,
                    slope=None if activation == "identity" else self.slope,
                    impl=self.impl,
                )
            )
        return state

    def _logits(self, top: Tensor) -> Tensor | None:
        return None if self.num_classes is None else top[:, : self.num_classes].mean((2, 3))

    def layer_sizes(self, visible: Pair) -> list[Pair]:
        """Height and width of layers 0 ... L for a visible layer of the size given."""
        sizes = [visible]
        for (kh, kw), (sh, sw), (ph, pw) in zip(self.kernel_sizes, self.strides, self.paddings, strict=True):
            height, width = sizes[-1]
            sizes.append(((height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1))
        return sizes

    def loss(self, x: Tensor, y: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """`reflection_loss` of this network's output for `x` and, where labels are given, `y`.

        Without labels it is one operation, which on a CPU makes the gradients on the way
        (`lmser_kernels.reflect_loss`): where they are not wanted, call it under `torch.no_grad()`. With labels, and
        where calling the network is more than its own `forward` (hooks, a class that has another), it is the loss of
        what the call returns.
        """
        if y is None and self._called_plainly():
            return reflect_loss(**self._arguments(self._visible(x), generator))
        return reflection_loss(self(x, generator=generator), x, y)

    _only_passes: Callable[..., Reflected]  # the `forward` that does nothing but `_reflect`

    def _visible(self, x: Tensor) -> Tensor:
        """`x`, checked, as a visible state."""
        raise NotImplementedError

    def _called_plainly(self) -> bool:
        """Whether calling this network is the passes and nothing else."""
        hooks = torch.nn.modules.module
        return type(self).forward is type(self)._only_passes and not (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
            or hooks._global_forward_hooks
            or hooks._global_forward_pre_hooks
            or hooks._global_backward_hooks
            or hooks._global_backward_pre_hooks
        )


def _entries(parameters: nn.ParameterList) -> list[Tensor]:
    """What iterating gives, without looking each one up by its name, which costs a small network more than it computes.
    Entries that are no parameters (parametrized ones, say) are found by iterating alone."""
    found: list[Tensor] = [p for p in parameters._parameters.values() if p is not None]
    return found if len(found) == len(parameters) else list(parameters)


def four_dimensional(weight: Tensor) -> Tensor:
    """A fully connected edge's matrix as the 1x1 convolution that it is."""
    return weight if weight.dim() == 4 else weight.reshape(*weight.shape, 1, 1)


def same_batch(code: Tensor, image: Tensor) -> None:
    """ValueError unless there is one image for each code."""
    if len(image) != len(code):
        raise ValueError(f"image: expected one for each of the {len(code)} codes, got {len(image)}")


def whole(name: str, value: object, least: int = 1) -> int:
    """`value` if it is an int of at least `least`; TypeError or ValueError naming it otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value


def pair(name: str, value: int | Pair) -> Pair:
    """`value` as (height, width), both ints of at least 1; TypeError or ValueError naming it otherwise."""
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected an int or a pair of ints, got {value!r}")
    return whole(name, value[0]), whole(name, value[1])
