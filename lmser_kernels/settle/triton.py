"""The settling operators, launched: `settle`, and its two gradients, in Triton."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lmser_kernels.settle.triton_adjoint import Adjoint
from lmser_kernels.settle.triton_backward import Backward, Forward
from lmser_kernels.settle.triton_gradients import Wanted, WeightSums
from lmser_kernels.settle.triton_network import Network
from lmser_kernels.settle.triton_solve import Held, How, Solve

Maybe = Tensor | None
Ints = Sequence[int]


def settle(
    states: list[Tensor],
    weights: list[Tensor],
    reverse_weights: list[Tensor],
    biases: list[Tensor],
    evidence: Maybe,
    hold: Maybe,
    external: Maybe,
    pools: Ints,
    padding: Ints,
    activation: str,
    slope: float,
    order: str,
    theta: float,
    max_steps: int,
    per_sample: bool,
    keep: bool,
    half: bool,
    readouts: bool,
    adjoint_theta: float,
    adjoint_max_steps: int,
    unconverged: str,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
    """The states after the sweeps, the readouts, the trajectory, the number of sweeps and the last change.

    The host waits for the device only for what the number of sweeps gives a size: the readouts of every sweep and the
    trajectory, with a threshold. While a CUDA graph is captured that is an error.
    """
    network = Network(states, weights, reverse_weights, pools, padding)
    how = How(activation, slope, order, theta, max_steps, per_sample, keep, half, readouts)
    solve = Solve(network, states, biases, Held(evidence, hold), external, how)
    return solve.results(solve.run())


def settle_backward(
    grad_states: list[Tensor],
    grad_readouts: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    reverse_weights: list[Tensor],
    evidence: Maybe,
    hold: Maybe,
    external: bool,
    readouts: Tensor,
    trajectory: Tensor,
    pools: Ints,
    padding: Ints,
    activation: str,
    slope: float,
    order: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """The gradients of states, weights, reverse weights, biases, evidence and external through the sweeps made."""
    want = Wanted(*needs)
    network = Network(states, weights, reverse_weights, pools, padding, adjoint=True)
    forward = Forward(states, Held(evidence, hold), external, readouts, trajectory, order)
    sums = WeightSums(weights, padding, not reverse_weights, want.weights)
    return Backward(network, forward, grad_states, grad_readouts, want, sums, activation, slope).run()


def settle_adjoint(
    grad_states: list[Tensor],
    grad_readout: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    reverse_weights: list[Tensor],
    evidence: Maybe,
    hold: Maybe,
    external: bool,
    readout: Tensor,
    pools: Ints,
    padding: Ints,
    activation: str,
    slope: float,
    order: str,
    theta: float,
    max_steps: int,
    needs: Sequence[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The gradients at a fixed point, the sweeps that its adjoint took, and their last change."""
    want = Wanted(*needs)
    network = Network(states, weights, reverse_weights, pools, padding, adjoint=True)
    adjoint = Adjoint(
        network, states, readout, grad_states, grad_readout, Held(evidence, hold), activation, slope, order, theta,
        max_steps,
    )  # fmt: skip
    steps, change = adjoint.run()
    sums = WeightSums(weights, padding, not reverse_weights, want.weights)
    return adjoint.gradients(want, external, sums), steps, change
