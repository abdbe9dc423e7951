"""`settle_step` and `settle`: check their arguments and take the implementation asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmser_kernels import _library
from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, four_dimensional, operands, pair, per_channel, same_shape
from lmser_kernels.dispatch import chosen
from lmser_kernels.settle import persistent, reference
from lmser_kernels.settle.problem import (
    Adjoint,
    Problem,
    Run,
    check_mask,
    check_segment,
    check_stop,
    checked,
    choice,
    number,
)
from lmser_kernels.settle.result import Settled
from lmser_kernels.settle.schedule import ORDERS
from lmser_kernels.settle.segments import in_segments

if _library.available:
    from lmser_kernels.settle import ops

BACKWARDS = ("bptt", "implicit")
UNCONVERGED = ("raise", "warn", "ignore")


def settle_step(
    below: Tensor | None,
    above: Tensor | None,
    weight_below: Tensor | None,
    weight_above: Tensor | None,
    bias: Tensor | None = None,
    *,
    padding: Pair,
    padding_above: Pair | None = None,
    pool: Pair = 1,
    upsample: Pair = 1,
    activation: str = "leaky_sigmoid",
    slope: float | None = None,
    evidence: Tensor | None = None,
    mask: Tensor | None = None,
    previous: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One neuron update from both neighbours: `h = f(y + u + bias)`, `evidence` where `mask`.

        y = conv(avg_pool(below, pool), weight_below)          u = up(convᵀ(above, weight_above), upsample)

    Args:
        below: `(N, C_b, H_b, W_b)`, the layer below, or None at the bottom; then `weight_below` is None too.
        above: `(N, C_a, H_a, W_a)`, the layer above, or None at the top; then `weight_above` is None too.
        weight_below: `(C, C_b, kh, kw)`, of the edge below.
        weight_above: `(C_a, C, kh, kw)`, of the edge above: the same tensor that its own layer above is driven by.
        bias: `(C,)`, or None.
        padding: of both edges, `padding_above` of the upper one where it differs. Strides are 1.
        pool: window averaged on the way up from `below`.
        upsample: how often each value repeats on the way down from `above`.
        activation: one of identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid; `slope` is the leak.
        evidence: of `h`'s shape; taken where `mask` (bool, of the same shape; None: everywhere) is true.
        previous: of `h`'s shape, or None.
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    Returns:
        `h` and `change = max|h - previous|`, 0-d, not differentiable, NaN where either holds one; infinity
        without `previous`.

    `h` is differentiable in every tensor argument but `mask` and `previous`.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.

    Source: "Convolutional Bipartite Attractor Networks", Eqs. (1), (4) and Sect. 3.1.
    """
    leak = activations.check(activation, slope)
    if below is None and above is None:
        raise ValueError("below and above must not both be None")
    for state, weight, side in ((below, weight_below, "below"), (above, weight_above, "above")):
        if (state is None) != (weight is None):
            raise ValueError(f"{side} and weight_{side} must be given together or not at all")
    names = ("below", "above", "weight_below", "weight_above", "bias", "evidence", "previous")
    tensors = (below, above, weight_below, weight_above, bias, evidence, previous)
    present = [(name, tensor) for name, tensor in zip(names, tensors, strict=True) if tensor is not None]
    cast_to = operands(tuple(n for n, _ in present), tuple(t for _, t in present), len(present))
    given = dict(zip((n for n, _ in present), cast_to, strict=True))
    below, above = given.get("below"), given.get("above")
    weight_below, weight_above = given.get("weight_below"), given.get("weight_above")
    bias, evidence, previous = given.get("bias"), given.get("evidence"), given.get("previous")
    lower = pair("padding", padding, 0)
    upper = lower if padding_above is None else pair("padding_above", padding_above, 0)
    window, times = pair("pool", pool, 1), pair("upsample", upsample, 1)
    shape: tuple[int, ...] | None = None
    if below is not None and weight_below is not None:
        shape = _driven_up(below, weight_below, window, lower)
    if above is not None and weight_above is not None:
        other = _driven_down(above, weight_above, times, upper)
        if shape is not None and shape != other:
            raise ValueError(f"above gives a layer of shape {other}, below one of {shape}; expected the same")
        shape = other
    assert shape is not None
    if bias is not None:
        per_channel(bias, shape[1], "h")
    for name, tensor in (("evidence", evidence), ("mask", mask), ("previous", previous)):
        if tensor is not None:
            same_shape(name, tensor, shape, "the shape of h")
    first = below if below is not None else above
    assert first is not None
    check_mask(mask, evidence, first)
    operators = chosen("settle_step", impl, first)
    if operators is not None:
        return ops.settle_step(
            operators, below, above, weight_below, weight_above, bias, evidence, mask, previous,
            lower, upper, window, times, activation, leak,
        )  # fmt: skip
    return reference.settle_step(
        below, above, weight_below, weight_above, bias,
        padding=lower, padding_above=upper, pool=window, upsample=times, activation=activation, slope=slope,
        evidence=evidence, mask=mask, previous=previous,
    )  # fmt: skip


def settle(
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    *,
    evidence: Tensor | None = None,
    mask: Tensor | None = None,
    strength: float = 1.0,
    external: Tensor | None = None,
    pools: Sequence[Pair] | None = None,
    padding: int | Sequence[Pair] | None = None,
    activation: str = "tanh",
    slope: float | None = None,
    order: str = "up_down",
    theta: float = 0.01,
    max_steps: int = 100,
    backward: str = "bptt",
    reverse_weights: Sequence[Tensor] | None = None,
    readouts: bool = False,
    per_sample: bool = False,
    trajectory_dtype: torch.dtype | None = None,
    checkpoint_every: int | None = None,
    adjoint_theta: float = 1e-6,
    adjoint_max_steps: int = 1000,
    unconverged: str = "warn",
    impl: str = "auto",
) -> Settled:
    """Settle a bipartite network of layers 0 ... L, layer 0 visible: the whole loop as one operation.

    One sweep updates hidden layers 1 ... L, then L-1 ... 0 (`order="up_down"`), or the odd layers, then the even
    ones (`"odd_even"`), each by

        h_l = f(conv(avg_pool(h_{l-1}), W_l) + up(convᵀ(h_{l+1}, W_{l+1})) + b_l)

    where `up` repeats each value over the window that is averaged on the way up, until no state changes by `theta` or
    more in a sweep. The visible value before evidence is put in is a sweep's readout.

    Args:
        states: L + 1 initial states `(N, C_l, H_l, W_l)`; fully connected layers are `(N, C, 1, 1)`.
        weights: L tensors `(C_l, C_{l-1}, kh, kw)`, of odd kernel sizes unless `padding` says otherwise; strides are 1.
        biases: L + 1 of `(C_l,)` or None; None for no biases at all.
        evidence: of the visible shape; the visible state is held at it where `mask` (bool, of the same shape; None:
            everywhere) is true, from the start.
        strength: an observed unit is `strength * evidence + (1 - strength) * f(...)`; 1 clamps.
        external: constant drive of the visible units, of their shape, added inside `f`.
        pools: window of each edge, 1 where None.
        padding: of each edge, or one int for all; half of the kernel where None.
        activation: one of identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid; `slope` is the leak.
        theta: stop after the sweep in which `max |h(t) - h(t-1)| < theta` over all layers; 0 never stops early.
        max_steps: sweeps at most.
        backward: "bptt" differentiates the sweeps made. "implicit" differentiates the fixed point by solving
            the adjoint equation with the same sweeps (Almeida-Pineda): its memory does not grow with the
            number of sweeps, no gradient reaches the initial states, and the readouts are the last one alone.
        reverse_weights: free weights of the top-down direction, of `weights`' shapes; None ties the two directions.
        readouts: keep the unclamped visible value of every sweep.
        per_sample: every sample stops by itself, in the sweep in which its own change falls below `theta`, and costs
            nothing more; `steps` and `change` are then `(N,)`. Not with `backward="bptt"` where a gradient is asked for.
        trajectory_dtype: of the hidden states that "bptt" keeps for its backward; `torch.bfloat16` halves their memory and
            rounds them, and so the gradient, to 8 bits (float32 states and the compiled operator only).
        checkpoint_every: "bptt" keeps the states of every so many sweeps alone, and makes the sweeps between them once
            more in its backward: memory for `checkpoint_every + max_steps / checkpoint_every` sweeps, least near
            `√max_steps`, for about half as much time again. None keeps what every sweep needs: its states,
            or on a CPU, of hidden layers whose drive from below takes at most 512 multiply-adds a value, the drive from
            above alone, from which their states are made again.
        adjoint_theta, adjoint_max_steps: when the adjoint of "implicit" stops: its largest change relative to its largest
            value, and its sweeps at most.
        unconverged: what "implicit" does where the forward sweeps or the adjoint's did not converge: "raise" a
            RuntimeError, "warn", or "ignore".
        impl: "auto", "native", "triton" or "reference"; an explicit one never falls back.

    Returns:
        `Settled(states, readouts, steps, change)`.

    bfloat16 and float16 states and weights are settled in float32 and returned in their dtype.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        RuntimeError: an explicit `impl` that cannot run here.

    Source: "Convolutional Bipartite Attractor Networks", Eqs. (1), (4), Sect. 3.3 and Appendix E.2.
    """
    leak = activations.check(activation, slope)
    problem = checked(states, weights, biases, reverse_weights, evidence, mask, external, pools, padding)
    number("strength", strength)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be between 0 and 1; got {strength}")
    check_stop(theta, max_steps)
    check_stop(adjoint_theta, adjoint_max_steps, "adjoint_")
    choice("order", order, ORDERS)
    choice("backward", backward, BACKWARDS)
    choice("unconverged", unconverged, UNCONVERGED)
    if per_sample and backward == "bptt" and problem.requires_grad():
        raise ValueError(
            'per_sample: expected backward="implicit" or no gradient, got backward="bptt" with tensors that require one'
        )
    half = _kept_in_half(trajectory_dtype, problem, impl)
    check_segment(checkpoint_every)
    run = Run(strength, activation, leak, order, theta, max_steps, readouts, per_sample, half)
    adjoint = None if backward == "bptt" else Adjoint(adjoint_theta, adjoint_max_steps, unconverged)
    dtype = problem.states[0].dtype
    if dtype in (torch.bfloat16, torch.float16):
        found = _settle(impl, problem.to(torch.float32), run, adjoint, checkpoint_every)
        return Settled(
            tuple(h.to(dtype) for h in found.states),
            None if found.readouts is None else found.readouts.to(dtype),
            found.steps,
            found.change,
        )
    return _settle(impl, problem, run, adjoint, checkpoint_every)


def _kept_in_half(dtype: torch.dtype | None, problem: Problem, impl: str) -> bool:
    given = problem.states[0].dtype
    computed = torch.float32 if given in (torch.bfloat16, torch.float16) else given
    if dtype in (None, computed):
        return False
    if dtype != torch.bfloat16 or computed != torch.float32:
        raise ValueError(
            f"trajectory_dtype must be None, {computed} or, of float32 states, torch.bfloat16; got {dtype}"
        )
    if chosen("settle", impl, problem.states[0]) is None:
        raise RuntimeError("trajectory_dtype=torch.bfloat16: only the compiled operator rounds what it keeps")
    return True


def _settle(
    impl: str, problem: Problem, run: Run, adjoint: Adjoint | None, every: int | None = None
) -> Settled:
    kept = adjoint is None and problem.requires_grad()
    if kept and every is not None and every < run.max_steps:
        return in_segments(lambda part, how: _settle(impl, part, how, None), problem, run, every)
    operators = chosen("settle", impl, problem.states[0])
    if impl == "native" and problem.states[0].is_cuda:
        bytes_kept = persistent.kept_bytes(
            problem.states,
            run.order,
            run.theta,
            run.max_steps,
            keep=kept,
            half=run.half,
            readouts=run.readouts,
        )
        found = persistent.obstacle(
            problem.states, problem.weights, run.order, run.theta, run.per_sample, kept=bytes_kept
        )
        if found is not None:
            raise RuntimeError(
                f'settle: impl="native": no compiled kernel for CUDA tensors takes this: {found}'
            )
    if operators is not None:
        return ops.settle(operators, problem, run, adjoint)
    return reference.solve(problem, run, adjoint)


def _driven_up(
    below: Tensor, weight: Tensor, window: tuple[int, int], margin: tuple[int, int]
) -> tuple[int, ...]:
    """The shape that the layer below gives the layer."""
    four_dimensional("below", below, "(N, C_b, H_b, W_b)")
    four_dimensional("weight_below", weight, "(C, C_b, kh, kw)")
    if below.shape[1] != weight.shape[1]:
        raise ValueError(
            f"below has {below.shape[1]} channels; weight_below {tuple(weight.shape)} takes {weight.shape[1]}"
        )
    size = [below.shape[2 + i] // window[i] + 2 * margin[i] - weight.shape[2 + i] + 1 for i in (0, 1)]
    if min(size) < 1:
        raise ValueError(
            f"below of shape {tuple(below.shape)} is smaller than the kernel {tuple(weight.shape[2:])}"
        )
    return (below.shape[0], weight.shape[0], *size)


def _driven_down(
    above: Tensor, weight: Tensor, times: tuple[int, int], margin: tuple[int, int]
) -> tuple[int, ...]:
    """The shape that the layer above gives the layer."""
    four_dimensional("above", above, "(N, C_a, H_a, W_a)")
    four_dimensional("weight_above", weight, "(C_a, C, kh, kw)")
    if above.shape[1] != weight.shape[0]:
        raise ValueError(
            f"above has {above.shape[1]} channels; weight_above {tuple(weight.shape)} takes {weight.shape[0]}"
        )
    size = [(above.shape[2 + i] - 1 - 2 * margin[i] + weight.shape[2 + i]) * times[i] for i in (0, 1)]
    if min(size) < 1:
        raise ValueError(f"padding {margin} leaves nothing of above of shape {tuple(above.shape)}")
    return (above.shape[0], weight.shape[1], *size)
