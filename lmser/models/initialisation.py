"""Where a reflection network starts. All schemes draw from torch's global generator.

``"default"``
    `nn.Linear`'s and `nn.Conv2d`'s: weights and biases uniform on ±1/sqrt(fan_in). The papers name none; this
    is what their framework does. A free decoder weight is drawn like the weight whose shape it has, and
    `reconstruction_bias` on ±1/sqrt(fan_in) of the top-down direction.

``"isometric"``
    Each W, as a matrix over its patch ``(C_out, C_in kh kw)``, has orthonormal rows (or columns, where it has
    fewer of them), times sqrt(sh sw / (kh kw)), that is stride / kernel: every pixel lies in kh kw / (sh sw)
    patches, so that going up and down one edge is close to the identity, ``WᵀW ≈ I``, the principle that both
    papers start from. Biases are zero. A free decoder weight starts as a copy of the weight it is free of,
    because the principle is about the pair.

``"balanced"``
    The isometric start times one gain `g` for all edges that accounts for how many drives a neuron adds. An
    orthonormal W keeps only ``c_l = min(1, C_l / (C_{l-1} kh kw))`` of a signal on the way up and down an
    edge, averaged over the draw of W, and `f` passes its mean slope `a` (ReLU: one half of a symmetric
    drive). With paired neurons the drives add up, so that the reconstruction is on average

        G(g) x,   G = a c_1 g² (1 + a c_2 g² (1 + ... (1 + a c_L g²)))

    and g solves ``G(g) = 1``. Without them there is one drive, no g keeps both the signal and the noise of a
    deep network, and g is the one that keeps the mean square on the way up: ``g² a sh sw / (kh kw) = 1`` on
    each edge, He's rule for orthogonal weights. The rule assumes a signal that is symmetric about zero;
    images on [0, 1] are not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from lmser.models.reflection import ReflectionNetwork

SCHEMES = ("default", "isometric", "balanced")


def initialise(network: ReflectionNetwork, scheme: str) -> None:
    """Fill the parameters of `network` in place by the scheme named, one of `SCHEMES`."""
    with torch.no_grad():
        if scheme == "default":
            _default(network)
        else:
            _orthogonal(network, balanced_gains(network) if scheme == "balanced" else [1.0] * network.depth)


def _default(network: ReflectionNetwork) -> None:
    # Weight and bias of one layer after the other, as nn.Linear and nn.Conv2d draw them: a stack of those
    # built under the same seed holds the same numbers.
    for weight, bias in zip(network.weights, network.biases, strict=True):
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(bias, -bound, bound)
    for weight in network.decoder_weights or ():
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(weight, -bound, bound)
    bound = 1 / math.sqrt(network.weights[0][:, 0].numel())
    nn.init.uniform_(network.reconstruction_bias, -bound, bound)


def _orthogonal(network: ReflectionNetwork, gains: list[float]) -> None:
    for weight, stride, kernel, gain in zip(
        network.weights, network.strides, network.kernel_sizes, gains, strict=True
    ):
        # In float32 whatever the parameter's type: there is no QR in half precision.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        matrix = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        weight.copy_(nn.init.orthogonal_(matrix, gain * math.sqrt(math.prod(stride) / math.prod(kernel))))
    if network.decoder_weights is not None:
        for free, weight in zip(network.decoder_weights, network.weights, strict=True):
            free.copy_(weight)
    for bias in (*network.biases, network.reconstruction_bias):
        bias.zero_()


def mean_slope(activation: str, slope: float | None) -> float:
    """Mean of `f'` over small drives of either sign: how `f` scales a signal on average at the start."""
    if activation == "relu":
        return 0.5
    if activation == "leaky_relu":
        return 0.5 * (1 + (0.01 if slope is None else slope))
    return 0.25 if activation == "sigmoid" else 1.0


def balanced_gains(network: ReflectionNetwork) -> list[float]:
    """The factor on the isometric start of each edge under ``"balanced"`` (see the module)."""
    slope = mean_slope(network.activation, network.slope)
    kept, patches = [], []
    for weight, stride, kernel in zip(network.weights, network.strides, network.kernel_sizes, strict=True):
        kept.append(min(1.0, weight.shape[0] / weight[0].numel()))
        patches.append(math.prod(stride) / math.prod(kernel))
    if not network.dpn:
        return [1 / math.sqrt(slope * share) for share in patches]

    def reconstruction_gain(squared: float) -> float:
        gain = 0.0
        for share in reversed(kept):
            gain = slope * share * squared * (1 + gain)
        return gain

    low, high = 0.0, 1 / (slope * kept[0])  # the first term of G alone is 1 at the upper end
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if reconstruction_gain(middle) < 1 else (low, middle)
    return [math.sqrt(high)] * network.depth
