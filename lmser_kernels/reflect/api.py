"""Reflection as a public operation: checks, then one operator or the passes layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmser_kernels import _library, dispatch
from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, operands, same_shape
from lmser_kernels.layout import channels_last
from lmser_kernels.reflect.layers import layer_by_layer
from lmser_kernels.reflect.problem import Problem, checked

if _library.available:
    from lmser_kernels.reflect import ops


class Reflection(NamedTuple):
    """What `reflect` returns.

    reconstruction: `u_0 + b_0`, shaped like `x` and in its memory format
    code:           state of the top layer as it was sent down, ``(N, C_L, H_L, W_L)``, channels-last
    """

    reconstruction: Tensor
    code: Tensor


def reflect(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    decoder_weights: Sequence[Tensor] | None = None,
    stride: Pair | Sequence[Pair] = 1,
    padding: Pair | Sequence[Pair] | None = None,
    paired: bool = True,
    reflections: int = 1,
    linear: tuple[int, int] = (0, 0),
    noise: Tensor | None = None,
    sent_down: Tensor | None = None,
    activation: str = "relu",
    slope: float | None = None,
    impl: str = "auto",
) -> Reflection:
    """The passes of a reflection network, up and down through tied weights, as one operation.

        y_l = conv(h_{l-1}, W_l)    u_l = convᵀ(h_{l+1}, W_{l+1})    h_l = f(y_l + u_l + b_l)    h_0 = x

    A pass up (with all `u = 0` the first time, then with those of the last pass down) and a pass down (with the `y`
    of the last pass up) are one reflection; the last pass down ends with `reconstruction = u_0 + b_0`.

    Args:
        x: `(N, C_0, H_0, W_0)`, float32, float64, bfloat16 or float16, any strides.
        weights: of the edges into layers 1 ... L, `(C_l, C_{l-1}, kh, kw)`, or of a fully connected edge, the 1x1
            case, `(C_l, C_{l-1})`.
        biases: of layers 0 ... L, `(C_l,)`.
        decoder_weights: weights of the way down, shaped like `weights`; None: the same, tied.
        stride: one int or pair for all edges, or a list of one for each.
        padding: likewise; None is half of each kernel.
        paired: False drops the drive of the other direction: `f(y_l + b_l)` up, `f(u_l + b_l)` down.
        reflections: how many, at least 1.
        linear: how many of the first and of the last channels of the top layer are read out (and sent down) without
            `f`.
        noise: `(N, linear[1], H_L, W_L)`, added to the last linear channels before they go down; no gradient flows to
            it.
        sent_down: shaped like the code, takes its place in the last pass down (and is returned as the code).
        activation: one of identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid.
        slope: the leak of leaky_relu (default 0.01) and leaky_sigmoid (default 0.2); None for the others.
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    On a CPU, in float32, float64 and, where the processor multiplies it in tiles, bfloat16, and without `sent_down`, this
    is one operator: threads take images through all layers, weights are packed
    once, states stay in the cache, and of a training step nothing is kept but one state per
    layer and pass. Everywhere else, under `torch.func` and in exported graphs, the same passes run layer by layer with
    the fused operations of `impl`. "reference" is the specification.

    Differentiable to any order (the second through the operations of the layers).

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.

    Source: "Deep CNN Based Lmser and Strengths of Two Built-In Dualities", Eqs. (3)-(5).
    """
    if sent_down is None and not getattr(noise, "requires_grad", False):
        found = dispatch.at_once(
            "reflect", impl, x, weights, decoder_weights, stride, padding, linear, paired, reflections, activation,
            activations.check(activation, slope), biases, noise, slope,
        )  # fmt: skip
        if found is not None:
            return Reflection(*found)
    problem = checked(
        x, weights, biases, decoder_weights, stride, padding, paired, reflections, linear, noise, activation, slope
    )  # fmt: skip
    operators = dispatch.chosen("reflect", impl, problem.x)
    if sent_down is None and operators is dispatch.compiled and as_one(problem):
        return Reflection(*ops.reflect(problem))
    if sent_down is not None:
        sent_down = operands(("x", "sent_down"), (x, sent_down), 2)[1]
        assert sent_down is not None
        code = (problem.x.shape[0], problem.weights[-1].shape[0], *problem.sizes[-1])
        same_shape("sent_down", sent_down, code, "the shape of the top layer")
        sent_down = channels_last(sent_down)
    return Reflection(*layer_by_layer(problem, impl, sent_down))


def as_one(problem: Problem) -> bool:
    """Whether the compiled operator takes this problem."""
    x = problem.x
    library = _library.module
    return (
        x.is_cpu
        and library is not None
        and (
            x.dtype in (torch.float32, torch.float64)
            # Which a graph that is traced cannot ask.
            or (
                x.dtype == torch.bfloat16
                and not torch.compiler.is_compiling()
                and library.multiplies_bfloat16()
            )
        )
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_exporting()  # such a graph may run elsewhere
    )
