"""Losses on the unclamped visible value of every sweep, and their mixture over time (004 Sects. 3.2, 3.3).

`ṽ(t)`, the readout of sweep t = 1 ... T, is what the visible units would take were none of them clamped; `y` is
the target. The loss of one sample at one step is a sum over all visible units, observed or not,

    se            Σ_i (ṽ_i - y_i)²
    delta_e       Σ_i f⁻¹(ṽ_i)(ṽ_i - y_i) + ρ(y_i) - ρ(ṽ_i)  =  E(y, h) - E(ṽ, h) >= 0
    delta_e_plus  ln(1 + exp(delta_e))

and the loss of a batch is its mean over steps and samples, or with a power p the mean over samples of the p-th power
of their means over steps: 004 has p = 1, a larger p counts the samples more that are far from right. TD(λ) puts in the
place of `y` at step t the λ-return

    G_t = (1 - λ) Σ_{k=1}^{T-t} λ^{k-1} ṽ(t + k) + λ^{T-t} y,        G_T = y

through which no gradient goes. λ = 1 is `y` at every step, λ = 0 the visible value of the next step. ``td="last"``
takes the last step alone (CBAN-noTD).

Near the ends of its range the inverse of tanh grows without bound: readouts that were rounded onto ±1 count
as the nearest number inside (see `barrier.inside`), so that losses stay finite. They pass on no gradient, as
tanh itself passes none there. Targets may be ±1, where ρ is finite, though no finite weights reach them: 004
scales its images to ±0.999.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser.models.barrier import barrier, check_invertible, inside, inverse

KINDS = ("se", "delta_e", "delta_e_plus")


def delta_e(readout: Tensor, target: Tensor, activation: str = "tanh", slope: float | None = None) -> Tensor:
    """`E(y, h) - E(ṽ, h)` of each sample, ``(N,)``, of readouts and targets ``(N, ...)`` (004 Appendix B.1).

    Half precision is computed in float32. Raises ValueError where the shapes differ, for an activation without
    an inverse, and for targets outside of its range.
    """
    if readout.shape != target.shape:
        raise ValueError(
            f"target: expected the readout's shape {tuple(readout.shape)}, got {tuple(target.shape)}"
        )
    check_target(target, activation, slope)
    return _sample_loss(_wide(readout)[None], _wide(target)[None], "delta_e", activation, slope)[0]


def attractor_loss(
    readouts: Tensor,
    target: Tensor,
    *,
    kind: str = "se",
    td: float | str = 1.0,
    power: float = 1.0,
    activation: str = "tanh",
    slope: float | None = None,
) -> Tensor:
    """The loss of a batch (see the module), a 0-d tensor, in float32 for half precision.

    readouts:   unclamped visible values ``(T, N, ...)`` of a settle with ``readouts=True``
    target:     `y`, ``(N, ...)``
    kind:       ``"se"``, ``"delta_e"`` or ``"delta_e_plus"``
    td:         λ between 0 and 1, or ``"last"``
    power:      p, at least 1
    activation: of the network, for the two energy losses; `slope` its leak

    Raises ValueError naming the argument that does not fit.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    rate = check_td(td)
    if isinstance(power, bool) or not isinstance(power, (int, float)) or not 1 <= power < math.inf:
        raise ValueError(f"power: expected a finite number of at least 1, got {power!r}")
    if readouts.dim() < 2 or readouts.shape[1:] != target.shape:
        raise ValueError(
            f"target: expected the shape of a readout, {tuple(readouts.shape[1:])}, got {tuple(target.shape)}"
        )
    if kind != "se":
        check_target(target, activation, slope)
    readouts, target = _wide(readouts), _wide(target)
    if rate is None:
        readouts, rate = readouts[-1:], 1.0
    targets = target[None] if rate == 1 else returns(readouts.detach(), target, rate)
    found = _sample_loss(readouts, targets, kind, activation, slope)
    return found.mean() if power == 1 else found.mean(0).pow(power).mean()


def returns(readouts: Tensor, target: Tensor, rate: float) -> Tensor:
    """The λ-returns `G_1 ... G_T`, ``(T, N, ...)``, by `G_t = (1 - λ) ṽ(t + 1) + λ G_{t+1}` from `G_T = y`."""
    found = [target]
    for following in reversed(readouts[1:].unbind()):
        found.append((1 - rate) * following + rate * found[-1])
    return torch.stack(found[::-1])


def check_td(td: float | str) -> float | None:
    """λ, or None for ``"last"``; ValueError for anything else."""
    if td == "last":
        return None
    if isinstance(td, (bool, str)) or not isinstance(td, (int, float)) or not 0 <= td <= 1:
        raise ValueError(f"td: expected a number between 0 and 1 or 'last', got {td!r}")
    return float(td)


def check_target(target: Tensor, activation: str, slope: float | None) -> None:
    """ValueError for targets that the activation cannot come near, where the energy is infinite.

    On a GPU targets are not looked at, as the host would wait for everything before them: there the loss is infinite.
    """
    check_invertible(activation, slope)
    low = {"tanh": -1.0, "sigmoid": 0.0}.get(activation)
    if low is not None and target.is_cpu and bool(((target < low) | (target > 1)).any()):
        raise ValueError(
            f"target: expected values between {low:g} and 1, the range of {activation}, got "
            f"{float(target.min()):g} to {float(target.max()):g}"
        )


def _sample_loss(
    readouts: Tensor, targets: Tensor, kind: str, activation: str, slope: float | None
) -> Tensor:
    """``(T, N)``: the loss of each sample at each step; `targets` may have one step for all."""
    if kind == "se":
        return (readouts - targets).square().flatten(2).sum(2)
    v = inside(readouts, activation)
    energy = inverse(v, activation, slope) * (v - targets) + (
        barrier(targets, activation, slope) - barrier(v, activation, slope)
    )
    difference = energy.flatten(2).sum(2)
    return difference if kind == "delta_e" else F.softplus(difference)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
