"""The backward passes of settling for CUDA tensors: one launch for the chain of updates where the network allows it.

The kernels are those of csrc/cuda/settle.cu and settle_back.cu. They return the gradients of the drives of all sweeps,
or the adjoint of a fixed point; the gradients of the weights are products of these with the states, of which all sweeps
and samples are one sum. Any other network takes Triton's kernels, update by update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmser_kernels.settle import persistent
from lmser_kernels.settle.schedule import sweep_order

Maybe = Tensor | None


def settle_adjoint(
    grad_states: list[Tensor], grad_readout: Tensor, states: list[Tensor], weights: list[Tensor],
    reverse_weights: list[Tensor], evidence: Maybe, hold: Maybe, external: bool, readout: Tensor, pools: list[int],
    padding: list[int], activation: str, slope: float, order: str, theta: float, max_steps: int, needs: list[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:  # fmt: skip
    """The operator's CUDA implementation: chooses by sizes."""
    # Its threshold is relative to the largest value of all samples: they stop together.
    if persistent.obstacle(states, weights, order, math.inf, False) is not None:
        return torch.ops.lmser_triton.settle_adjoint(
            grad_states, grad_readout, states, weights, reverse_weights, evidence, hold, external, readout, pools,
            padding, activation, slope, order, theta, max_steps, needs,
        )  # fmt: skip
    a, drive, steps, change = torch.ops.lmser.settle_adjoint_persistent(
        grad_states, grad_readout, states, weights, reverse_weights, hold, readout, activation, slope, order, theta,
        max_steps,
    )  # fmt: skip
    none = states[0].new_empty(0)
    found: list[Tensor] = [none for _ in states]
    edges = range(len(weights))
    if needs[1]:
        up = [[Product(states[e], a[e + 1])] for e in edges]
        down = [[Product(a[e], states[e + 1])] for e in edges]
        found += _weight_grads(up, down, tied=not reverse_weights)
    else:
        found += [none for _ in (*weights, *reverse_weights)]
    found += [x.sum((0, 2, 3)) if needs[2] else none for x in a]
    taken = none
    if needs[3] and evidence is not None and hold is not None:
        reaching = drive + grad_states[0] if grad_states[0].numel() else drive
        taken = _channels_last(torch.where(hold == 0, torch.zeros_like(hold), hold * reaching))
    return [*found, taken, a[0] if needs[4] and external else none], steps, change


def settle_backward(
    grad_states: list[Tensor], grad_readouts: Tensor, states: list[Tensor], weights: list[Tensor],
    reverse_weights: list[Tensor], evidence: Maybe, hold: Maybe, external: bool, readouts: Tensor, trajectory: Tensor,
    pools: list[int], padding: list[int], activation: str, slope: float, order: str, needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    """The operator's CUDA implementation: chooses by sizes."""
    if persistent.obstacle(states, weights, order, 0.0, False, back=True) is not None:
        return torch.ops.lmser_triton.settle_backward(
            grad_states, grad_readouts, states, weights, reverse_weights, evidence, hold, external, readouts, trajectory,
            pools, padding, activation, slope, order, needs,
        )  # fmt: skip
    start, up, down, visible, taken = torch.ops.lmser.settle_backward_persistent(
        grad_states, grad_readouts, states, weights, reverse_weights, evidence, hold, readouts, trajectory, activation,
        slope, order, needs[0], needs[3],
    )  # fmt: skip
    none = states[0].new_empty(0)
    found: list[Tensor] = list(start) if needs[0] else [none for _ in states]
    if needs[1]:
        seen = _Seen(states, visible, trajectory, order)
        edges = range(len(weights))
        from_below = [seen.from_below(e + 1, up[e + 1]) for e in edges]
        from_above = [seen.from_above(e, down[e]) for e in edges]
        found += _weight_grads(from_below, from_above, tied=not reverse_weights)
    else:
        found += [none for _ in (*weights, *reverse_weights)]
    found += [(up[i] if i else down[0]).sum((0, 1)) if needs[2] else none for i in range(len(states))]
    found.append(taken if needs[3] and evidence is not None else none)
    found.append(_channels_last(down[0].sum(0)[:, :, None, None]) if needs[4] and external else none)
    return found


def _channels_last(h: Tensor) -> Tensor:
    return h.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


# the gradients of the weights


@dataclass(frozen=True)
class Product:
    """A summand of a weight's gradient, `Σ above ⊗ below` over images and places; both `(N, C, T, 1)`."""

    below: Tensor
    above: Tensor


def _weight_grads(
    up: Sequence[Sequence[Product]], down: Sequence[Sequence[Product]], *, tied: bool
) -> list[Tensor]:
    """Of every edge; then, where the directions are free, of every reverse one."""
    if tied:
        return [_summed(both) for both in zip(up, down, strict=True)]
    return [_summed((one,)) for one in (*up, *down)]


def _summed(directions: Sequence[Sequence[Product]]) -> Tensor:
    first, *others = [part for parts in directions for part in parts]
    total = None
    # Two summands of one size are one sum: the two uses of a tied weight.
    if others and first.below.shape == others[0].below.shape:
        total, others = _one(first, others[0]), others[1:]
    else:
        total = _one(first)
    for part in others:
        total = total + _one(part)
    return total


def _one(part: Product, other: Product | None = None) -> Tensor:
    grad_u, z = (None, None) if other is None else (other.below, other.above)
    found: Tensor = torch.ops.lmser.tied_conv2d_weight_grad(
        part.below, part.above, grad_u, z, [1, 1], [1, 1], [0, 0]
    )
    return found


class _Seen:
    """The states that the updates of a solve saw, as views of what was kept of it."""

    def __init__(self, states: Sequence[Tensor], visible: Tensor, trajectory: Tensor, order: str) -> None:
        self._states, self._visible, self._order = states, visible, order
        self._trajectory = trajectory if trajectory.dtype == visible.dtype else trajectory.to(visible.dtype)
        self._at: dict[int, list[int]] = {}
        self._sweep = 0
        for layer in sweep_order(len(states), order):
            if layer > 0:
                self._at.setdefault(layer, []).append(self._sweep)
                self._sweep += states[layer].shape[0] * states[layer].shape[1]

    def from_below(self, layer: int, grads: Tensor) -> list[Product]:
        """`grads (T, N, C)` of the drive from below that each sweep used, with the state it was computed from."""
        lower = layer - 1
        if lower == 0:
            return [Product(_image(self._visible), _image(grads))]
        if self._order == "up_down" or layer % 2 == 0:  # it was updated before, in the same sweep
            return [Product(self._kept(lower, 0), _image(grads))]
        return [
            *([Product(self._kept(lower, -1)[:, :, :-1], _image(grads[1:]))] if len(grads) > 1 else []),
            Product(self._states[lower], _image(grads[:1])),
        ]

    def from_above(self, layer: int, grads: Tensor) -> list[Product]:
        """`grads (T + 1, N, C)` of the drive from the layer above as it was after 0 ... T sweeps."""
        found = [Product(_image(grads[1:]), self._kept(layer + 1, -1))]
        # Where the layer above is always updated first, nobody saw what it began with.
        unseen = layer == 0 or (self._order == "odd_even" and layer % 2 == 0)
        return found if unseen else [*found, Product(_image(grads[:1]), self._states[layer + 1])]

    def _kept(self, layer: int, update: int) -> Tensor:
        n, c = self._states[layer].shape[:2]
        sweeps, at = self._visible.shape[0], self._at[layer][update]
        whole = self._trajectory
        view = whole.as_strided((sweeps, n, c), (self._sweep, c, 1), whole.storage_offset() + at)
        return _image(view)


def _image(values: Tensor) -> Tensor:
    """`(T, N, C)` as `(N, C, T, 1)`."""
    return values.permute(1, 2, 0)[..., None]
