"""The global generators a model or a loss may draw from, held together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lmser.training.sampler import derived_seed


def generator_states(device: torch.device) -> dict[str, Any]:
    """States of torch's, numpy's and python's generators, in types that ``weights_only`` loading admits."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (
            str(name),
            torch.from_numpy(np.array(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: dict[str, Any], device: torch.device) -> None:
    """Put back what `generator_states` returned."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_generators(seed: int, device: torch.device, purpose: str) -> None:
    """Seed all of them from one number; those seeded for different purposes are unrelated."""
    drawn = derived_seed(seed, purpose)
    torch.default_generator.manual_seed(drawn)
    random.seed(drawn)
    np.random.seed(drawn % 2**32)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(drawn)


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Whatever the block draws or seeds, the generators are afterwards as they were before."""
    before = generator_states(device)
    try:
        yield
    finally:
        set_generator_states(before, device)
