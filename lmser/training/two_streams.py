"""Labelled and unlabelled samples in one loader: each batch has its share of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lmser.training.sampler import Sampler, derived_seed

__all__ = ["TwoStreamSampler"]


class TwoStreamSampler:
    """Batches of `labelled` samples that have a label and `batch_size - labelled` of all.

        sampler = TwoStreamSampler(labels, batch_size=100, labelled=50, seed=0)
        train(model, loss, (images, labels), config, sampler=sampler)
        DataLoader(dataset, batch_sampler=sampler)                     # or torch's own loader

    labels:    int64 `(N,)`, less than 0 where there is none
    labelled:  how many of a batch are drawn from the labelled ones, which are gone through in an order of their own,
               again and again; 0 for none
    seed:      of both orders

    The others come from all N samples, once each in an epoch, with their labels hidden or not as `labels` has them.
    Within a batch the order is shuffled, so that processes that share a batch see some of both. Every pass over the
    sampler, as torch's loader makes them, is the next epoch.

    Raises TypeError or ValueError naming the argument.
    """

    def __init__(self, labels: Tensor, batch_size: int, labelled: int, seed: int) -> None:
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels: expected a tensor, got {type(labels).__name__}")
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise ValueError(
                f"labels: expected int64 of shape (N,), got {labels.dtype} {tuple(labels.shape)}"
            )
        known = (labels >= 0).nonzero().squeeze(1).cpu()
        if isinstance(labelled, bool) or not isinstance(labelled, int) or not 0 <= labelled <= len(known):
            raise ValueError(
                f"labelled: expected at most as many as there are labels, {len(known)}, got {labelled!r}"
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not labelled < batch_size:
            raise ValueError(f"batch_size: expected more than labelled ({labelled}), got {batch_size!r}")
        self.batch_size, self.labelled, self.seed = batch_size, labelled, seed
        self._known, self._passes = known, 0
        self._few = (
            Sampler(len(known), labelled, derived_seed(seed, "labelled"), drop_last=True)
            if labelled
            else None
        )
        self._all = Sampler(len(labels), batch_size - labelled, seed, drop_last=True)

    def described(self) -> dict[str, Any]:
        """What of it decides a run's numbers, as plain values."""
        return {
            "sampler": "two streams",
            "batch_size": self.batch_size,
            "labelled": self.labelled,
            "seed": self.seed,
        }

    def indices(self, step: int) -> Tensor:
        """Int64 indices of the samples of a step, the first step being 0."""
        found = self._all.indices(step).cpu()
        if self._few is not None:
            found = torch.cat([self._known[self._few.indices(step).cpu()], found])
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"batch {step}"))
        return found[torch.randperm(len(found), generator=generator, device="cpu")]

    def __len__(self) -> int:
        return self._all.steps_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        first = self._passes * len(self)
        self._passes += 1
        for step in range(first, first + len(self)):
            yield self.indices(step).tolist()
