"""The gated pass: `(df/dx)ᵀ z` as a pass down through transposed layers, of first order (003 Eqs. 2, 3 and 6).

For a piecewise linear network `f(x) = A[x] x + b[x]`. `A[x]ᵀ` sends a tensor of the output's shape back through the
same weights transposed, gated by what the forward pass left: a relu lets through where it was open, a max pool to the
winner of each window, a mean pool spreads, a sum goes both ways. Nothing of it is a derivative to autograd: the gates
are constants almost everywhere, so one ordinary backward pass gives the gradient that differentiating a gradient
would, and every gate is applied where a fused kernel writes.

A rule says for one layer how it goes up and down. Those of `lmser_kernels.nn` and of `torch.nn`'s usual ones are here,
a module of one's own has a method `gated(x, f) -> Step`; `has_rules` says whether a whole model has them. A class whose
layers can go several at a time has `gated_in_turn(layers, x, f) -> (Step, how many)` besides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.inversion.step import Activation, Step, is_channels_last, laid_out_as
from lmser_kernels import (
    conv2d_add_act,
    conv_transpose2d_add_act,
    max_pool2d_act,
    max_unpool2d,
)
from lmser_kernels.arguments import pair
from lmser_kernels.max_pool.reference import MOST_PLACES
from lmser_kernels.nn import Conv2dAddAct, MaxPool2dAct, TiedConv2d, TiedLinear

__all__ = ["Activation", "Gated", "Step", "conv_down", "conv_step", "gated", "has_rules"]


class Gated(Protocol):
    """A module whose class has a method for its own way down."""

    def gated(self, x: Tensor, f: Activation | None) -> Step:
        """Go up with `x`, which came out of `f` (None: of nothing to be undone)."""
        ...


def _of(name: str, slope: float | None) -> Activation | None:
    return None if name == "identity" else Activation(name, slope)


def _undo(f: Activation | None, g: Tensor, x: Tensor) -> Tensor:
    return g if f is None else f.pull(g, x)


def gated(module: nn.Module, x: Tensor, f: Activation | None = None) -> Step:
    """`module` gone up with `x`, which came out of `f`. Raises TypeError where it, or a part of it, has no rule."""
    rule = _rule(module)
    if rule is None or not _plain(module):
        raise TypeError(
            f"gated: {type(module).__name__} has no rule for the way down; give it a method `gated`, without hooks, "
            "or take method='autograd'"
        )
    return rule(cast("Any", module), x, f)


def has_rules(module: nn.Module) -> bool:
    """Whether `gated` takes `module` and all that it is made of."""
    if _rule(module) is _sequential:
        return _plain(module) and all(has_rules(child) for child in cast("nn.Sequential", module))
    return _rule(module) is not None and _plain(module)


def _rule(module: nn.Module) -> Callable[[Any, Tensor, Activation | None], Step] | None:
    own = _own_rule(module)
    if own is not None:
        return own
    # Of subclasses only those that do no more than to name a sequence: any other may do anything.
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return _sequential
    return _RULES.get(type(module))


def _own_rule(module: nn.Module) -> Callable[[Any, Tensor, Activation | None], Step] | None:
    # Of the class: an attribute of that name may be anything.
    method: Callable[[Any, Tensor, Activation | None], Step] | None = getattr(type(module), "gated", None)
    return method if callable(method) else None


def _plain(module: nn.Module) -> bool:
    """Nothing that a rule would go past, and no setting that it does not know."""
    if _own_rule(module) is not None:
        return not _any_hooked(module)
    known = _KNOWN.get(type(module))
    return not _hooked(module) and (known is None or known(cast("Any", module)))


def _any_hooked(module: nn.Module) -> bool:
    # At every step of every block: `Module.modules` takes ten times as long for the same.
    return _hooked(module) or any(
        _any_hooked(child) for child in module._modules.values() if child is not None
    )


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


# rules


def conv_step(
    x: Tensor,
    f: Activation | None,
    output: Tensor,
    weight: Tensor,
    activation: Activation | None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    pool: tuple[int, int] = (1, 1),
    impl: str = "auto",
) -> Step:
    """The step of a convolution with `weight`, average pool before and activation behind, whose output is known."""

    def pull(g: Tensor) -> Tensor:
        return conv_down(g, x, f, weight, stride=stride, padding=padding, pool=pool, impl=impl)

    return Step(output, activation, pull)


def conv_down(
    g: Tensor,
    x: Tensor,
    f: Activation | None,
    weight: Tensor,
    add: Tensor | None = None,
    behind: tuple[Activation, Tensor] | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    pool: tuple[int, int] = (1, 1),
    impl: str = "auto",
) -> Tensor:
    """`(spread(convᵀ(g · e'(h))) + add) · f'(x)`: down through a convolution whose input `x` came out of `f`.

    `spread` is the transpose of the average pool before it. `add` is what comes down to `x` by another way, without
    `f'`, and without the rows and columns that no window of the pool takes in. `behind` is the activation `e` behind
    the convolution with its output `h`, where its derivative has not been taken care of.
    """
    opened, leak = None, 0.0
    if behind is not None:
        own, h = behind
        if own.gate_slope is None:
            g = own.pull(g, h)
        else:
            opened, leak = h, own.gate_slope
    size = (x.shape[2] // pool[0], x.shape[3] // pool[1])
    rest = (x.shape[2] - size[0] * pool[0], x.shape[3] - size[1] * pool[1])
    slope = None if f is None or rest != (0, 0) else f.gate_slope
    # A map of one pixel has no layout to pass on: a gate that lets all through tells that of x.
    tells = g.shape[2:] == (1, 1) and add is None and rest == (0, 0) and is_channels_last(x)
    gate = x if slope is not None or tells else None
    u = conv_transpose2d_add_act(
        g,
        weight,
        add,
        stride=stride,
        padding=padding,
        output_size=size,
        upsample=pool,
        spread=True,
        gate=gate,
        gate_slope=1.0 if slope is None else slope,
        input_gate=opened,
        input_slope=leak,
        impl=impl,
    )
    if rest != (0, 0):
        u = F.pad(u, (0, rest[1], 0, rest[0]))
    u = laid_out_as(u, x)
    return u if slope is not None else _undo(f, u, x)


def _conv_add_act(layer: Conv2dAddAct, x: Tensor, f: Activation | None) -> Step:
    return conv_step(
        x,
        f,
        layer(x),
        layer.weight,
        _of(layer.activation, layer.slope),
        stride=layer.stride,
        padding=layer.padding,
        pool=layer.pool,
        impl=layer.impl,
    )


def _tied_conv(layer: TiedConv2d, x: Tensor, f: Activation | None) -> Step:
    return conv_step(
        x,
        f,
        layer(x),
        layer.weight,
        _of(layer.activation, layer.slope),
        stride=layer.stride,
        padding=layer.padding,
        impl=layer.impl,
    )


def _conv(layer: nn.Conv2d, x: Tensor, f: Activation | None) -> Step:
    stride, padding = layer.stride, layer.padding
    assert not isinstance(padding, str)
    output = conv2d_add_act(x, layer.weight, None, layer.bias, stride=stride, padding=padding)
    return conv_step(x, f, output, layer.weight, None, stride=stride, padding=padding)


def _dense(layer: nn.Linear | TiedLinear, x: Tensor, f: Activation | None) -> Step:
    activation, impl = None, "auto"
    if isinstance(layer, TiedLinear):
        output = layer(x)
        activation, impl = _of(layer.activation, layer.slope), layer.impl
    else:
        output = F.linear(x, layer.weight, layer.bias)
    weight = layer.weight.reshape(*layer.weight.shape, 1, 1)
    # What has more dimensions than (N, F) is that many more rows.
    step = conv_step(x.reshape(-1, x.shape[-1], 1, 1), f, output, weight, activation, impl=impl)
    return Step(output, activation, lambda g: step.pull(g.reshape(-1, g.shape[-1], 1, 1)).reshape(x.shape))


def _max_pool(layer: MaxPool2dAct | nn.MaxPool2d, x: Tensor, f: Activation | None) -> Step:
    own = _of(layer.activation, layer.slope) if isinstance(layer, MaxPool2dAct) else None
    impl = layer.impl if isinstance(layer, MaxPool2dAct) else "auto"
    windows = (layer.kernel_size, layer.stride, layer.padding)
    output, places = max_pool2d_act(
        x,
        *windows,
        activation=own.name if own else "identity",
        slope=own.slope if own else None,
        return_places=True,
        impl=impl,
    )
    size = (x.shape[2], x.shape[3])
    # A winner came out of the same f as the rest, so that f can be undone among the winners, which are fewer.
    later = f if own is None else own

    def pull(g: Tensor) -> Tensor:
        u = max_unpool2d(g, places, *windows, output_size=size, impl=impl)
        return u if own is None else _undo(f, u, x)

    return Step(output, later, pull)


def _mean_pool(layer: nn.AvgPool2d, x: Tensor, f: Activation | None) -> Step:
    return _spread(layer(x), x, f, *pair("kernel_size", layer.kernel_size, 1))


def _global_mean_pool(layer: nn.AdaptiveAvgPool2d, x: Tensor, f: Activation | None) -> Step:
    return _spread(layer(x), x, f, x.shape[2], x.shape[3])


def _spread(output: Tensor, x: Tensor, f: Activation | None, height: int, width: int) -> Step:
    def pull(g: Tensor) -> Tensor:
        u = F.interpolate(g / (height * width), scale_factor=(height, width))
        return _undo(f, F.pad(u, (0, x.shape[3] - u.shape[3], 0, x.shape[2] - u.shape[2])), x)

    return Step(output, None, pull)


def _flatten(layer: nn.Flatten, x: Tensor, f: Activation | None) -> Step:
    return Step(layer(x), f, lambda g: laid_out_as(g.reshape(x.shape), x))


def _dropout(layer: nn.Dropout | nn.Dropout2d, x: Tensor, f: Activation | None) -> Step:
    if not layer.training or layer.p == 0:
        return _identity(layer, x, f)
    kept = layer(torch.ones_like(x))
    return Step(x * kept, None, lambda g: _undo(f, g * kept, x))


def _identity(layer: nn.Module, x: Tensor, f: Activation | None) -> Step:
    return Step(x, f, lambda g: g)


def _activation(layer: nn.Module, x: Tensor, f: Activation | None) -> Step:
    name = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}[type(layer)]
    own = Activation(
        name, float(cast("nn.LeakyReLU", layer).negative_slope) if name == "leaky_relu" else None
    )
    return Step(layer(x), own, lambda g: _undo(f, g, x))


def _sequential(model: nn.Sequential, x: Tensor, f: Activation | None) -> Step:
    steps, layers = [], list(model)
    while layers:
        step, count = _next_step(layers, x, f)
        x, f = step.output, step.f
        steps.append(step)
        del layers[:count]

    def pull(g: Tensor) -> Tensor:
        for step in reversed(steps):
            g = step.pull(g)
        return g

    return Step(x, f, pull)


def _next_step(layers: list[nn.Module], x: Tensor, f: Activation | None) -> tuple[Step, int]:
    """The step of the first of `layers`, or of as many of its kind as go in turn, and how many that is."""
    kind = type(layers[0])
    # Its own: a subclass may have another way of its own.
    if "gated_in_turn" in vars(kind):
        alike = list(itertools.takewhile(lambda layer: type(layer) is kind and _plain(layer), layers))
        if len(alike) > 1:
            found: tuple[Step, int] = cast("Any", kind).gated_in_turn(alike, x, f)
            return found
    return gated(layers[0], x, f), 1


_RULES: dict[type[nn.Module], Callable[[Any, Tensor, Activation | None], Step]] = {
    Conv2dAddAct: _conv_add_act,
    TiedConv2d: _tied_conv,
    TiedLinear: _dense,
    MaxPool2dAct: _max_pool,
    nn.Conv2d: _conv,
    nn.Linear: _dense,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _mean_pool,
    nn.AdaptiveAvgPool2d: _global_mean_pool,
    nn.ReLU: _activation,
    nn.LeakyReLU: _activation,
    nn.Sigmoid: _activation,
    nn.Tanh: _activation,
    nn.Flatten: _flatten,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
    nn.Identity: _identity,
}

_KNOWN: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.Conv2d: lambda m: (
        set(m.dilation) == {1}
        and m.groups == 1
        and m.padding_mode == "zeros"
        and not isinstance(m.padding, str)
    ),
    nn.MaxPool2d: lambda m: (
        m.dilation in (1, (1, 1))
        and not m.ceil_mode
        and not m.return_indices
        and math.prod(pair("kernel_size", m.kernel_size, 1)) <= MOST_PLACES
    ),
    nn.AvgPool2d: lambda m: (
        m.stride in (None, m.kernel_size)
        and m.padding in (0, (0, 0))
        and not m.ceil_mode
        and m.divisor_override is None
    ),
    nn.AdaptiveAvgPool2d: lambda m: m.output_size in (1, (1, 1)),
    nn.Flatten: lambda m: m.start_dim == 1 and m.end_dim == -1,
    nn.Dropout: lambda m: not m.inplace,
    nn.Dropout2d: lambda m: not m.inplace,
    nn.ReLU: lambda m: not m.inplace,
    nn.LeakyReLU: lambda m: not m.inplace and m.negative_slope >= 0,
}
