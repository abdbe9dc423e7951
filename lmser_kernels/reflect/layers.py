"""The passes layer by layer: what `reflect` is, in operations that run everywhere and can be differentiated again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser_kernels.add_act.api import add_act
from lmser_kernels.layout import channels_last, is_channels_last
from lmser_kernels.reflect.problem import Problem
from lmser_kernels.tied_conv.api import conv2d_add_act, conv_transpose2d_add_act

Drives = list[Tensor | None]


def layer_by_layer(problem: Problem, impl: str, sent_down: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(reconstruction, code)`` by one operation for each layer and pass."""
    passes = _Passes(problem, impl)
    p, depth = problem, problem.depth
    # Without pairing nothing that comes down reaches the next pass up: all reflections are the first.
    reflections = p.reflections if p.paired else 1
    y: Drives = [None] * depth  # drives held between passes; y[0] and u[0] stay empty
    u: Drives = [None] * depth
    state = channels_last(p.x)
    for layer in range(1, depth):
        state, y[layer] = passes.up(layer, state, None, hold=p.paired)
    top = passes.top(state)
    for remaining in reversed(range(reflections)):
        if remaining == 0 and sent_down is not None:
            top = sent_down
        state = top
        for layer in range(depth - 1, 0, -1):
            # u_1 is not needed again: the pass up starts with h_1 = f(y_1 + u_1 + b_1), y_1 being that of the
            # clamped image, which is the very state that the pass down ends with.
            hold = remaining > 0 and layer > 1
            state, u[layer] = passes.down(layer, state, y[layer], hold=hold)
            if remaining == 0:
                y[layer] = None  # its memory is free for the layers below
        if remaining == 0 or depth == 1:
            break
        for layer in range(2, depth):
            state, y[layer] = passes.up(layer, state, u[layer], hold=True)
        top = passes.top(state)
    reconstruction, _ = passes.down(0, state, None, hold=False)
    if not is_channels_last(p.x):
        reconstruction = reconstruction.contiguous()
    return reconstruction, top


class _Passes:
    """What one edge does in either direction."""

    def __init__(self, problem: Problem, impl: str) -> None:
        self.problem, self.impl = problem, impl
        self.up_weights = _kernels(problem.weights)
        self.down_weights = _kernels(problem.decoder_weights) if problem.decoder_weights else self.up_weights
        channels = problem.weights[-1].shape[0]
        first, last = problem.linear
        self.top_activation = "identity" if first + last else problem.activation
        self.mixed: Tensor | None = (
            None  # the channels of the top layer that are linear, where others are not
        )
        if 0 < first + last < channels:
            place = torch.arange(channels, device=problem.x.device)
            self.mixed = ((place < first) | (place >= channels - last)).view(1, -1, 1, 1)

    def up(
        self, layer: int, below: Tensor, add: Tensor | None, hold: bool, activation: str | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """State of `layer`, and its bottom-up drive where it is to be held."""
        p, edge = self.problem, layer - 1
        f = p.activation if activation is None else activation
        result = conv2d_add_act(  # type: ignore[call-overload]
            below, self.up_weights[edge], add, p.biases[layer], stride=p.strides[edge], padding=p.paddings[edge],
            activation=f, slope=self._slope(f), impl=self.impl, return_drive=hold,
        )  # fmt: skip
        state, drive = result if hold else (result, None)
        return channels_last(state), None if drive is None else channels_last(drive)

    def down(self, layer: int, above: Tensor, add: Tensor | None, hold: bool) -> tuple[Tensor, Tensor | None]:
        """State of `layer`, pinned to its size, and its top-down drive where it is to be held."""
        p = self.problem
        f = "identity" if layer == 0 else p.activation
        result = conv_transpose2d_add_act(  # type: ignore[call-overload]
            above, self.down_weights[layer], add, p.biases[layer], stride=p.strides[layer],
            padding=p.paddings[layer], output_size=p.sizes[layer], activation=f, slope=self._slope(f),
            impl=self.impl, return_drive=hold,
        )  # fmt: skip
        state, drive = result if hold else (result, None)
        return channels_last(state), None if drive is None else channels_last(drive)

    def top(self, below: Tensor) -> Tensor:
        """State of the top layer: no drive from above, and no `f` on what is read out linearly."""
        p = self.problem
        top, _ = self.up(p.depth, below, None, hold=False, activation=self.top_activation)
        if self.mixed is not None:
            active = add_act(top, activation=p.activation, slope=p.slope, impl=self.impl)
            top = torch.where(self.mixed, top, active)
        if p.noise is None:
            return top
        return top + F.pad(p.noise, (0, 0, 0, 0, top.shape[1] - p.linear[1], 0))

    def _slope(self, activation: str) -> float | None:
        return None if activation == "identity" else self.problem.slope


def _kernels(weights: Sequence[Tensor]) -> list[Tensor]:
    """A fully connected edge's matrix as the 1x1 convolution that it is."""
    return [w if w.dim() == 4 else w.reshape(*w.shape, 1, 1) for w in weights]
