"""`CBAN`: the attractor network on convolutional layers (004)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmser.models.attractor import AttractorNetwork
from lmser.models.reflection import Pair, channels_last


class CBAN(AttractorNetwork):
    """Convolutional bipartite attractor network (004 Sect. 3.1), see `AttractorNetwork`.

    channels:    of layers 0 ... L, e.g. ``(3, 40, 120, 440)`` for CIFAR-10
    pools:       window of the average pool before each edge's convolution, ints or pairs (height, width), e.g.
                 ``(1, 2, 2)``; on the way down each value repeats over it
    kernel_size: of all edges, an int or a pair; padding is half of it
    activation, slope, symmetric, evidence, strength, theta, max_steps, order, backward, unconverged, impl:
                 as in `FBAN`
    init:        the standard deviation of the weights, 0.01 (Omniglot) by default; biases start at 0

    004's names: ``CBAN-asym`` is ``symmetric=False``; ``CBAN-noTD`` is trained with ``loss(..., td="last")``. Its
    super-resolution network (Appendix D.5) is ``CBAN((3, 300, 300, 300), pools=(1, 1, 1), kernel_size=5,
    evidence="replicate", init=0.001)``: layer 0 has 6 channels, the 3 of the evidence and the 3 that are read.

    Evidence is ``(N, channels[0], H, W)`` of any size that the pools divide; states are channels-last. Raises
    TypeError or ValueError naming the argument.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        pools: Sequence[int | Pair],
        kernel_size: int | Pair = 3,
        activation: str = "tanh",
        slope: float | None = None,
        symmetric: bool = True,
        evidence: str = "clamp",
        strength: float = 1.0,
        theta: float = 0.01,
        max_steps: int = 100,
        order: str = "up_down",
        backward: str = "bptt",
        unconverged: str = "warn",
        init: str | float = 0.01,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels, kernel_size, pools=pools,
            activation=activation, slope=slope, symmetric=symmetric, evidence=evidence, strength=strength,
            theta=theta, max_steps=max_steps, order=order, backward=backward, unconverged=unconverged,
            init=init, impl=impl, device=device, dtype=dtype,
        )  # fmt: skip

    def _inner(
        self, name: str, tensor: Tensor, like: Tensor | None = None, channels: int | None = None
    ) -> Tensor:
        count = self.visible_channels if channels is None else channels
        if like is not None and tensor.shape != like.shape:
            raise ValueError(f"{name}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
        if like is None and (tensor.dim() != 4 or tensor.shape[1] != count):
            raise ValueError(f"{name}: expected shape (N, {count}, H, W), got {tuple(tensor.shape)}")
        return channels_last(tensor)

    def _outer(self, tensor: Tensor, form: torch.Size) -> Tensor:
        return tensor

    def _free_copy(self, tensor: Tensor, leading: int) -> Tensor:
        return (
            tensor[(slice(None),) * (leading + 1) + (slice(self.visible_channels, None),)]
            if (self.evidence == "replicate")
            else tensor
        )
