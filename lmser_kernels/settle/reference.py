"""Settling in eager PyTorch: the specification in code.

Layers 0 ... L, layer 0 visible; `W_l (C_l, C_{l-1}, kh, kw)` between layers l-1 and l, stride 1, used in both
directions (004 Eq. 4). The drives of layer l are

    y_l = conv(avg_pool(h_{l-1}), W_l)              from below, none for layer 0
    u_l = up(convᵀ(h_{l+1}, W_{l+1}))               from above, none for layer L

where `up` repeats each value over the window that `avg_pool` averages, and its update is

    h_l = f(y_l + u_l + b_l)

Every drive is computed anew at every update, as the paper has it; the compiled operator computes each once per
sweep, which changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, pair
from lmser_kernels.settle.converged import check
from lmser_kernels.settle.problem import Adjoint, Problem, Run, checked
from lmser_kernels.settle.result import Settled
from lmser_kernels.settle.schedule import sweep_order


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
) -> tuple[Tensor, Tensor]:
    """`h = f(y + u + bias)`, `evidence` where `mask`; `change = max|h - previous|`, inf without `previous`."""
    total = _drive(
        below, above, weight_below, weight_above,
        padding=padding, padding_above=padding if padding_above is None else padding_above,
        pool=pool, upsample=upsample,
    )  # fmt: skip
    if bias is not None:
        total = total + bias.view(1, -1, 1, 1)
    h = activations.apply(total, activation, slope)
    if evidence is not None:
        h = evidence if mask is None else torch.where(mask.to(torch.bool), evidence, h)
    if previous is None:
        return h, h.new_full((), torch.inf)
    return h, largest_change([h], [previous])


def _drive(
    below: Tensor | None,
    above: Tensor | None,
    weight_below: Tensor | None,
    weight_above: Tensor | None,
    *,
    padding: Pair,
    padding_above: Pair,
    pool: Pair,
    upsample: Pair,
) -> Tensor:
    """`y + u`, or the one of them that is there."""
    parts = []
    if below is not None and weight_below is not None:
        window = pair("pool", pool, 1)
        pooled = below if window == (1, 1) else F.avg_pool2d(below, window)
        parts.append(F.conv2d(pooled, weight_below, None, 1, pair("padding", padding, 0)))
    if above is not None and weight_above is not None:
        u = F.conv_transpose2d(above, weight_above, None, 1, pair("padding_above", padding_above, 0))
        times = pair("upsample", upsample, 1)
        parts.append(u if times == (1, 1) else F.interpolate(u, scale_factor=times))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def largest_change(states: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """`max |h - h_before|` over all layers, 0-d, NaN where anything is; not differentiable."""
    changes = [
        (h.detach() - b.detach()).abs().amax() if h.numel() else h.new_zeros(())
        for h, b in zip(states, before, strict=True)
    ]
    return torch.stack(changes).amax()


def solve(problem: Problem, run: Run, adjoint: Adjoint | None) -> Settled:
    """Sweeps until no state changes by `theta` or more, `max_steps` at most; see `lmser_kernels.settle`.

    `adjoint` asks for the gradient of the fixed point, None for that of the sweeps.
    """
    if adjoint is None:
        return _sweeps(problem, run)
    with torch.no_grad():
        found = _sweeps(problem, run)
    if not problem.requires_grad():
        return found._replace(readouts=None if found.readouts is None else found.readouts[-1:])
    return _implicit(problem, run, adjoint, found)


def update(problem: Problem, run: Run, h: Sequence[Tensor], layer: int) -> Tensor:
    """What `layer` would take from its neighbours; for the visible layer, before evidence is put in."""
    top = len(problem.weights)
    down = problem.reverse_weights or problem.weights
    total = _drive(
        h[layer - 1] if layer > 0 else None,
        h[layer + 1] if layer < top else None,
        problem.weights[layer - 1] if layer > 0 else None,
        down[layer] if layer < top else None,
        padding=problem.padding[layer - 1] if layer > 0 else 0,
        padding_above=problem.padding[layer] if layer < top else 0,
        pool=problem.pools[layer - 1] if layer > 0 else 1,
        upsample=problem.pools[layer] if layer < top else 1,
    )
    bias = problem.biases[layer]
    if bias is not None:
        total = total + bias.view(1, -1, 1, 1)
    if layer == 0 and problem.external is not None:
        total = total + problem.external
    return activations.apply(
        total, run.activation, run.slope if run.activation in activations.DEFAULT_SLOPES else None
    )


def clamped(problem: Problem, run: Run, value: Tensor) -> Tensor:
    """The visible state: evidence, or a share `strength` of it, where a unit is observed."""
    evidence, mask, strength = problem.evidence, problem.mask, run.strength
    if evidence is None:
        return value
    held = evidence if strength == 1 else strength * evidence + (1 - strength) * value
    return held if mask is None else torch.where(mask, held, value)


def _sweeps(problem: Problem, run: Run) -> Settled:
    h = list(problem.states)
    h[0] = clamped(problem, run, h[0])
    samples = h[0].shape[0]
    order = sweep_order(len(h), run.order)
    seen: list[Tensor] = []
    active = torch.ones(samples if run.per_sample else (), dtype=torch.bool, device=h[0].device)
    steps = torch.zeros(active.shape, dtype=torch.int64, device=h[0].device)
    change = h[0].new_full(active.shape, torch.inf)
    for _ in range(run.max_steps):
        before = list(h)
        for layer in order:
            value = update(problem, run, h, layer)
            if layer == 0:
                readout = value
                value = clamped(problem, run, value)
            h[layer] = value
        if run.per_sample:
            now = _change_per_sample(h, before)
            rows = active.view(-1, 1, 1, 1)
            h = [torch.where(rows, new, old) for new, old in zip(h, before, strict=True)]
            change = torch.where(active, now, change)
            readout = torch.where(rows, readout, seen[-1]) if seen else readout
        else:
            change = largest_change(h, before)
        steps = steps + active
        seen = [*seen, readout] if run.readouts else [readout]
        active = active & ~(change < run.theta)
        if not bool(active.any()):
            break
    return Settled(tuple(h), torch.stack(seen) if run.readouts else None, steps, change)


def _change_per_sample(states: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    changes = [
        (h.detach() - b.detach()).abs().flatten(1).amax(1) if h[:1].numel() else h.new_zeros(h.shape[0])
        for h, b in zip(states, before, strict=True)
    ]
    return torch.stack(changes).amax(0)


def _implicit(problem: Problem, run: Run, adjoint: Adjoint, found: Settled) -> Settled:
    """The fixed point with its gradient: one update of every layer from the found states, whose cotangents are
    first carried to the solution `a` of `a = g + (dF/dh)ᵀ a` (Almeida, Pineda)."""
    check(adjoint.unconverged, "settle", found.change, run.theta, found.steps)
    with torch.enable_grad():
        fixed = [h.detach().requires_grad_() for h in found.states]
        readout = update(problem, run, fixed, 0)
        after = [
            clamped(problem, run, readout),
            *(update(problem, run, fixed, i) for i in range(1, len(fixed))),
        ]
        states = _Carry.apply(fixed, after, adjoint, *after)
        # the readout is taken from states that carry the gradient on
        held = [h.detach() + (s - s.detach()) for h, s in zip(fixed, states, strict=True)]
        shown = update(problem, run, held, 0)
    readouts = shown[None] if run.readouts else None
    return Settled(tuple(held), readouts, found.steps, found.change)


class _Carry(torch.autograd.Function):
    """The identity on `after`, whose backward solves for the adjoint."""

    @staticmethod
    def forward(ctx: Any, fixed: list[Tensor], after: list[Tensor], adjoint: Adjoint, *same: Tensor) -> Any:
        ctx.fixed, ctx.after, ctx.adjoint = fixed, after, adjoint
        return tuple(t.view_as(t) for t in same)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a = list(grads)
        change, theta = grads[0].new_full((), torch.inf), ctx.adjoint.theta
        steps = 0
        while steps < ctx.adjoint.max_steps and not bool(change < theta):
            back = torch.autograd.grad(ctx.after, ctx.fixed, a, retain_graph=True, allow_unused=True)
            new = [g if b is None else g + b for g, b in zip(grads, back, strict=True)]
            largest = torch.stack([x.abs().amax() if x.numel() else x.new_zeros(()) for x in new]).amax()
            change = largest_change(new, a) / largest.clamp_min(torch.finfo(largest.dtype).tiny)
            a, steps = new, steps + 1
        check(ctx.adjoint.unconverged, "settle, adjoint", change, theta, torch.tensor(steps))
        return None, None, None, *a


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
    adjoint_theta: float = 1e-6,
    adjoint_max_steps: int = 1000,
    unconverged: str = "warn",
) -> Settled:
    """`lmser_kernels.settle` by `solve`."""
    problem = checked(states, weights, biases, reverse_weights, evidence, mask, external, pools, padding)
    leak = activations.check(activation, slope)
    run = Run(strength, activation, leak, order, theta, max_steps, readouts, per_sample)
    adjoint = None if backward == "bptt" else Adjoint(adjoint_theta, adjoint_max_steps, unconverged)
    return solve(problem, run, adjoint)
