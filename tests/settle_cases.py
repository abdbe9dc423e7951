"""Small networks for the tests of settling: shapes, evidence, modes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from implementations import randn
from torch import Tensor

import lmser_kernels


@dataclass
class Case:
    """Arguments of `settle`, and the tensors of them that gradients are asked for."""

    states: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    options: dict[str, Any]

    def inputs(self) -> list[Tensor]:
        named = [self.options.get(name) for name in ("evidence", "external")]
        found = [*self.states, *self.weights, *self.biases, *(t for t in named if t is not None)]
        return [*found, *(self.options.get("reverse_weights") or [])]

    def double(self) -> Case:
        """The same in float64, gradients asked for alike."""

        def wide(tensor: Tensor) -> Tensor:
            return tensor.detach().double().requires_grad_(tensor.requires_grad)

        options = {
            name: wide(value) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.options.items()
        }
        return Case(*([wide(t) for t in part] for part in (self.states, self.weights, self.biases)), options)

    def settle(self, impl: str, **options: Any) -> lmser_kernels.Settled:
        return lmser_kernels.settle(
            self.states, self.weights, self.biases, impl=impl, **{**self.options, **options}
        )


_SHAPES = {
    # batch, channels of the layers, height and width, windows, kernel
    "three edges, pooled": (3, (2, 5, 6, 4), (8, 12), (1, 2, 2), (3, 3)),
    "fully connected": (7, (12, 9, 5), (1, 1), (1, 1), (1, 1)),
    "one edge": (2, (3, 4), (5, 7), (1,), (3, 3)),
    "signal, wide kernel": (2, (1, 3, 2), (1, 16), (1, (1, 2)), (1, 5)),
    "five by five": (1, (6, 19, 17), (9, 8), (1, 1), (5, 5)),
    "wide": (3, (8, 64, 96), (24, 24), (1, 2), (3, 3)),
    "many samples": (9, (4, 24, 40), (12, 12), (1, 2), (3, 3)),
    "no sample": (0, (2, 3, 4), (4, 4), (1, 2), (3, 3)),
}

# Those small enough for every variant in float64.
SHAPES = [name for name in _SHAPES if name not in ("wide", "many samples")]


VARIANTS = {
    "plain": {},
    "states given": {"zero": False},
    "some evidence": {"evidence": "some"},
    "all evidence": {"evidence": "all"},
    "blended": {"evidence": "some", "strength": 0.6, "external": True},
    "free reverse weights": {"reverse": True, "evidence": "some"},
}


def case(
    shape: str,
    *,
    dtype: torch.dtype = torch.float64,
    zero: bool = True,
    reverse: bool = False,
    evidence: str = "none",
    strength: float = 1.0,
    external: bool = False,
    gain: float = 0.5,
    grad: bool = True,
    **options: Any,
) -> Case:
    """A random network whose fixed point is a strong attractor. `evidence`: "none", "some" or "all"."""
    n, channels, size, pools, kernel = _SHAPES[shape]
    states, weights = [], []
    here = size
    for layer, width in enumerate(channels):
        if layer:
            pool = pools[layer - 1] if isinstance(pools[layer - 1], tuple) else (pools[layer - 1],) * 2
            here = (here[0] // pool[0], here[1] // pool[1])
        value = torch.zeros(n, width, *here, dtype=dtype)
        states.append(value if zero and layer else value + 0.3 * torch.randn(n, width, *here, dtype=dtype))
    for below, above in itertools.pairwise(channels):
        scale = gain / (max(below, above) * kernel[0] * kernel[1]) ** 0.5
        weights.append(torch.randn(above, below, *kernel, dtype=dtype) * scale)
    biases = [torch.randn(width, dtype=dtype) * 0.1 for width in channels]
    found = Case(states, weights, biases, {"pools": pools, **options})
    if reverse:
        found.options["reverse_weights"] = [w + 0.1 * torch.randn_like(w) for w in weights]
    if evidence != "none":
        found.options["evidence"] = torch.randn_like(states[0]) * 0.5
        found.options["strength"] = strength
        if evidence == "some":
            found.options["mask"] = torch.rand(states[0].shape) > 0.5
    if external:
        found.options["external"] = torch.randn_like(states[0]) * 0.1
    if grad:
        for tensor in found.inputs():
            tensor.requires_grad_()
    return found


def gradients(
    found: lmser_kernels.Settled, inputs: list[Tensor], **options: Any
) -> tuple[Tensor | None, ...]:
    """Of one fixed random combination of everything that came out."""
    generator = torch.Generator("cpu").manual_seed(1)
    outputs = [*found.states, *([] if found.readouts is None else [found.readouts])]
    loss = sum((o * randn(o.shape, generator, o.dtype)).sum() for o in outputs)
    return torch.autograd.grad(loss, inputs, allow_unused=True, **options)


def same(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None], tolerance: float = 1e-10) -> None:
    """Equal within `tolerance`; None is zero."""
    for a, b in zip(found, wanted, strict=True):
        if a is None or b is None:
            zero = a if b is None else b
            assert zero is None or bool((zero == 0).all())
        else:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
