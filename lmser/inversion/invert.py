"""Any network sent back to its input: `f⁻¹(x) = (df/dx)ᵀ f(x)` (003 Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmser.inversion.gated import Activation, gated, has_rules

__all__ = ["METHODS", "Inverted", "invert", "inverted"]

METHODS = ("auto", "gated", "autograd")


@dataclass(frozen=True)
class Inverted:
    """A network's output and what it says its input was.

    output:          `f(x)`
    states:          `z_0 = x`, and with `layers` the input `z_l` of each, in their order
    reconstructions: `(df/dz_l)ᵀ f(x)`, each of the shape of its state
    """

    output: Tensor
    states: tuple[Tensor, ...]
    reconstructions: tuple[Tensor, ...]


def invert(model: nn.Module, x: Tensor, *, method: str = "auto") -> Tensor:
    """`(df/dx)ᵀ f(x)`, of the shape of `x`, differentiable with respect to the parameters and to `x` (003 Eq. 6).

    model:  any module of one input and one output; piecewise linear for the inverse of 003 (any other gives the
            same expression)
    x:      `(N, ...)`, floating
    method: ``"gated"``: back through the transposed layers with the forward's gates, an ordinary pass of first order;
            for models of layers that have a rule (`lmser.inversion.has_rules`: those of `lmser_kernels.nn`, the
            usual ones of `torch.nn`, the topologies of 003, modules with a method `gated`)
            ``"autograd"``: a gradient that can be differentiated, for any module
            ``"auto"``: the first where the model has the rules, else the second

    Both are the same function up to rounding. Raises TypeError or ValueError naming the argument; ``"gated"`` where a
    layer has no rule.

    Source: "Semi-Supervised Learning via New Deep Network Inversion", Eqs. (5)-(7).
    """
    return inverted(model, x, method=method).reconstructions[0]


def inverted(
    model: nn.Module, x: Tensor, *, layers: Sequence[nn.Module] = (), method: str = "auto"
) -> Inverted:
    """The output with the reconstruction of the input, and of the inputs of `layers` (003 Eq. 12).

    layers: modules within `model`, each called once, with one tensor that nothing changes in place; for an
            `nn.Sequential` its children, say
    method: as in `invert`; with `layers`, ``"gated"`` takes children of an `nn.Sequential` in their order, and
            ``"auto"`` it where they are that
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: expected a floating tensor, got {what}")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    chosen = list(layers)
    in_order = not chosen or _children(model, chosen) is not None
    if method == "gated" and not in_order:
        raise ValueError(
            "layers: expected children of an nn.Sequential, in order, with method='gated'; "
            "method='autograd' takes others"
        )
    if method == "gated" or (method == "auto" and in_order and has_rules(model)):
        return _gated(model, x, chosen)
    return _autograd(model, x, chosen)


def _children(model: nn.Module, layers: Sequence[nn.Module]) -> list[int] | None:
    """Positions of `layers` among the children of a Sequential; None where they are not that, or not in order."""
    if not isinstance(model, nn.Sequential):
        return None
    children = list(model)
    if len(set(children)) < len(children):
        return None
    found = [children.index(layer) if layer in children else -1 for layer in layers]
    return found if found == sorted(set(found)) and -1 not in found else None


def _gated(model: nn.Module, x: Tensor, layers: Sequence[nn.Module]) -> Inverted:
    # The kernels' own layout within; the reconstruction comes back in that of x.
    found = _sent_back(model, _channels_last(x), layers)
    first = found.reconstructions[0]
    if x.is_contiguous():
        first = first.contiguous()
    return Inverted(found.output, (x, *found.states[1:]), (first, *found.reconstructions[1:]))


def _channels_last(x: Tensor) -> Tensor:
    if x.dim() != 4 or x.numel() == 0:
        return x
    if x.shape[1] == 1:
        # Of one channel every layout is the same memory; the stride of the channels says which is meant.
        return x.reshape(x.shape[0], x.shape[2], x.shape[3], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def _sent_back(model: nn.Module, x: Tensor, layers: Sequence[nn.Module]) -> Inverted:
    if not layers:
        step = gated(model, x)
        top = step.output if step.f is None else step.f.pull(step.output, step.output)
        return Inverted(step.output, (x,), (step.pull(top),))
    # At a state that is to be reconstructed the activation that it came out of is undone by itself.
    assert isinstance(model, nn.Sequential)
    wanted, children = set(layers), list(model)
    steps, states = [], [x]
    state, f = x, None
    activations: list[Activation | None] = []
    for layer in children:
        if layer in wanted:
            states.append(state)
        activations.append(f)
        step = gated(layer, state, None if layer in wanted else f)
        steps.append(step)
        state, f = step.output, step.f
    g = state if f is None else f.pull(state, state)
    found = []
    for position in range(len(steps) - 1, -1, -1):
        g = steps[position].pull(g)
        if children[position] in wanted:
            found.append(g)
            before = activations[position]
            if before is not None:
                g = before.pull(g, steps[position - 1].output)
    found.append(g)
    return Inverted(state, tuple(states), tuple(reversed(found)))


def _autograd(model: nn.Module, x: Tensor, layers: Sequence[nn.Module]) -> Inverted:
    if torch.is_inference_mode_enabled():  # which has no gradients; what it has made can have none either
        with torch.inference_mode(False), torch.no_grad():
            return _autograd(model, x.clone(), layers)
    met: list[tuple[nn.Module, Tensor, int]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise ValueError(f"layers: expected {type(module).__name__} to be called with one tensor")
        met.append((module, inputs[0], inputs[0]._version))

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        with torch.enable_grad():
            source = x if x.requires_grad else x.detach().requires_grad_()
            output = model(source)
    finally:
        for hook in hooks:
            hook.remove()
    if sorted(id(layer) for layer in layers) != sorted(id(layer) for layer, _, _ in met):
        raise ValueError(
            f"layers: expected each to be called once by the model, got {len(met)} calls of {len(layers)}"
        )
    if any(state._version != version for _, state, version in met):
        raise ValueError("layers: expected inputs that nothing changes in place")
    if not isinstance(output, Tensor):
        raise TypeError(f"model: expected it to return a tensor, got {type(output).__name__}")
    inputs = {layer: state for layer, state, _ in met}
    kept = [source, *(inputs[layer] for layer in layers)]
    create = torch.is_grad_enabled()
    found = torch.autograd.grad(output, kept, output if create else output.detach(), create_graph=create)
    if not create:
        output, kept = output.detach(), [state.detach() for state in kept]
    return Inverted(output, (x, *kept[1:]), tuple(found))
