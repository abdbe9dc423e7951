"""`Settle`: the parameters of a settling network beside the settings of its sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lmser_kernels.arguments import Pair, pair
from lmser_kernels.layer import Activated
from lmser_kernels.settle.api import BACKWARDS, ORDERS, UNCONVERGED, settle
from lmser_kernels.settle.problem import check_segment, check_stop, choice
from lmser_kernels.settle.result import Settled


class Settle(Activated):
    """A network of layers 0 ... L that settles to a fixed point; see `lmser_kernels.settle`.

    channels:    of layers 0 ... L
    kernel_size: of all edges, 1 for fully connected layers `(N, C, 1, 1)`; `padding` is half of it where None
    bias:        one per channel of every layer, the visible one included
    pools:       window of each edge on the way up, 1 where None; strides are 1
    symmetric:   False gives the top-down direction free weights of its own, `reverse_weights`
    order, theta, max_steps, backward, readouts, per_sample, strength, trajectory_dtype, checkpoint_every,
    adjoint_theta, adjoint_max_steps, unconverged, impl: as `lmser_kernels.settle` takes them; any of them can be given
    to `forward` for one call

    `state_dict` keys: `weights.0 ...` (`(C_l, C_{l-1}, kh, kw)`, edge l-1 -> l is number l-1), `biases.0 ...` (layer
    l is number l), and `reverse_weights.0 ...`. They start as those of `nn.Conv2d` do, U(±1/√fan_in); the visible bias
    by the fan-in from above. Raises TypeError or ValueError naming the argument.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_size: Pair = 1,
        padding: Pair | None = None,
        bias: bool = True,
        activation: str = "tanh",
        slope: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pools: Sequence[Pair] | None = None,
        symmetric: bool = True,
        strength: float = 1.0,
        order: str = "up_down",
        theta: float = 0.01,
        max_steps: int = 100,
        backward: str = "bptt",
        readouts: bool = False,
        per_sample: bool = False,
        trajectory_dtype: torch.dtype | None = None,
        checkpoint_every: int | None = None,
        adjoint_theta: float = 1e-6,
        adjoint_max_steps: int = 1000,
        unconverged: str = "warn",
        impl: str = "auto",
    ) -> None:
        super().__init__(activation, slope, impl)
        channels = tuple(channels)
        if len(channels) < 2:
            raise ValueError(f"channels must name at least two layers; got {channels!r}")
        for count in channels:
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"channels must be positive ints; got {count!r}")
        edges = len(channels) - 1
        if pools is not None and len(pools) != edges:
            raise ValueError(f"pools must have one window for each of the {edges} edges; got {len(pools)}")
        choice("order", order, ORDERS)
        choice("backward", backward, BACKWARDS)
        choice("unconverged", unconverged, UNCONVERGED)
        check_stop(theta, max_steps)
        check_stop(adjoint_theta, adjoint_max_steps, "adjoint_")
        check_segment(checkpoint_every)
        self.channels = channels
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        half = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
        self.padding = half if padding is None else pair("padding", padding, 0)
        self.pools = tuple(pair(f"pools[{i}]", 1 if pools is None else pools[i], 1) for i in range(edges))
        self.symmetric = bool(symmetric)
        self.strength, self.order, self.theta, self.max_steps = strength, order, theta, max_steps
        self.backward, self.readouts, self.per_sample = backward, bool(readouts), bool(per_sample)
        self.trajectory_dtype, self.checkpoint_every = trajectory_dtype, checkpoint_every
        self.adjoint_theta, self.adjoint_max_steps = adjoint_theta, adjoint_max_steps
        self.unconverged = unconverged

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        shapes = [(above, below, *self.kernel_size) for below, above in pairwise(channels)]
        self.weights = nn.ParameterList([empty(*shape) for shape in shapes])
        self.biases = nn.ParameterList([empty(count) for count in channels]) if bias else None
        self.reverse_weights = None if symmetric else nn.ParameterList([empty(*shape) for shape in shapes])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and biases as `nn.Conv2d` does."""
        for weight in (*self.weights, *(self.reverse_weights or ())):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        for layer, bias in enumerate(self.biases or ()):
            driven_by = self.weights[0][:, 0] if layer == 0 else self.weights[layer - 1][0]
            bound = 1 / math.sqrt(driven_by.numel())
            nn.init.uniform_(bias, -bound, bound)

    def forward(
        self,
        states: Sequence[Tensor],
        evidence: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        external: Tensor | None = None,
        **settings: Any,
    ) -> Settled:
        """Settle from `states`; `settings` go before the module's own for this call."""
        own: dict[str, Any] = {
            "strength": self.strength,
            "order": self.order,
            "theta": self.theta,
            "max_steps": self.max_steps,
            "backward": self.backward,
            "readouts": self.readouts,
            "per_sample": self.per_sample,
            "trajectory_dtype": self.trajectory_dtype,
            "checkpoint_every": self.checkpoint_every,
            "adjoint_theta": self.adjoint_theta,
            "adjoint_max_steps": self.adjoint_max_steps,
            "unconverged": self.unconverged,
            "impl": self.impl,
        }
        unknown = sorted(set(settings) - set(own))
        if unknown:
            raise TypeError(f"forward() takes {', '.join(own)} for one call; got {', '.join(unknown)}")
        return settle(
            states,
            list(self.weights),
            self._biases_used(),
            evidence=evidence,
            mask=mask,
            external=external,
            pools=self.pools,
            padding=[self.padding] * len(self.weights),
            activation=self.activation,
            slope=self.slope,
            reverse_weights=None if self.reverse_weights is None else list(self.reverse_weights),
            **{**own, **settings},
        )

    def _biases_used(self) -> list[Tensor] | None:
        """What is added to the drives of layers 0 ... L."""
        return None if self.biases is None else list(self.biases)

    def extra_repr(self) -> str:
        text = f"{'-'.join(map(str, self.channels))}, kernel_size={self.kernel_size}"
        if any(window != (1, 1) for window in self.pools):
            text += f", pools={self.pools}"
        if not self.symmetric:
            text += ", symmetric=False"
        if self.biases is None:
            text += ", bias=False"
        return (
            f"{text}, {self._activation_repr()}, order={self.order!r}, theta={self.theta}, "
            f"max_steps={self.max_steps}, backward={self.backward!r}"
        )
