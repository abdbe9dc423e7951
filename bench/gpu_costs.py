"""What an operator costs at least: multiply-adds as its definition asks for them, every argument read and every result
written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

# What an H200 does, measured (shared with the documentation of the bounds): bytes and flops per second.
BANDWIDTH = 4.3e12
RATES = {
    "bf16": 790e12,
    "fp16": 790e12,
    "tf32": 395e12,
    "tf32x3": 395e12 / 3,
    "ieee": 67e12,
    "float64": 67e12,
}


@dataclass(frozen=True)
class Cost:
    """Of one call of an operator."""

    operator: str
    flops: float
    bytes: float

    def seconds(self, kind: str) -> float:
        """The higher of the two floors on an H200, with products of `kind` (a key of `RATES`)."""
        return max(self.bytes / BANDWIDTH, self.flops / RATES[kind])


def cost(name: str, function: Any, args: Sequence[Any], results: Any) -> Cost:
    """Of the operator `name` called with `args`."""
    given = dict(zip((a.name for a in function._schema.arguments), args, strict=False))
    tensors = [t for t in pytree.tree_leaves([list(args), results]) if isinstance(t, Tensor)]
    memory = {id(t): t for t in tensors}.values()  # twice in a call is read once
    return Cost(name, _flops(name, given, results), float(sum(t.numel() * t.element_size() for t in memory)))


def _edge(weight: Tensor, above: Tensor) -> float:
    """One direction of one edge."""
    return 2.0 * weight.numel() * above.shape[0] * above.shape[2] * above.shape[3]


def _flops(name: str, given: dict[str, Any], results: Any) -> float:
    if name.startswith("settle"):
        return _settling(name, given)
    if name == "conv2d_add_act":
        return _edge(given["weight"], results[0])
    if name == "conv_transpose2d_add_act":
        return _edge(given["weight"], given["z"])
    if name == "conv2d_add_act_backward":
        return sum(given["needs"][:2]) * _edge(given["weight"], given["h"])
    if name == "conv_transpose2d_add_act_backward":
        return sum(given["needs"][:2]) * _edge(given["weight"], given["z"])
    if name == "tied_conv2d":
        return 2 * _edge(given["weight"], given["z"])
    if name == "tied_conv2d_weight_grad":
        pairs = 1 + (given["grad_u"] is not None)
        return pairs * _edge(results, given["grad_y"])
    return float(sum(t.numel() for t in pytree.tree_leaves(results)))


def _settling(name: str, given: dict[str, Any]) -> float:
    if name == "settle_step":
        first = given["below"] if given["below"] is not None else given["above"]
        total = 0.0
        if given["below"] is not None:
            weight = given["weight_below"]
            out = [
                first.shape[2 + i] // given["pool"][i] + 2 * given["padding"][i] - weight.shape[2 + i] + 1
                for i in (0, 1)
            ]
            total += 2.0 * weight.numel() * first.shape[0] * out[0] * out[1]
        if given["above"] is not None:
            total += _edge(given["weight_above"], given["above"])
        return total
    states, weights = given["states"], given["weights"]
    sweep = 2 * sum(_edge(w, above) for w, above in zip(weights, states[1:], strict=True))
    if name == "settle":
        return float(given["max_steps"] * sweep)
    if name == "settle_adjoint":
        return float(given["max_steps"] * sweep + sweep)
    # Each drive's data gradient and weight gradient.
    return 2.0 * given["readouts"].shape[0] * sweep
