"""The reconstruction error of a reflection network as a public operation, which makes its gradient on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser_kernels import _library, dispatch
from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, operands, same_shape
from lmser_kernels.layout import channels_last
from lmser_kernels.reflect.api import as_one
from lmser_kernels.reflect.layers import layer_by_layer
from lmser_kernels.reflect.problem import checked

if _library.available:
    from lmser_kernels.reflect import loss_ops


def reflect_loss(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    target: Tensor | None = None,
    decoder_weights: Sequence[Tensor] | None = None,
    stride: Pair | Sequence[Pair] = 1,
    padding: Pair | Sequence[Pair] | None = None,
    paired: bool = True,
    reflections: int = 1,
    linear: tuple[int, int] = (0, 0),
    noise: Tensor | None = None,
    activation: str = "relu",
    slope: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """What `reflect` does not reconstruct of `target`, a 0-d tensor:

        J = 1/(2N) sum_n ||target_n - reconstruction_n||²

    Args:
        target: shaped like `x`; None: `x` itself.

    The other arguments are those of `reflect`. Half precision is summed, and given, in float32; the loss of no image is
    NaN.

    On a CPU, in float32, float64 and, where the processor multiplies it in tiles, bfloat16, this is one operator, which
    makes the gradients of weights and biases together with the loss where gradients are
    recorded: a piece of the batch goes up, down and back before the next one starts.
    So nothing is kept for a backward pass, memory is that of a piece, and `backward` only hands the gradients out.
    A loss whose gradient is not wanted belongs under `torch.no_grad()`. Gradients of `x` and `target`, a second
    derivative, other devices and dtypes, `torch.func` and exported graphs take the passes layer by layer.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.

    Source: "Deep CNN Based Lmser and Strengths of Two Built-In Dualities", Eqs. (1), (3)-(5).
    """
    if not _differentiated(x, target) and not getattr(noise, "requires_grad", False):
        found: Tensor | None = dispatch.at_once(
            "reflect_loss", impl, x, weights, decoder_weights, stride, padding, linear, paired, reflections, activation,
            activations.check(activation, slope), biases, noise, target, slope,
        )  # fmt: skip
        if found is not None:
            return found
    problem = checked(
        x, weights, biases, decoder_weights, stride, padding, paired, reflections, linear, noise, activation, slope
    )  # fmt: skip
    operators = dispatch.chosen("reflect", impl, problem.x)
    if target is not None:
        target = operands(("x", "target"), (problem.x, target), 2)[1]
        assert target is not None
        same_shape("target", target, problem.x.shape, "the shape of x")
    if operators is dispatch.compiled and as_one(problem) and not _differentiated(problem.x, target):
        return loss_ops.reflect_loss(problem, target)
    problem.x = channels_last(problem.x)
    reconstruction, _ = layer_by_layer(problem, impl)
    return half_squared_error(reconstruction, problem.x if target is None else channels_last(target))


def half_squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """`1/(2N) sum_n ||target_n - reconstruction_n||²`, a 0-d tensor; of half precision in float32."""
    if torch.float16 in (target.dtype, reconstruction.dtype) or torch.bfloat16 in (
        target.dtype,
        reconstruction.dtype,
    ):
        reconstruction, target = reconstruction.float(), target.float()
    return F.mse_loss(reconstruction, target, reduction="sum") / (2 * len(target))


def _differentiated(x: Tensor, target: Tensor | None) -> bool:
    """Whether a gradient of what is reconstructed is recorded."""
    return torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in (x, target))
