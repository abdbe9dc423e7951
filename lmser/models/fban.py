"""`FBAN`: the attractor network on fully connected layers (004)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmser.models.attractor import AttractorNetwork


class FBAN(AttractorNetwork):
    """Fully connected bipartite attractor network (004 Sects. 4.1, 4.2), see `AttractorNetwork`.

    sizes:      units of layers 0 ... L, e.g. ``(25, 50)`` for bars, ``(812, 200, 50)`` for labelled digits
    activation: ``"tanh"`` or any other of the kernels'; `slope` is the leak of the leaky ones
    symmetric:  one weight for both directions of an edge (Eq. 4). False: a free one for the way down
    evidence:   ``"clamp"``, ``"init"``, ``"blend"``, ``"bias"`` or ``"replicate"``, and its `strength`: see
                `lmser.models.evidence`
    theta, max_steps, order, backward, unconverged, impl: handed to `lmser_kernels.settle`
    init:       ``"bars"``, ``"mnist"``, or a standard deviation: see `lmser.models.attractor_initialisation`
    centred:    the drive from the visible units into the first hidden layer is counted from `centre`, see `centre_on`

    Evidence is ``(N, ...)`` with ``sizes[0]`` values each, in any form that flattens to them; the visible state,
    readouts, and what is read come back in it (with ``evidence="replicate"`` the visible state is ``(N, 2,
    ...)``). Hidden states are ``(N, sizes[l], 1, 1)``, weights ``(sizes[l], sizes[l-1], 1, 1)``. Raises
    TypeError or ValueError naming the argument.
    """

    _fully_connected = True

    def __init__(
        self,
        sizes: Sequence[int],
        *,
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
        init: str | float = "bars",
        centred: bool = False,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.sizes = tuple(sizes)
        super().__init__(
            self.sizes, 1, pools=None,
            activation=activation, slope=slope, symmetric=symmetric, evidence=evidence, strength=strength,
            theta=theta, max_steps=max_steps, order=order, backward=backward, unconverged=unconverged,
            init=init, impl=impl, device=device, dtype=dtype,
        )  # fmt: skip
        self.centre: Tensor | None
        self.register_buffer("centre", self.weights[0].new_zeros(self.channels[0]) if centred else None)

    @torch.no_grad()
    def centre_on(self, values: Tensor) -> None:
        """Count the drive into the first hidden layer from `values`, one for each visible unit: usually their means.

            h_1 = f(W_1 (h_0 - centre) + W_2ᵀ h_2 + b_1) = f(W_1 h_0 + W_2ᵀ h_2 + (b_1 - W_1 centre))

        Another form of the same network, with the same weights and other gradients. Where visible values are far from
        zero on average (digits on [-1, 1] are -0.74), a change of one weight in their uncentred form moves a hidden unit
        for all samples alike, and a step must be the smaller for it. It changes what the network computes: centre it
        before it is trained. The centre is kept in the ``state_dict``. TypeError for what is no tensor, ValueError for a
        network that is not ``centred`` and for another number of values.

        Source: Montavon & Müller, "Deep Boltzmann Machines and the Centering Trick" (2012).
        """
        if self.centre is None:
            raise ValueError("centre_on: expected a network made with centred=True")
        if not isinstance(values, Tensor):
            raise TypeError(f"values: expected a tensor, got {type(values).__name__}")
        if values.numel() != self.visible_channels:
            raise ValueError(f"values: expected {self.visible_channels}, got {tuple(values.shape)}")
        self.centre.copy_(values.reshape(-1).repeat(len(self.centre) // self.visible_channels))

    def _biases_used(self) -> list[Tensor] | None:
        found = super()._biases_used()
        if self.centre is not None and found is not None:
            found[1] = found[1] - self.weights[0].flatten(1) @ self.centre
        return found

    def _inner(
        self, name: str, tensor: Tensor, like: Tensor | None = None, channels: int | None = None
    ) -> Tensor:
        units = self.visible_channels if channels is None else channels
        if like is not None:
            units = like.shape[1]
        if tensor.dim() < 2 or tensor.shape[1:].numel() != units:
            raise ValueError(f"{name}: expected {units} values for each sample, got {tuple(tensor.shape)}")
        if like is not None and len(tensor) != len(like):
            raise ValueError(f"{name}: expected {len(like)} samples, got {len(tensor)}")
        return tensor.reshape(len(tensor), units, 1, 1)

    def _outer(self, tensor: Tensor, form: torch.Size) -> Tensor:
        copies = (2,) if self.evidence == "replicate" else ()
        return tensor.reshape(*tensor.shape[:-3], *copies, *form)

    def _free_copy(self, tensor: Tensor, leading: int) -> Tensor:
        return tensor.select(leading + 1, 1) if self.evidence == "replicate" else tensor
