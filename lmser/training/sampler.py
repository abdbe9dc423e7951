"""Which samples a step sees: a pure function of (seed, step), so that resuming needs no sampler state."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose; those of different purposes or seeds are unrelated."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def steps_per_epoch(samples: int, batch_size: int, drop_last: bool = False) -> int:
    """Steps in which an epoch visits `samples` samples; ValueError where that is none."""
    steps = samples // batch_size if drop_last else -(-samples // batch_size)
    if steps < 1:
        raise ValueError(f"data: {samples} samples do not make one batch of {batch_size}")
    return steps


class Sampler:
    """Every epoch visits each sample once, in an order drawn from (seed, epoch).

    The last batch of an epoch is shorter where `batch_size` does not divide `samples`, or left out with
    `drop_last`. The indices of the current epoch are kept on `device`.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        *,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(samples, batch_size, drop_last)
        self._samples, self._batch_size, self._seed, self._device = samples, batch_size, seed, device
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64, device="cpu")

    def indices(self, step: int) -> Tensor:
        """Int64 indices of the samples of a step, the first step being 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, f"epoch {epoch}"))
            order = torch.randperm(self._samples, generator=generator, device="cpu")
            self._order = order.to(self._device)
            self._epoch = epoch
        return self._order[batch * self._batch_size : (batch + 1) * self._batch_size]
