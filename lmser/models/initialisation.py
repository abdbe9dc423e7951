"""Where a reflection network starts. All schemes draw from torch's global generator.

``"default"``
    `nn.Linear`'s and `nn.Conv2d`'s: weights and biases uniform on ±1/sqrt(fan_in). The papers name none; this is what
    their framework does. A free decoder weight is drawn like the weight whose shape it has, and `reconstruction_bias`
    on ±1/sqrt(fan_in) of the top-down direction.

``"isometric"``
    Each W, as a matrix over its patch ``(C_out, C_in kh kw)``, has orthonormal rows (or columns, where it has fewer of
    them), times sqrt(sh sw / (kh kw)), that is stride / kernel: every pixel lies in kh kw / (sh sw) patches, so that
    going up and down one edge is close to the identity, ``WᵀW ≈ I``, the principle that both papers start from. Biases
    are zero. A free decoder weight starts as a copy of the weight it is free of, because the principle is about the
    pair.

``"balanced"``
    The isometric start times a gain `g` that accounts for how many drives a neuron adds. Follow a signal through the
    network with ``WᵀW = I``: an edge multiplies it by g in either direction, and `f` by its mean slope `a` (ReLU: 1/2,
    because it passes one half of a symmetric drive). Then the states are plain numbers times the same signal, and the
    reflection itself, run on these numbers, tells the gain of the reconstruction, which g is solved to make 1. Without
    paired neurons that is g² a = 1 per layer. With them, at one reflection, the drives add up to
    ``sum_{l=1..L} (g² a)^l = 1``, so that g² a is close to 1/2: for ReLU the isometric start (g = 1) is already right,
    for the identity or tanh it is too large by sqrt(2) per edge.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lmser.models.reflection import ReflectionNetwork

SCHEMES = ("default", "isometric", "balanced")


def initialise(network: ReflectionNetwork, scheme: str) -> None:
    """Fill the parameters of `network` in place by the scheme named, one of `SCHEMES`."""
    with torch.no_grad():
        if scheme == "default":
            _default(network)
            return
        gain = 1.0
        if scheme == "balanced":
            slope = mean_slope(network.activation, network.slope)
            gain = balanced_gain(network.depth, slope, network.dpn, network.reflections)
        _isometric(network, gain)


def _default(network: ReflectionNetwork) -> None:
    # Weight and bias of one layer after the other, as nn.Linear and nn.Conv2d draw them: a stack of those built under
    # the same seed holds the same numbers.
    for weight, bias in zip(network.weights, network.biases, strict=True):
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(bias, -bound, bound)
    for weight in network.decoder_weights or ():
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(weight, -bound, bound)
    bound = 1 / math.sqrt(network.weights[0][:, 0].numel())
    nn.init.uniform_(network.reconstruction_bias, -bound, bound)


def _isometric(network: ReflectionNetwork, gain: float) -> None:
    for weight, stride, kernel in zip(network.weights, network.strides, network.kernel_sizes, strict=True):
        _orthogonal(weight, gain * math.sqrt(math.prod(stride) / math.prod(kernel)))
    if network.decoder_weights is not None:
        for free, weight in zip(network.decoder_weights, network.weights, strict=True):
            free.copy_(weight)
    for bias in (*network.biases, network.reconstruction_bias):
        bias.zero_()


def _orthogonal(weight: Tensor, gain: float) -> None:
    # In float32 whatever the parameter's type: there is no QR in half precision.
    matrix = torch.empty(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
    nn.init.orthogonal_(matrix, gain)
    weight.copy_(matrix)


def mean_slope(activation: str, slope: float | None) -> float:
    """Mean of `f'` over small drives of either sign: how `f` scales a signal on average at the start."""
    if activation == "relu":
        return 0.5
    if activation == "leaky_relu":
        return 0.5 * (1 + (0.01 if slope is None else slope))
    return 0.25 if activation == "sigmoid" else 1.0


def balanced_gain(depth: int, slope: float, paired: bool, reflections: int) -> float:
    """The g at which a network of `depth` layers with ``WᵀW = g² I`` reconstructs with gain 1 (see the module)."""
    low, high = 0.0, 2 / math.sqrt(slope)
    for _ in range(80):  # bisection; the gain of the reconstruction rises with g
        middle = 0.5 * (low + high)
        if _reconstruction_gain(middle, depth, slope, paired, reflections) < 1:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _reconstruction_gain(g: float, depth: int, slope: float, paired: bool, reflections: int) -> float:
    up, down, state = [0.0] * (depth + 1), [0.0] * (depth + 1), [1.0] * (depth + 1)
    for _ in range(reflections if paired else 1):
        for layer in range(1, depth + 1):
            up[layer] = g * state[layer - 1]
            state[layer] = slope * (up[layer] + down[layer])
        for layer in range(depth - 1, 0, -1):
            down[layer] = g * state[layer + 1]
            state[layer] = slope * (down[layer] + (up[layer] if paired else 0.0))
    return g * state[1]
