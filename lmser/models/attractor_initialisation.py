"""Where an attractor network starts (004 Appendix D). All schemes draw from torch's global generator.

``"bars"``   weights between layers l and l+1 and the biases of layer l from N(0, σ²) with
             ``σ = 0.1 (n_l / 2 + n_{l+1} / 2 + 1)^(-1/2)``, n the numbers of units (D.1, fully connected)
``"mnist"``  the same with exponent -1 (D.2, fully connected)
a number     weights from N(0, number²), biases zero: 0.01 for Omniglot, 0.0001 for CIFAR-10, 0.001 for
             super-resolution (D.3-D.5, convolutional)

004 names no σ for the biases of the top layer, which has no layer above: they are drawn like those of the
layer below. Free reverse weights are drawn by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXPONENTS = {"bars": -0.5, "mnist": -1.0}


def check_scheme(init: str | float, fully_connected: bool) -> None:
    """TypeError or ValueError naming `init`."""
    if isinstance(init, str):
        if init not in EXPONENTS:
            raise ValueError(f"init: expected {', '.join(map(repr, EXPONENTS))} or a number, got {init!r}")
        if not fully_connected:
            raise ValueError(
                f"init: {init!r} is for fully connected layers; expected a standard deviation here"
            )
    elif isinstance(init, bool) or not isinstance(init, (int, float)):
        raise TypeError(f"init: expected a name or a standard deviation, got {init!r}")
    elif not math.isfinite(init) or init < 0:
        raise ValueError(f"init: expected a standard deviation of at least 0, got {init}")


def initialise(
    init: str | float, weights: Sequence[Tensor], reverse: Sequence[Tensor], biases: Sequence[Tensor]
) -> None:
    """Fill the parameters in place: `weights` and `reverse` per edge, `biases` per layer."""
    if isinstance(init, str):
        spread = [0.1 * (0.5 * w.shape[1] + 0.5 * w.shape[0] + 1) ** EXPONENTS[init] for w in weights]
    else:
        spread = [float(init)] * len(weights)
    with torch.no_grad():
        for edge, std in enumerate(spread):
            nn.init.normal_(weights[edge], 0.0, std)
            if reverse:
                nn.init.normal_(reverse[edge], 0.0, std)
        for layer, bias in enumerate(biases):
            if isinstance(init, str):
                nn.init.normal_(bias, 0.0, spread[min(layer, len(spread) - 1)])
            else:
                nn.init.zeros_(bias)
