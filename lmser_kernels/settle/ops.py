"""The compiled settling operators made known to PyTorch: sizes (fakes) and derivatives.

Importing this module needs the compiled library.

`lmser::settle` runs all sweeps. With `keep` it returns, beside the states, the readouts of every sweep and the
trajectory, in the order of the updates the states they made, or what states are made again from:
`lmser::settle_backward` walks back through them.
Without it `lmser::settle_adjoint` solves the adjoint equation at the states found, where that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import dispatch
from lmser_kernels.dispatch import Operators, fake
from lmser_kernels.settle import step_ops as step_ops  # registers settle_step
from lmser_kernels.settle.converged import check
from lmser_kernels.settle.problem import Adjoint, Problem, Run
from lmser_kernels.settle.result import Settled
from lmser_kernels.settle.unrolled import unrolled

Maybe = Tensor | None
Pair = tuple[int, int]
Pairs = Sequence[Pair]


def settle(ops: Operators, problem: Problem, run: Run, adjoint: Adjoint | None) -> Settled:
    """The solve by the operator of `ops`, with the gradient asked for."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            'settle: torch.func\'s transforms do not reach into the compiled operator; with impl="reference" they do'
        )
    first = problem.states[0]
    hold = None
    if problem.evidence is not None:
        hold = torch.full_like(first, run.strength)
        if problem.mask is not None:
            hold = hold * problem.mask
    bptt = adjoint is None
    states, readouts, _, steps, change = ops.raw("settle")(
        list(problem.states), list(problem.weights), list(problem.reverse_weights),
        [first.new_empty(0) if b is None else b for b in problem.biases], problem.evidence, hold, problem.external,
        _flat(problem.pools), _flat(problem.padding), run.activation, run.slope, run.order, float(run.theta),
        run.max_steps, run.per_sample, bptt and problem.requires_grad(), run.half, bptt and run.readouts,
        0.0 if adjoint is None else float(adjoint.theta), 0 if adjoint is None else adjoint.max_steps,
        "ignore" if adjoint is None else adjoint.unconverged,
    )  # fmt: skip
    return Settled(
        tuple(_as(given, h) for given, h in zip(problem.states, states, strict=True)),
        readouts if run.readouts else None,
        steps,
        change.detach(),
    )


def settle_step(
    ops: Operators, below: Maybe, above: Maybe, weight_below: Maybe, weight_above: Maybe, bias: Maybe,
    evidence: Maybe, mask: Maybe, previous: Maybe, padding: Pair, padding_above: Pair, pool: Pair, upsample: Pair,
    activation: str, leak: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One update by the operator of `ops`; half precision is computed in float32."""
    tensors = [below, above, weight_below, weight_above, bias, evidence, previous]
    first = below if below is not None else above
    assert first is not None
    if first.dtype in (torch.bfloat16, torch.float16):
        tensors = [None if t is None else t.float() for t in tensors]
    *inputs, evidence, previous = tensors
    hold = None
    if evidence is not None:
        hold = torch.ones_like(evidence) if mask is None else mask.to(evidence.dtype)
        hold = hold.detach()
    h, change = ops.settle_step(
        *inputs, evidence, hold, None if previous is None else previous.detach(), padding, padding_above, pool, upsample,
        activation, leak,
    )  # fmt: skip
    return _as(first, h.to(first.dtype)), change.to(first.dtype)


def _flat(pairs: Pairs) -> list[int]:
    return [value for pair in pairs for value in pair]


def _as(like: Tensor, h: Tensor) -> Tensor:
    """`h` in the memory format of `like`: plainly contiguous, or as it comes, channels-last."""
    last = like.is_contiguous(memory_format=torch.channels_last)
    return h if last and not like.is_contiguous() else h.contiguous()


# the derivative


class _Saved:
    """What the operator was called with, its lists of tensors taken out of one flat list."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        states, weights, reverse, biases, evidence, hold, external = inputs[:7]
        self.counts = [len(part) for part in (states, weights, reverse, biases)]
        self.tensors = [*states, *weights, *reverse, *biases, evidence, hold, external]
        (
            self.pools, self.padding, self.activation, self.slope, self.order, self.theta, self.max_steps,
            self.per_sample, self.keep, self.half, self.readouts, self.adjoint_theta, self.adjoint_max_steps,
            self.unconverged,
        ) = inputs[7:]  # fmt: skip

    def take_tensors(self) -> list[Any]:
        """The tensors, no longer held here: a context saves them by its own means."""
        tensors, self.tensors = self.tensors, []
        return tensors

    def parts(self, flat: Sequence[Any]) -> tuple[Any, ...]:
        """(states, weights, reverse weights, biases, evidence, hold, external) of a flat list."""
        parts: list[Any] = []
        at = 0
        for count in self.counts:
            parts.append(list(flat[at : at + count]))
            at += count
        return (*parts, *flat[at : at + 3])

    @property
    def settings(self) -> tuple[Any, ...]:
        return self.pools, self.padding, self.activation, self.slope, self.order


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    states, readouts, trajectory, steps, change = output
    ctx.set_materialize_grads(False)
    saved = _Saved(inputs)
    found = [readouts, trajectory] if saved.keep else [readouts, steps, change, *states]
    ctx.count = len(found)
    ctx.save_for_backward(*found, *saved.take_tensors())
    ctx.saved_call = saved


def _differentiate(
    ctx: Any, grad_states: Any, grad_readouts: Maybe, _path: Any, _steps: Any, _change: Any
) -> tuple[Any, ...]:
    saved: _Saved = ctx.saved_call
    rest: tuple[Any, ...] = (None,) * 14
    grads = list(grad_states) if grad_states is not None else [None] * saved.counts[0]
    if grad_readouts is None and all(g is None for g in grads):
        return (*([None] * n for n in saved.counts), None, None, None, *rest)
    kept = ctx.saved_tensors  # once: a checkpoint computes them again for it
    found, parts = kept[: ctx.count], saved.parts(kept[ctx.count :])
    needs = _needs(ctx, saved)
    if not saved.keep:
        flat = _at_fixed_point(ctx.ops, saved, parts, found, grads, grad_readouts, needs)
    elif torch.is_grad_enabled():
        flat = _twice(ctx.ops, saved, parts, int(found[0].shape[0]), grads, grad_readouts)
    else:
        flat = _through_sweeps(ctx.ops, saved, parts, found, grads, grad_readouts, needs)
    layers, edges, reverse, biases = saved.counts
    by_kind = [flat[:layers], flat[layers : layers + edges], flat[layers + edges : layers + edges + reverse]]
    by_kind.append(flat[layers + edges + reverse : layers + edges + reverse + biases])
    evidence, external = flat[-2:]
    lists = [
        [g if g is not None and g.shape == t.shape else None for g, t in zip(part, given, strict=True)]
        for part, given in zip(by_kind, parts[:4], strict=True)
    ]
    return (
        *lists, evidence if needs[3] else None, None, external if needs[4] else None, *rest,
    )  # fmt: skip


def _needs(ctx: Any, saved: _Saved) -> list[bool]:
    """(states, weights, biases, evidence, external): whether any of them is wanted."""

    def any_of(flag: Any) -> bool:
        return any(flag) if isinstance(flag, (list, tuple)) else bool(flag)

    states, weights, reverse, biases, evidence, _, external = map(any_of, ctx.needs_input_grad[:7])
    return [states, weights or reverse, biases, evidence, external]


def _given(like: Tensor, grads: Sequence[Maybe]) -> list[Tensor]:
    return [like.new_empty(0) if g is None else g for g in grads]


def _through_sweeps(
    ops: Operators, saved: _Saved, parts: tuple[Any, ...], found: Sequence[Tensor], grads: Sequence[Maybe],
    grad_readouts: Maybe, needs: list[bool],
) -> list[Any]:  # fmt: skip
    states, weights, reverse, _, evidence, hold, external = parts
    return list(
        ops.raw("settle_backward")(
            _given(states[0], grads), *_given(states[0], [grad_readouts]), states, weights, reverse, evidence, hold,
            external is not None, *found, *saved.settings, needs,
        )
    )  # fmt: skip


def _at_fixed_point(
    ops: Operators, saved: _Saved, parts: tuple[Any, ...], found: Sequence[Tensor], grads: Sequence[Maybe],
    grad_readouts: Maybe, needs: list[bool],
) -> list[Any]:  # fmt: skip
    if saved.adjoint_max_steps == 0:
        raise RuntimeError("settle: states were not kept for a gradient")
    if torch.is_grad_enabled():
        raise RuntimeError(
            'settle: the gradient of backward="implicit" cannot be differentiated again; use backward="bptt"'
        )
    _, weights, reverse, _, evidence, hold, external = parts
    readouts, steps, change, *fixed = found
    check(saved.unconverged, "settle", change, saved.theta, steps)
    flat, steps, change = ops.raw("settle_adjoint")(
        _given(fixed[0], grads), *_given(fixed[0], [None if grad_readouts is None else grad_readouts[-1]]), fixed,
        weights, reverse, evidence, hold, external is not None, readouts[-1], *saved.settings, saved.adjoint_theta,
        saved.adjoint_max_steps, [False, *needs[1:]],
    )  # fmt: skip
    check(saved.unconverged, "settle, adjoint", change, saved.adjoint_theta, steps)
    return [*([None] * saved.counts[0]), *flat[saved.counts[0] :]]


def _twice(
    ops: Operators,
    saved: _Saved,
    parts: tuple[Any, ...],
    steps: int,
    grads: Sequence[Maybe],
    grad_readouts: Maybe,
) -> list[Any]:
    """The gradient as a function that can be differentiated again: that of the sweeps as a chain of operations."""
    states, weights, reverse, biases, evidence, hold, external = parts
    pools, padding, activation, slope, order = saved.settings
    inputs = [*states, *weights, *reverse, *biases, evidence, external]
    with torch.enable_grad():
        last, seen = unrolled(
            states,
            weights,
            reverse,
            biases,
            evidence,
            hold,
            external,
            pools,
            padding,
            activation,
            slope,
            order,
            steps,
            dispatch.name_of(ops),
        )
    outputs = [(o, g) for o, g in zip((*last, seen), (*grads, grad_readouts), strict=True) if g is not None]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in outputs], wanted, [g for _, g in outputs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


dispatch.registered("settle", _setup, _differentiate)


# torch.compile and torch.export


@fake("settle")
def _(
    states: list[Tensor], weights: list[Tensor], reverse_weights: list[Tensor], biases: list[Tensor],
    evidence: Tensor | None, hold: Tensor | None, external: Tensor | None, pools: list[int], padding: list[int],
    activation: str, slope: float, order: str, theta: float, max_steps: int, per_sample: bool, keep: bool, half: bool,
    readouts: bool, adjoint_theta: float, adjoint_max_steps: int, unconverged: str,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    first = states[0]
    new = [_channels_last(h) for h in states]
    count = (first.shape[0],) if per_sample else ()
    steps, change = first.new_empty(count, dtype=torch.int64), first.new_empty(count)
    sweeps = torch.library.get_ctx().new_dynamic_size() if keep or readouts else 1
    n, c, h, w = first.shape
    seen = first.new_empty((sweeps, n, h, w, c)).permute(0, 1, 4, 2, 3)
    kept = torch.bfloat16 if keep and half else first.dtype
    path = first.new_empty(torch.library.get_ctx().new_dynamic_size() if keep else 0, dtype=kept)
    return new, seen, path, steps, change


def _channels_last(h: Tensor) -> Tensor:
    n, c, height, width = h.shape
    return h.new_empty((n, height, width, c)).permute(0, 3, 1, 2)


def _fake_gradients(
    states: list[Tensor], weights: list[Tensor], reverse: list[Tensor], evidence: Tensor | None, external: bool,
    needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    first = states[0]
    none = first.new_empty(0)
    return [
        *(_channels_last(h) if needs[0] else first.new_empty(0) for h in states),
        *(first.new_empty(w.shape) if needs[1] else first.new_empty(0) for w in (*weights, *reverse)),
        *(first.new_empty(h.shape[1] if needs[2] else 0) for h in states),
        _channels_last(first) if needs[3] and evidence is not None else none,
        _channels_last(first) if needs[4] and external else first.new_empty(0),
    ]


@fake("settle_backward")
def _(
    grad_states: list[Tensor], grad_readouts: Tensor, states: list[Tensor], weights: list[Tensor],
    reverse_weights: list[Tensor], evidence: Tensor | None, hold: Tensor | None, external: bool, readouts: Tensor,
    trajectory: Tensor, pools: list[int], padding: list[int], activation: str, slope: float, order: str,
    needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    return _fake_gradients(states, weights, reverse_weights, evidence, external, needs)


@fake("settle_adjoint")
def _(
    grad_states: list[Tensor], grad_readout: Tensor, states: list[Tensor], weights: list[Tensor],
    reverse_weights: list[Tensor], evidence: Tensor | None, hold: Tensor | None, external: bool, readout: Tensor,
    pools: list[int], padding: list[int], activation: str, slope: float, order: str, theta: float, max_steps: int,
    needs: list[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:  # fmt: skip
    found = _fake_gradients(states, weights, reverse_weights, evidence, external, needs)
    return found, states[0].new_empty((), dtype=torch.int64), states[0].new_empty(())
