"""Settling on a GPU: `settle` and the loops it competes with, all of which make every sweep.

The loops are those of `bench.settle_peers` without the test of convergence: a GPU would wait for it, and could not
capture it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from bench.gpu_entrants import Place, Step
from lmser.benchmarks.settle_peers import Drives, Net, cached_updates, paper_updates
from lmser.benchmarks.settling import call, fused

LOOPS: dict[str, Callable[..., tuple[list[Tensor], Drives, Tensor]]] = {
    "cached loop": cached_updates,
    "paper's loop": paper_updates,
}


@dataclass(frozen=True)
class Spec:
    """A network to settle: channels of its layers, the visible size, the windows on its edges."""

    batch: int
    channels: tuple[int, ...]
    size: int
    pools: tuple[int, ...]
    kernel: int
    sweeps: int


def network(spec: Spec, place: Place, last: bool) -> Net:
    """Random weights that keep the states in tanh's range; evidence on six units of ten."""
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format

    def put(tensor: Tensor) -> Tensor:
        moved = tensor.to(place.device, place.dtype if tensor.is_floating_point() else tensor.dtype)
        return moved.contiguous(memory_format=layout) if moved.dim() == 4 else moved

    states, here = [], spec.size
    for layer, width in enumerate(spec.channels):
        here = here // spec.pools[layer - 1] if layer else here
        states.append(torch.zeros(spec.batch, width, here, here))
    weights = [
        torch.randn(above, below, spec.kernel, spec.kernel)
        * (0.5 / (max(below, above) * spec.kernel * spec.kernel) ** 0.5)
        for below, above in pairwise(spec.channels)
    ]
    biases = [torch.randn(width) * 0.1 for width in spec.channels]
    evidence = torch.rand(states[0].shape) * 1.6 - 0.8
    mask = torch.rand(states[0].shape) < 0.6
    return Net(
        [put(t) for t in states],
        [put(t) for t in weights],
        [put(t) for t in biases],
        put(evidence),
        put(mask),
        spec.pools,
        0.0,
        spec.sweeps,
    )


def every_sweep(
    training: bool, sweep: Callable[..., tuple[list[Tensor], Drives, Tensor]], net: Net
) -> tuple[list[Tensor], Tensor]:
    """(last states, readouts of all sweeps, which inference does not keep)."""
    h = [torch.where(net.mask, net.evidence, net.states[0]), *net.states[1:]]
    above: Drives = [None] * len(h)
    seen = []
    for _ in range(net.max_steps):
        h, above, readout = sweep(net, h, above)
        if training:
            seen.append(readout)
    return h, torch.stack(seen) if training else net.evidence


def _one_shape(
    sweep: Callable[..., tuple[list[Tensor], Drives, Tensor]],
) -> Callable[..., tuple[list[Tensor], Drives, Tensor]]:
    """The first sweep is made as it is: it has no drives from above, and would be compiled as another graph."""

    def made(net: Net, h: list[Tensor], above: Drives) -> tuple[list[Tensor], Drives, Tensor]:
        first = all(drive is None for drive in above)
        return (cached_updates if first else sweep)(net, h, above)

    return made


def step(spec: Spec, training: bool, title: str, last: bool, mode: str | None, place: Place) -> Step:
    """One solve, or one training step: the squared error of all readouts and its gradient through all sweeps."""
    net = network(spec, place, last)
    if title == "fused":
        return call(partial(_fused, training), net, training)
    sweep = LOOPS[title]
    if mode is not None:
        sweep = _one_shape(torch.compile(sweep, mode=mode))
    return call(partial(every_sweep, training, sweep), net, training)


def _fused(training: bool, net: Net) -> tuple[list[Tensor], Tensor]:
    if training:
        return fused(net)
    from lmser_kernels import settle

    found = settle(
        net.states, net.weights, net.biases, evidence=net.evidence, mask=net.mask, pools=net.pools, theta=net.theta,
        max_steps=net.max_steps, unconverged="ignore",
    )  # fmt: skip
    return list(found.states), net.evidence
