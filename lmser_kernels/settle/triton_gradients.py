"""What both backward passes of settling share: the launch of a step back, and the sums that weight gradients are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmser_kernels.gpu.launch import launch
from lmser_kernels.settle.triton_network import Network, Source, Tiling, tiling
from lmser_kernels.settle.triton_pull import pull_kernel
from lmser_kernels.tied_conv.triton_weight_grad import weight_grad

Maybe = Tensor | None

# Pairs are collected until they hold this much, and then summed at once: of fully connected networks those of all
# sweeps, of large images those of one.
_BYTES = 64 << 20


@dataclass(frozen=True)
class Wanted:
    """Whose gradients are asked for."""

    states: bool
    weights: bool
    biases: bool
    evidence: bool
    external: bool


class Puller:
    """Launches `pull_kernel` over a network whose edges are the adjoint's."""

    def __init__(self, network: Network, activation: str, slope: float) -> None:
        self.network, self.activation, self.slope = network, activation, slope

    def tiling(self, index: int) -> Tiling:
        """One for all that a layer is asked: sums over its tiles go on from launch to launch."""
        network = self.network
        return tiling(
            "settle_pull", network.layers[index], network.below(index), network.above(index), network.like
        )

    def pull(
        self, index: int, *, below: Maybe = None, above: Maybe = None, output: Maybe = None,
        total: Maybe = None, pool_total: bool = False, **others: Maybe,
    ) -> None:  # fmt: skip
        """Every tensor dense, those left out None; `below` summed over windows. Without `output`, f' is not applied."""
        from_below = self.network.below(index) if below is not None else None
        from_above = self.network.above(index) if above is not None else None
        given: dict[str, Maybe] = dict.fromkeys(_OPTIONAL)
        given.update(others)
        cut = self.tiling(index)
        launch(
            pull_kernel, (cut.grid,), num_warps=cut.warps, num_stages=cut.stages, below=below, w_below=_weight(from_below),
            above=above, w_above=_weight(from_above), output=output, total=total, **given,
            **cut.arguments, POOL_TOTAL=pool_total, ACT=self.activation if output is not None else "identity",
            SLOPE=self.slope,
        )  # fmt: skip


_OPTIONAL = (
    "result", "add", "hold", "inject", "up_kept", "down_kept", "up_out", "down_out", "extra", "pooled",
    "evidence_sum", "external_sum", "bias_sum", "previous", "change", "largest", "change_before", "largest_before",
    "limit", "all_held",
)  # fmt: skip


def _weight(source: Source | None) -> Maybe:
    return None if source is None else source.weight


class WeightSums:
    """The weight gradients of every edge, both directions of it, summed over many pairs of big and small side."""

    def __init__(self, weights: Sequence[Tensor], padding: Sequence[int], tied: bool, wanted: bool) -> None:
        self._weights, self._padding, self._tied, self._wanted = weights, padding, tied, wanted
        sums = len(weights) if tied else 2 * len(weights)
        self._pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(sums)]
        self._sums: list[Maybe] = [None] * sums
        self._bytes = 0

    def up(self, edge: int, state: Tensor, grad: Tensor) -> None:
        """The drive of `edge`'s upper layer: from `state` below, averaged over windows, with gradient `grad` above."""
        self._add(edge, state, grad)

    def down(self, edge: int, grad: Tensor, state: Tensor) -> None:
        """The drive of `edge`'s lower layer: from `state` above, with gradient `grad` below, summed over windows."""
        self._add(edge if self._tied else len(self._weights) + edge, grad, state)

    def _add(self, which: int, big: Tensor, small: Tensor) -> None:
        if self._wanted:
            self._pairs[which].append((big, small))
            self._bytes += (big.numel() + small.numel()) * big.element_size()

    def swept(self) -> None:
        """After all pairs of a sweep."""
        if self._bytes >= _BYTES:
            self._flush()

    def _flush(self) -> None:
        for which, pairs in enumerate(self._pairs):
            if not pairs:
                continue
            found = self._of(which, pairs)
            total = self._sums[which]
            self._sums[which] = found if total is None else total.add_(found)
            pairs.clear()
        self._bytes = 0

    def _of(self, which: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        edge = which % len(self._weights)
        (big, small), *rest = pairs
        if len(rest) > 1:
            big, small = torch.cat([b for b, _ in pairs]), torch.cat([s for _, s in pairs])
        return weight_grad(
            big, small, kernel_size=self._weights[edge].shape[2:], stride=(1, 1),
            padding=self._padding[2 * edge : 2 * edge + 2], second=rest[0] if len(rest) == 1 else None,
        )  # fmt: skip

    def finish(self) -> list[Tensor]:
        """Those of the weights and of the reverse weights; without values where they are not wanted."""
        self._flush()
        found = []
        for which, total in enumerate(self._sums):
            weight = self._weights[which % len(self._weights)]
            if not self._wanted:
                found.append(weight.new_empty(0))
            else:
                found.append(weight.new_zeros(weight.shape) if total is None else total)
        return found
