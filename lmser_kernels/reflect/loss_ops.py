"""The compiled loss made known to PyTorch: sizes (fakes) and derivatives.

Importing this module needs the compiled library.

`lmser::reflect_loss` returns the loss and, where they are asked for, its gradients: the derivative of the loss is these,
times what comes from above. A gradient that is itself to be differentiated is that of the passes layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import dispatch
from lmser_kernels.dispatch import fake
from lmser_kernels.reflect.ops import (
    Form,
    Maybe,
    Settings,
    directly,
    each_flag,
    flat_settings,
    layers_again,
    pairs_of,
)
from lmser_kernels.reflect.problem import Problem

_OPERATORS = dispatch.compiled


def reflect_loss(problem: Problem, target: Maybe) -> Tensor:
    """The loss by the compiled operator."""
    p = problem
    tensors = [*p.weights, *p.decoder_weights, *p.biases]
    settings = (list(p.strides), list(p.paddings), p.linear, p.paired, p.reflections, p.activation, p.leak)
    needs = _needs(tensors, len(p.biases)) if torch.is_grad_enabled() else [False, False]
    operator = _OPERATORS.raw("reflect_loss")
    arguments = (
        p.x, target, list(p.weights), list(p.decoder_weights), list(p.biases), p.noise,
        *flat_settings(p.weights, settings), needs,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        loss: Tensor = operator(*arguments)[0]
        return loss
    with torch._C._AutoDispatchBelowAutograd():
        results = operator(*arguments)
    if not any(needs):
        loss = results[0]
    else:
        form = Form(p.depth, bool(p.decoder_weights), p.slope)
        loss = _record(form, settings, p.noise, target, results, p.x, *tensors)
    return loss


def _immediate(x: Tensor, weights: Any, back: Any, *args: Any) -> Tensor | None:
    """`reflect_loss` with its own arguments, without the dispatcher and the checks (csrc/direct_reflect.cpp); None where
    the call is not for that."""
    *settings, biases, noise, target, slope = args
    try:
        tensors = [*weights, *(() if back is None else back), *biases]
        needs = _needs(tensors, len(biases))
    except (AttributeError, TypeError):  # no tensors: the caller says what is wrong
        return None
    results = directly("reflect_loss", x, target, weights, back, *settings, biases, noise, needs)
    if results is None:
        return None
    if type(results) is tuple:
        unrecorded: Tensor = results[0]
        return unrecorded
    # A caller's own lists may change before the gradient is asked for.
    kept = tuple(list(value) if type(value) is list else value for value in settings)
    loss: Tensor = _record(
        Form(len(weights), back is not None, slope), kept, noise, target, results, x, *tensors
    )
    return loss


dispatch.immediate("reflect_loss", _immediate)


def _needs(tensors: Sequence[Tensor], biases: int) -> list[bool]:
    """Whether gradients of weights, and of biases, are wanted."""
    wants = [t.requires_grad for t in tensors]
    behind = len(tensors) - biases
    return [any(wants[:behind]), any(wants[behind:])]


# the derivative


class _Eager(torch.autograd.Function):
    """What the operator gave, with its derivative."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, settings: Settings, noise: Maybe, target: Maybe, results: Any, *tensors: Tensor
    ) -> Tensor:
        loss, gradients = results
        ctx.save_for_backward(noise, target, *tensors)
        ctx.form, ctx.settings, ctx.gradients = form, settings, gradients
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad: Tensor = grads[0]
        needs = ctx.needs_input_grad[6:]
        nothing = (None,) * 6  # form, settings, noise, target, results, x
        if torch.is_grad_enabled():
            noise, target, *tensors = ctx.saved_tensors
            return *nothing, *_twice(ctx.form, noise, target, tensors, ctx.settings, grad)[1:]
        # They are given away, not copied: a second backward through the same graph makes them once more.
        found, ctx.gradients = ctx.gradients, None
        if found is None:
            found = _again(ctx)
        if not directly("is_one", grad):
            found = [None if g is None else g * grad for g in found]
        return *nothing, *(g if need else None for g, need in zip(found, needs, strict=True))


# Without what `Function.apply` does for transforms first: none is active where this is called.
_record = super(torch.autograd.Function, _Eager).apply


def _again(ctx: Any) -> list[Tensor]:
    noise, target, *tensors = ctx.saved_tensors
    x, weights, back, biases = ctx.form.parts(tensors)
    found: list[Tensor] = _OPERATORS.raw("reflect_loss")(
        x,
        target,
        weights,
        back,
        biases,
        noise,
        *flat_settings(weights, ctx.settings),
        _needs(tensors[1:], len(biases)),
    )[1]
    return found


def _twice(
    form: Form, noise: Maybe, target: Maybe, tensors: Sequence[Tensor], settings: Settings, grad: Tensor
) -> list[Maybe]:
    """The gradient, of x first, as a function that can be differentiated again."""
    from lmser_kernels.reflect.loss import half_squared_error

    def loss(reconstruction: Tensor, _code: Tensor) -> list[Tensor]:
        return [half_squared_error(reconstruction, tensors[0] if target is None else target)]

    return layers_again(form, noise, tensors, settings, loss, [grad])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, target, weights, back, biases, noise, stride, padding, *settings, _needs = inputs
    gradients = output[1]
    ctx.count = len(gradients)
    ctx.save_for_backward(*gradients, noise, target, x, *weights, *back, *biases)
    slope = settings[-1] if settings[-2] in ("leaky_relu", "leaky_sigmoid") else None
    ctx.settings = (list(pairs_of(stride)), list(pairs_of(padding)), *settings)
    ctx.form = Form(len(weights), bool(back), slope)


def _differentiate(ctx: Any, grad: Tensor, _gradients: Any) -> tuple[Any, ...]:
    gradients, (noise, target, *tensors) = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    form: Form = ctx.form
    _, _, weights, back, biases, *_ = ctx.needs_input_grad
    needs = [*each_flag(weights, form.depth), *each_flag(back, form.depth if form.free else 0)]
    needs += each_flag(biases, form.depth + 1)
    found = (
        _twice(form, noise, target, tensors, ctx.settings, grad)[1:]
        if torch.is_grad_enabled()
        else [g * grad for g in gradients]
    )
    _, *parts = form.parts([None, *(g if need else None for g, need in zip(found, needs, strict=True))])
    return None, None, *parts, *(None,) * 9


dispatch.registered("reflect_loss", _setup, _differentiate)


@fake("reflect_loss")
def _(
    x: Tensor, target: Maybe, weights: list[Tensor], decoder_weights: list[Tensor], biases: list[Tensor], noise: Maybe,
    stride: list[int], padding: list[int], linear: list[int], paired: bool, reflections: int, activation: str,
    slope: float, needs: list[bool],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    gradients = [x.new_empty(w.shape if needs[0] else 0) for w in (*weights, *decoder_weights)]
    loss = x.new_empty((), dtype=torch.float32 if x.dtype == torch.bfloat16 else None)
    return loss, [*gradients, *(x.new_empty(len(b) if needs[1] else 0) for b in biases)]
