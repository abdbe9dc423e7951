"""The arguments of `reflect`, checked and brought to one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, four_dimensional, operands, pair, same_shape

Size = tuple[int, int]


@dataclass(slots=True)  # not frozen, which costs a small network a tenth of its time
class Problem:
    """A reflection network and what it sees: see `lmser_kernels.reflect` for every field.

    `weights`, `decoder_weights` (empty where tied), `strides` and `paddings` are per edge, `biases` per layer; `sizes`
    are height and width of layers 0 ... L.
    """

    x: Tensor
    weights: tuple[Tensor, ...]
    decoder_weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    noise: Tensor | None
    strides: tuple[Size, ...]
    paddings: tuple[Size, ...]
    sizes: tuple[Size, ...]
    linear: Size
    paired: bool
    reflections: int
    activation: str
    slope: float | None
    leak: float

    @property
    def depth(self) -> int:
        return len(self.weights)

    def tensors(self) -> list[Tensor]:
        """Every tensor a gradient may be asked for."""
        return [self.x, *self.weights, *self.decoder_weights, *self.biases]


def checked(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    decoder_weights: Sequence[Tensor] | None,
    stride: Pair | Sequence[Pair],
    padding: Pair | Sequence[Pair] | None,
    paired: bool,
    reflections: int,
    linear: tuple[int, int],
    noise: Tensor | None,
    activation: str,
    slope: float | None,
) -> Problem:
    """The problem, or a `TypeError` or `ValueError` that names the argument."""
    leak = activations.check(activation, slope)
    weights, biases = _sequence("weights", weights), _sequence("biases", biases)
    back = () if decoder_weights is None else _sequence("decoder_weights", decoder_weights)
    edges = len(weights)
    if edges == 0:
        raise ValueError("weights must have at least one; got none")
    if len(biases) != edges + 1:
        raise ValueError(
            f"biases must be one for each of the {edges + 1} layers, the visible one first; got {len(biases)}"
        )
    if decoder_weights is not None and len(back) != edges:
        raise ValueError(f"decoder_weights must be one for each of the {edges} weights; got {len(back)}")
    names = _names(edges, bool(back))
    found: Any = operands(names, (x, *weights, *back, *biases, noise), len(names) - 1)
    x, noise = found[0], found[-1]
    weights, back, biases = (
        found[1 : edges + 1],
        found[edges + 1 : edges + 1 + len(back)],
        found[edges + 1 + len(back) : -1],
    )
    four_dimensional("x", x, "(N, C, H, W)")
    strides = per_edge("stride", stride, edges, 1)
    sizes: list[Size] = [(x.shape[2], x.shape[3])]
    paddings = None if padding is None else per_edge("padding", padding, edges, 0)
    chosen: list[Size] = []
    channels = x.shape[1]
    for i, weight in enumerate(weights):
        if weight.dim() == 2:
            (above, below), kh, kw = weight.shape, 1, 1
        elif weight.dim() == 4:
            above, below, kh, kw = weight.shape
        else:
            raise ValueError(
                f"weights[{i}] must be 4-D, (C_out, C_in, kh, kw), or 2-D, (C_out, C_in); got shape {tuple(weight.shape)}"
            )
        if below != channels:
            raise ValueError(
                f"weights[{i}] must take the {channels} channels of layer {i}; got shape {tuple(weight.shape)}"
            )
        if above * kh * kw == 0:
            raise ValueError(f"weights[{i}] must have no empty dimension; got shape {tuple(weight.shape)}")
        if back:
            same_shape(f"decoder_weights[{i}]", back[i], weight.shape, f"the shape of weights[{i}]")
        (sh, sw), (ph, pw) = strides[i], (kh // 2, kw // 2) if paddings is None else paddings[i]
        height, width = sizes[-1]
        if height + 2 * ph < kh or width + 2 * pw < kw:
            raise ValueError(
                f"weights[{i}] must be no larger than layer {i} with its padding, "
                f"{(height + 2 * ph, width + 2 * pw)}; got a kernel of {(kh, kw)}"
            )
        sizes.append(((height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1))
        chosen.append((ph, pw))
        channels = above
    for i, bias in enumerate(biases):
        expected = x.shape[1] if i == 0 else weights[i - 1].shape[0]
        if bias.dim() != 1 or bias.shape[0] != expected:
            raise ValueError(
                f"biases[{i}] must have one value per channel of layer {i}, shape ({expected},); "
                f"got {tuple(bias.shape)}"
            )
    if not isinstance(reflections, int) or isinstance(reflections, bool):
        raise TypeError(f"reflections must be an int; got {reflections!r}")
    if reflections < 1:
        raise ValueError(f"reflections must be at least 1; got {reflections}")
    linear = pair("linear", linear, 0)
    if linear[0] + linear[1] > channels:
        raise ValueError(f"linear must fit into the {channels} channels of the top layer; got {linear}")
    if noise is not None:
        last = (x.shape[0], linear[1], *sizes[-1])
        same_shape("noise", noise, last, "the shape of the last linear channels of the top layer")
    return Problem(
        x, tuple(weights), tuple(back), tuple(biases), noise, strides, tuple(chosen), tuple(sizes), linear,
        bool(paired), reflections, activation, slope, leak,
    )  # fmt: skip


@cache
def _names(edges: int, free: bool) -> tuple[str, ...]:
    weights = [f"weights[{i}]" for i in range(edges)]
    back = [f"decoder_weights[{i}]" for i in range(edges)] if free else []
    return ("x", *weights, *back, *(f"biases[{i}]" for i in range(edges + 1)), "noise")


def _sequence(name: str, value: Sequence[Tensor]) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a sequence of tensors; got a tensor")
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of tensors; got {type(value).__name__}") from None


def per_edge(name: str, value: Pair | Sequence[Pair], edges: int, least: int) -> tuple[Size, ...]:
    """One pair for each edge: `value` is one for all of them, or a list of as many as there are."""
    if isinstance(value, list):
        if len(value) != edges:
            raise ValueError(f"{name} must be one for each of the {edges} weights; got {len(value)}")
        return tuple(pair(f"{name}[{i}]", v, least) for i, v in enumerate(value))
    return (pair(name, value, least),) * edges  # type: ignore[arg-type]
