"""Attractor networks to test: shapes, random states, the energy along a settle."""

from __future__ import annotations

import torch
from torch import Tensor

from lmser import CBAN, FBAN
from lmser.models.attractor import AttractorNetwork

DOUBLE = {"dtype": torch.float64}
SHAPES = {
    "FBAN": (lambda **k: FBAN((12, 9, 7, 5), **k), (4, 12)),
    "one hidden layer": (lambda **k: FBAN((12, 9), **k), (4, 12)),
    "CBAN": (lambda **k: CBAN((2, 5, 6), pools=(1, 1), **k), (3, 2, 5, 7)),
    "pooled CBAN": (lambda **k: CBAN((2, 5, 6, 4), pools=(1, 2, 2), **k), (3, 2, 8, 12)),
    "pooled at once": (lambda **k: CBAN((2, 5, 6), pools=((2, 3), (2, 1)), kernel_size=5, **k), (3, 2, 8, 6)),
}


def made(shape: str, **settings) -> tuple[AttractorNetwork, Tensor, Tensor]:
    """A network of large weights, evidence, and a mask of it."""
    make, size = SHAPES[shape]
    network = make(**{"init": 0.4, **DOUBLE, **settings})
    for bias in network.biases:
        torch.nn.init.normal_(bias, 0.0, 0.3)
    y = torch.rand(size, dtype=network.biases[0].dtype) * 1.9 - 0.95
    return network, y, torch.rand(size) < 0.4


def random_states(network: AttractorNetwork, y: Tensor) -> list[Tensor]:
    found = network.complete(y, max_steps=1)
    return [torch.rand_like(h) * 1.8 - 0.9 for h in found.states]


def energies(network: AttractorNetwork, y: Tensor, mask: Tensor, sweeps: int, energy=None) -> Tensor:
    """The energy after 0, 1, ... sweeps from random states, ``(sweeps + 1, N)``."""
    energy = energy or network.energy
    states = random_states(network, y)
    states[0] = torch.where(mask, y, states[0])
    with torch.no_grad():
        found = [energy(states)]
        for _ in range(sweeps):
            states = network.complete(y, mask, states=states, theta=0.0, max_steps=1).states
            found.append(energy(states))
    return torch.stack(found)
