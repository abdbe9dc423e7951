"""The arguments of `settle`, checked and brought to one form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lmser_kernels.arguments import Pair, four_dimensional, operands, pair, same_shape

Size = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """A network, where it starts and what holds it: see `lmser_kernels.settle` for every field.

    `weights`, `reverse_weights` (empty where tied), `pools` and `padding` are per edge, `states` and `biases` per layer.
    """

    states: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    reverse_weights: tuple[Tensor, ...]
    evidence: Tensor | None
    mask: Tensor | None
    external: Tensor | None
    pools: tuple[Size, ...]
    padding: tuple[Size, ...]

    def tensors(self) -> list[Tensor]:
        """Every tensor a gradient may be asked for."""
        rest = [*self.biases, self.evidence, self.external]
        return [*self.states, *self.weights, *self.reverse_weights, *(t for t in rest if t is not None)]

    def to(self, dtype: torch.dtype) -> Problem:
        """The same in another floating dtype."""

        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        return dataclasses.replace(
            self,
            states=tuple(t.to(dtype) for t in self.states),
            weights=tuple(t.to(dtype) for t in self.weights),
            biases=tuple(map(cast, self.biases)),
            reverse_weights=tuple(t.to(dtype) for t in self.reverse_weights),
            evidence=cast(self.evidence),
            external=cast(self.external),
        )

    def requires_grad(self) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.tensors())


@dataclass(frozen=True)
class Run:
    """How the sweeps are made and when they stop."""

    strength: float
    activation: str
    slope: float
    order: str
    theta: float
    max_steps: int
    readouts: bool
    per_sample: bool
    half: bool = False  # keep the states for the backward in bfloat16


@dataclass(frozen=True)
class Adjoint:
    """When the solve of the implicit backward stops, and what happens where one does not converge."""

    theta: float
    max_steps: int
    unconverged: str


def checked(
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    reverse_weights: Sequence[Tensor] | None,
    evidence: Tensor | None,
    mask: Tensor | None,
    external: Tensor | None,
    pools: Sequence[Pair] | None,
    padding: int | Sequence[Pair] | None,
) -> Problem:
    """The problem, or TypeError or ValueError naming the argument."""
    for name, value in (("states", states), ("weights", weights)):
        _sequence(name, value)
    edges = len(weights)
    if edges < 1:
        raise ValueError("weights: expected at least one, got none")
    _count("states", states, edges + 1, "one more than weights")
    biases = [None] * (edges + 1) if biases is None else biases
    _count("biases", biases, edges + 1, "one for each layer, or None")
    reverse = () if reverse_weights is None else reverse_weights
    if reverse_weights is not None:
        _count("reverse_weights", reverse, edges, "one for each weight")
    named: list[tuple[str, Tensor | None]] = [
        *((f"states[{i}]", t) for i, t in enumerate(states)),
        *((f"weights[{i}]", t) for i, t in enumerate(weights)),
        *((f"reverse_weights[{i}]", t) for i, t in enumerate(reverse)),
    ]
    required = len(named)
    named += [
        *((f"biases[{i}]", t) for i, t in enumerate(biases)),
        ("evidence", evidence),
        ("external", external),
    ]
    found = operands(tuple(n for n, _ in named), tuple(t for _, t in named), required)
    ready = cast("tuple[Tensor, ...]", found[:required])
    states, weights, reverse = ready[: edges + 1], ready[edges + 1 : 2 * edges + 1], ready[2 * edges + 1 :]
    biases, (evidence, external) = found[required:-2], found[-2:]
    for i, state in enumerate(states):
        four_dimensional(f"states[{i}]", state, "(N, C, H, W)")
    for i, weight in enumerate(weights):
        four_dimensional(f"weights[{i}]", weight, "(C_above, C_below, kh, kw)")
    for i, weight in enumerate(reverse):
        same_shape(f"reverse_weights[{i}]", weight, weights[i].shape, f"the shape of weights[{i}]")
    for i, bias in enumerate(biases):
        if bias is not None and tuple(bias.shape) != (states[i].shape[1],):
            raise ValueError(
                f"biases[{i}] must have one value per channel of states[{i}], shape ({states[i].shape[1]},); "
                f"got {tuple(bias.shape)}"
            )
    if pools is not None:
        _count("pools", pools, edges, "one for each weight")
    windows = tuple(pair(f"pools[{i}]", 1 if pools is None else pools[i], 1) for i in range(edges))
    margins = _margins(weights, padding)
    for i in range(edges):
        _edge(i, states, weights[i], windows[i], margins[i])
    for name, tensor in (("evidence", evidence), ("external", external), ("mask", mask)):
        if tensor is not None:
            same_shape(name, tensor, states[0].shape, "the shape of states[0]")
    check_mask(mask, evidence, states[0])
    return Problem(states, weights, tuple(biases), tuple(reverse), evidence, mask, external, windows, margins)


def check_mask(mask: Tensor | None, evidence: Tensor | None, first: Tensor) -> None:
    """A mask is bool, on the device of the others, and says where evidence is taken."""
    if mask is None:
        return
    if evidence is None:
        raise ValueError("mask: expected evidence with it, got None")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool; got {mask.dtype}")
    if mask.device != first.device:
        raise ValueError(f"mask must be on the device of the states, {first.device}; got {mask.device}")


def check_stop(theta: float, max_steps: int, prefix: str = "") -> None:
    """When a solve stops: `theta` finite and not negative, `max_steps` at least one."""
    number(f"{prefix}theta", theta)
    if theta < 0:
        raise ValueError(f"{prefix}theta must not be negative; got {theta}")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int):
        raise TypeError(f"{prefix}max_steps must be an int; got {type(max_steps).__name__}")
    if max_steps < 1:
        raise ValueError(f"{prefix}max_steps must be at least 1; got {max_steps}")


def check_segment(sweeps: int | None) -> None:
    """`checkpoint_every`: None, or an int of at least one."""
    if sweeps is None:
        return
    if isinstance(sweeps, bool) or not isinstance(sweeps, int):
        raise TypeError(f"checkpoint_every must be an int or None; got {type(sweeps).__name__}")
    if sweeps < 1:
        raise ValueError(f"checkpoint_every must be at least 1; got {sweeps}")


def number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def _sequence(name: str, value: object) -> None:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a list or tuple of tensors; got {type(value).__name__}")


def _count(name: str, value: Sequence[object], expected: int, meaning: str) -> None:
    _sequence(name, value)
    if len(value) != expected:
        raise ValueError(f"{name}: expected {expected} ({meaning}), got {len(value)}")


def _margins(weights: tuple[Tensor, ...], padding: int | Sequence[Pair] | None) -> tuple[Size, ...]:
    if padding is None:
        for i, w in enumerate(weights):
            if w.shape[2] % 2 == 0 or w.shape[3] % 2 == 0:
                raise ValueError(
                    f"padding: expected it with the even kernel {tuple(w.shape[2:])} of weights[{i}], got None"
                )
        return tuple((w.shape[2] // 2, w.shape[3] // 2) for w in weights)
    if isinstance(padding, int):
        return (pair("padding", padding, 0),) * len(weights)
    _count("padding", padding, len(weights), "one for each weight, or one int for all")
    return tuple(pair(f"padding[{i}]", padding[i], 0) for i in range(len(weights)))


def _edge(i: int, states: tuple[Tensor, ...], weight: Tensor, window: Size, margin: Size) -> None:
    """The two directions of edge i must give the shapes of its two layers."""
    below, above = states[i].shape, states[i + 1].shape
    if (weight.shape[0], weight.shape[1]) != (above[1], below[1]):
        raise ValueError(
            f"weights[{i}] must have shape ({above[1]}, {below[1]}, kh, kw) between states of {below[1]} and "
            f"{above[1]} channels; got {tuple(weight.shape)}"
        )
    if below[0] != above[0]:
        raise ValueError(f"states[{i + 1}] must have the batch size of states[0], {below[0]}; got {above[0]}")
    for axis, at in (("height", 0), ("width", 1)):
        size, pool = below[2 + at], window[at]
        if size % pool:
            raise ValueError(
                f"pools[{i}]: the {axis} {size} of states[{i}] is not a multiple of the window {pool}"
            )
        expected = size // pool + 2 * margin[at] - weight.shape[2 + at] + 1
        if above[2 + at] != expected:
            raise ValueError(
                f"states[{i + 1}] must have {axis} {expected}, what weights[{i}] (kernel {weight.shape[2 + at]}, padding "
                f"{margin[at]}) makes of {size} pooled by {pool}; got {above[2 + at]}"
            )
