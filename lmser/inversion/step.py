"""What a layer leaves behind on the way up, for the way down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lmser_kernels import pull_back

__all__ = ["Activation", "Step", "is_channels_last", "laid_out_as"]

Pull = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Activation:
    """An activation `f` whose derivative is told by its output: what a tensor came out of."""

    name: str
    slope: float | None = None

    @property
    def gate_slope(self) -> float | None:
        """The leak, where the sign of the output is all that `f'` needs; None elsewhere."""
        if self.name == "relu":
            return 0.0
        if self.name == "leaky_relu":
            return 0.01 if self.slope is None else float(self.slope)
        return None

    def pull(self, g: Tensor, h: Tensor) -> Tensor:
        """`g · f'` for `h = f(.)`, of any number of dimensions from two on."""
        shape = g.shape
        g, h = (t.reshape(*t.shape[:2], 1, -1) if t.dim() != 4 else t for t in (g, h))
        return pull_back(g, h, activation=self.name, slope=self.slope).view(shape)


@dataclass(frozen=True)
class Step:
    """A layer, gone up.

    output: what it gives
    f:      the activation that `output` came out of, where its derivative has not been taken care of yet; the next
            layer's `pull` does that where it writes
    pull:   from `g · f'`, `g` a gradient with respect to `output`, to the gradient with respect to the layer's input,
            times the derivative of the activation that the input came out of
    """

    output: Tensor
    f: Activation | None
    pull: Pull


def laid_out_as(u: Tensor, x: Tensor) -> Tensor:
    """`u`, channels-last where `x` is: a map of one pixel or a flattened one has no layout to pass on, and all that
    follows would go on in the slower one."""
    if u.dim() == 4 and not u.is_contiguous(memory_format=torch.channels_last) and is_channels_last(x):
        return u.contiguous(memory_format=torch.channels_last)
    return u


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is that, and not plainly contiguous as well."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
