"""The compiled passes made known to PyTorch: sizes (fakes) and derivatives.

Importing this module needs the compiled library.

`lmser::reflect` runs all passes. With `keep` it returns, beside reconstruction and code, the states of every update:
`lmser::reflect_backward` walks back through them. A gradient that is itself to be differentiated is that of the passes
layer by layer, whose operations can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library, dispatch
from lmser_kernels.arguments import pair
from lmser_kernels.dispatch import fake
from lmser_kernels.layout import empty_like_layout
from lmser_kernels.reflect.layers import layer_by_layer
from lmser_kernels.reflect.problem import Problem, per_edge

Maybe = Tensor | None
_OPERATORS = dispatch.compiled


def reflect(problem: Problem) -> tuple[Tensor, Tensor]:
    """``(reconstruction, code)`` by the compiled operator."""
    p = problem
    operator = _OPERATORS.raw("reflect")
    lists = (p.x, list(p.weights), list(p.decoder_weights), list(p.biases), p.noise)
    settings = (list(p.strides), list(p.paddings), p.linear, p.paired, p.reflections, p.activation, p.leak)
    wants = torch.is_grad_enabled() and any(t.requires_grad for t in p.tensors())
    flat = flat_settings(p.weights, settings)
    if torch.compiler.is_compiling():
        reconstruction, code, _ = operator(*lists, *flat, wants)
        return reconstruction, code
    with torch._C._AutoDispatchBelowAutograd():
        results = operator(*lists, *flat, wants)
    if not wants:
        return results[0], results[1]
    form = Form(p.depth, bool(p.decoder_weights), p.slope)
    recorded: tuple[Tensor, Tensor] = _record(form, settings, p.noise, results, *p.tensors())
    return recorded


def _immediate(x: Tensor, weights: Any, back: Any, *args: Any) -> tuple[Tensor, Tensor] | None:
    """`reflect` with its own arguments, without the dispatcher and the checks (csrc/direct_reflect.cpp); None where the
    call is not for that."""
    *settings, biases, noise, slope = args
    results = directly("reflect", x, weights, back, *settings, biases, noise)
    if results is None:
        return None
    if type(results) is tuple:
        return results[0], results[1]
    # A caller's own lists may change before the gradient is asked for.
    kept = tuple(list(value) if type(value) is list else value for value in settings)
    form = Form(len(weights), back is not None, slope)
    recorded: tuple[Tensor, Tensor] = _record(
        form, kept, noise, results, x, *weights, *(() if back is None else back), *biases
    )
    return recorded


dispatch.immediate("reflect", _immediate)


def directly(name: str, *args: Any) -> Any:
    """What the module's function gives; None where it is not for this call, or not there."""
    function = getattr(_library.module, name, None)
    return None if function is None else function(*args)


# Strides, paddings, counts of linear channels, whether paired, reflections, activation, leak: as `reflect` takes them.
Settings = tuple[Any, ...]


def flat_settings(weights: Sequence[Tensor], settings: Settings) -> Settings:
    """The same as the operators take them."""
    stride, padding, linear, *others = settings
    edges = len(weights)
    strides = per_edge("stride", stride, edges, 1)
    paddings = (
        [(w.shape[2] // 2, w.shape[3] // 2) if w.dim() == 4 else (0, 0) for w in weights]
        if padding is None
        else per_edge("padding", padding, edges, 0)
    )
    return _flat(strides), _flat(paddings), list(pair("linear", linear, 0)), *others


def _flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [value for pair in pairs for value in pair]


# the derivative


@dataclass(frozen=True, slots=True)
class Form:
    """What tells the parts of a flat list of tensors, x, weights, decoder weights, biases."""

    depth: int
    free: bool  # there are decoder weights
    slope: float | None

    def parts(self, flat: Sequence[Any]) -> tuple[Any, list[Any], list[Any], list[Any]]:
        edges, behind = self.depth + 1, self.depth * (2 if self.free else 1) + 1
        return flat[0], list(flat[1:edges]), list(flat[edges:behind]), list(flat[behind:])


class _Eager(torch.autograd.Function):
    """What the operator gave, with its derivative: what is registered costs a small network more than it computes."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, settings: Settings, noise: Maybe, results: Sequence[Tensor], *tensors: Tensor
    ) -> Any:
        reconstruction, code, states = results
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(states, noise, *tensors)
        ctx.settings, ctx.form = settings, form
        return reconstruction, code

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        states, noise, *tensors = ctx.saved_tensors
        of_reconstruction, of_code = grads
        needs = ctx.needs_input_grad[4:]
        found = _gradients(ctx.form, states, noise, tensors, ctx.settings, of_reconstruction, of_code, needs)
        return None, None, None, None, *found


# Without what `Function.apply` does for transforms first: none is active where this is called.
_record = super(torch.autograd.Function, _Eager).apply


def _gradients(
    form: Form,
    states: Tensor,
    noise: Maybe,
    tensors: Sequence[Tensor],
    settings: Settings,
    grad_reconstruction: Maybe,
    grad_code: Maybe,
    needs: Sequence[bool],
) -> list[Maybe]:
    """Of x, weights, decoder weights and biases, in a flat list."""
    if grad_reconstruction is None and grad_code is None:
        return [None] * len(tensors)
    x, weights, back, biases = form.parts(tensors)
    if torch.is_grad_enabled():
        return _twice(form, noise, tensors, settings, grad_reconstruction, grad_code)
    behind = len(tensors) - len(biases)
    wanted = [bool(needs[0]), any(needs[1:behind]), any(needs[behind:])]
    found = directly(
        "reflect_backward",
        grad_reconstruction,
        grad_code,
        x,
        weights,
        back or None,
        *settings,
        states,
        wanted,
    )
    if found is None:
        found = _OPERATORS.raw("reflect_backward")(
            grad_reconstruction,
            grad_code,
            x,
            weights,
            back,
            states,
            *flat_settings(weights, settings),
            wanted,
        )
    return [g if need else None for g, need in zip(found, needs, strict=True)]


def _twice(
    form: Form,
    noise: Maybe,
    tensors: Sequence[Tensor],
    settings: Settings,
    grad_reconstruction: Maybe,
    grad_code: Maybe,
) -> list[Maybe]:
    """The gradient as a function that can be differentiated again."""
    grads = [grad_reconstruction, grad_code]
    return layers_again(form, noise, tensors, settings, lambda *outputs: list(outputs), grads)


def layers_again(
    form: Form,
    noise: Maybe,
    tensors: Sequence[Tensor],
    settings: Settings,
    of_outputs: Callable[[Tensor, Tensor], list[Tensor]],
    grads: Sequence[Maybe],
) -> list[Maybe]:
    """Gradients of `of_outputs(reconstruction, code)`, weighted by `grads`, through the passes layer by layer: they can
    be differentiated again."""
    x, weights, back, biases = form.parts(tensors)
    strides, paddings, linear, paired, reflections, activation, leak = flat_settings(weights, settings)
    sizes = _sizes(x, weights, strides, paddings)
    with torch.enable_grad():
        problem = Problem(
            x, tuple(weights), tuple(back), tuple(biases), noise, pairs_of(strides), pairs_of(paddings),
            tuple(sizes), tuple(linear), paired, reflections, activation, form.slope, leak,
        )  # fmt: skip
        outputs = of_outputs(*layer_by_layer(problem, "native"))
    given = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [t for t in tensors if t.requires_grad]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in given], wanted, [g for _, g in given], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if t.requires_grad else None for t in tensors]


def pairs_of(flat: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weights, back, biases, noise, *settings, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], noise, x, *weights, *back, *biases)
    # The leak is the slope where the activation has one.
    slope = settings[-1] if settings[-2] in ("leaky_relu", "leaky_sigmoid") else None
    stride, padding, *others = settings
    ctx.settings = (list(pairs_of(stride)), list(pairs_of(padding)), *others)
    ctx.form = Form(len(weights), bool(back), slope)


def _differentiate(ctx: Any, grad_reconstruction: Maybe, grad_code: Maybe, _states: Maybe) -> tuple[Any, ...]:
    states, noise, *tensors = ctx.saved_tensors
    form: Form = ctx.form
    x, weights, back, biases, *_ = ctx.needs_input_grad
    needs = [x, *each_flag(weights, form.depth), *each_flag(back, form.depth if form.free else 0)]
    needs += each_flag(biases, form.depth + 1)
    found = _gradients(form, states, noise, tensors, ctx.settings, grad_reconstruction, grad_code, needs)
    return *form.parts(found), *(None,) * 9


def each_flag(flag: Any, count: int) -> list[bool]:
    return list(flag) if isinstance(flag, (list, tuple)) else [bool(flag)] * count


dispatch.registered("reflect", _setup, _differentiate)


# torch.compile and torch.export


def _sizes(x: Tensor, weights: Sequence[Tensor], stride: Sequence[int], padding: Sequence[int]) -> list[Any]:
    sizes = [(x.shape[2], x.shape[3])]
    for weight, (sh, sw), (ph, pw) in zip(weights, pairs_of(stride), pairs_of(padding), strict=True):
        height, width = sizes[-1]
        kh, kw = weight.shape[2:] if weight.dim() == 4 else (1, 1)
        sizes.append(((height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1))
    return sizes


@fake("reflect")
def _(
    x: Tensor, weights: list[Tensor], decoder_weights: list[Tensor], biases: list[Tensor], noise: Maybe,
    stride: list[int], padding: list[int], linear: list[int], paired: bool, reflections: int, activation: str,
    slope: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sizes = _sizes(x, weights, stride, padding)
    depth, batch = len(weights), x.shape[0]
    values = [w.shape[0] * h * k for w, (h, k) in zip(weights, sizes[1:], strict=True)]
    hidden = sum(values[:-1])
    states = 2 * hidden + values[-1]
    if paired and depth > 1:
        states += (reflections - 1) * (2 * hidden - values[0] + values[-1])
    (height, width), channels = sizes[-1], weights[-1].shape[0]
    code = x.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)
    if height * width == 1:
        code = x.new_empty((batch, channels, 1, 1))
    return empty_like_layout(x, x.shape), code, x.new_empty(batch * states if keep else 0)


@fake("reflect_backward")
def _(
    grad_reconstruction: Maybe, grad_code: Maybe, x: Tensor, weights: list[Tensor], decoder_weights: list[Tensor],
    states: Tensor, stride: list[int], padding: list[int], linear: list[int], paired: bool, reflections: int,
    activation: str, slope: float, needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    channels = [x.shape[1], *(w.shape[0] for w in weights)]
    return [
        empty_like_layout(x, x.shape) if needs[0] else x.new_empty(0),
        *(x.new_empty(w.shape if needs[1] else 0) for w in (*weights, *decoder_weights)),
        *(x.new_empty(c if needs[2] else 0) for c in channels),
    ]
