"""`SemiSupervised`: a classifier that also learns from what has no label (003 Eqs. 10 and 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.inversion.invert import METHODS, Inverted, invert, inverted
from lmser.inversion.losses import (
    RECONSTRUCTION,
    cross_entropy,
    entropy,
    mean_error,
)

__all__ = ["SemiSupervised", "Terms"]

Weight = float | Callable[[int], float]


@dataclass(frozen=True)
class Terms:
    """The terms of a loss, each a mean over the samples that it applies to (0 where there is none), 0-d.

    cross_entropy:  over the labelled samples
    entropy:        over the unlabelled ones with Eq. (10), over all with Eq. (11)
    reconstruction: `R` over all; with Eq. (11) one for each layer
    logits:         `(N, C)`
    """

    cross_entropy: Tensor
    entropy: Tensor
    reconstruction: tuple[Tensor, ...]
    logits: Tensor

    def weighted(self, weights: Sequence[float | Tensor]) -> Tensor:
        """`Σ weight · term`, in the order cross-entropy, entropy, reconstructions."""
        total = weights[0] * self.cross_entropy
        for weight, term in zip(weights[1:], (self.entropy, *self.reconstruction), strict=True):
            if not isinstance(weight, float) or weight != 0:
                total = total + weight * term
        return torch.as_tensor(total)


class SemiSupervised(nn.Module):
    """Any classifier with the loss that learns from unlabelled samples too:

        alpha CE 1{labelled} + (1 - alpha) [beta R + (1 - beta) E 1{unlabelled}]         003 Eq. (10)
        alpha CE 1{labelled} + beta E + sum over l of gamma_l R_l                        003 Eq. (11), with `gammas`

    where `R = ‖(df/dx)ᵀ f(x) - x‖²` is how badly the network sent back through its own transpose gives its input, and
    `E` the entropy of its prediction. Each term is a mean over the samples it applies to, so that the composition of
    a batch does not change the weights; where processes share a batch, over those of the process's own slice.

        model = SemiSupervised(my_network, alpha=0.7, beta=0.2)
        loss = model.loss(images, labels)                   # labels int64, below 0 where there is none

    model:          `(N, ...)` to logits `(N, C)`; unchanged, and what `forward` calls
    alpha, beta:    the weights; a function of the number of training steps so far makes them vary (Eq. 13)
    gammas:         one weight (or function) for `x` and one for the input of each of `layers`, for Eq. (11)
    layers:         modules whose inputs `z_l` are reconstructed besides `x` (Eq. 12); by default all children of an
                    `nn.Sequential` but the first
    reconstruction: ``"mean_squared"``, ``"squared"`` or ``"cosine"`` (`lmser.inversion.reconstruction_error`)
    method:         how the network is inverted (`lmser.invert`)

    `loss` in training mode counts a step in the buffer `step`. Raises TypeError or ValueError naming the argument.

    Source: "Semi-Supervised Learning via New Deep Network Inversion", Sect. 2.3 and 4.
    """

    step: Tensor

    def __init__(
        self,
        model: nn.Module,
        alpha: Weight = 0.7,
        beta: Weight = 0.2,
        *,
        gammas: Sequence[Weight] | None = None,
        layers: Sequence[nn.Module] | None = None,
        reconstruction: str = "mean_squared",
        method: str = "auto",
    ) -> None:
        super().__init__()
        if reconstruction not in RECONSTRUCTION:
            raise ValueError(
                f"reconstruction: expected one of {', '.join(RECONSTRUCTION)}, got {reconstruction!r}"
            )
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        highest = 1.0 if gammas is None else None
        for name, weight in (("alpha", alpha), ("beta", beta), *(("gammas", w) for w in gammas or ())):
            _check(name, weight, None if name == "gammas" else highest)
        self.model = model
        self.alpha, self.beta = alpha, beta
        self.gammas = None if gammas is None else tuple(gammas)
        self._layers: tuple[nn.Module, ...] = ()
        if gammas is not None:
            if layers is None:
                if not isinstance(model, nn.Sequential):
                    raise TypeError(
                        "layers: expected the modules to reconstruct the inputs of, as the model is a "
                        f"{type(model).__name__} and no nn.Sequential"
                    )
                layers = list(model)[1:]
            self._layers = tuple(layers)
            if len(self._layers) + 1 != len(gammas):
                raise ValueError(
                    f"gammas: expected one for x and one for each of {len(self._layers)} layers, got {len(gammas)}"
                )
        elif layers is not None:
            raise ValueError("layers: expected with gammas only")
        self.reconstruction, self.method = reconstruction, method
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def not_capturable(self) -> str | None:
        """Why a training step cannot be recorded and replayed (`lmser.training.graphed`), or None."""
        varies = any(map(callable, (self.alpha, self.beta, *(self.gammas or ()))))
        return "its weights are functions of the step" if varies else None

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, C)`."""
        logits: Tensor = self.model(x)
        return logits

    def reconstruct(self, x: Tensor) -> Tensor:
        """`(df/dx)ᵀ f(x)`, of the shape of `x`."""
        return invert(self.model, x, method=self.method)

    def weights(self) -> tuple[float, ...]:
        """Those of cross-entropy, entropy and reconstructions at this step."""
        highest = 1.0 if self.gammas is None else None
        alpha, beta = self._now("alpha", self.alpha, highest), self._now("beta", self.beta, highest)
        if self.gammas is None:
            return alpha, (1 - alpha) * (1 - beta), (1 - alpha) * beta
        return alpha, beta, *(self._now("gammas", gamma, None) for gamma in self.gammas)

    def _now(self, name: str, weight: Weight, highest: float | None) -> float:
        if not callable(weight):
            return float(weight)
        found = weight(int(self.step))
        _check(f"{name} at step {int(self.step)}", found, highest)
        return float(found)

    def terms(self, x: Tensor, y: Tensor, *, reconstruct: bool = True) -> Terms:
        """The terms of the loss for a batch.

        x: `(N, ...)`; y: int64 `(N,)`, class, or a number below 0. Without `reconstruct` R is 0 and the network is
        not inverted.
        """
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise ValueError(f"y: expected int64 of shape ({len(x)},), got {y.dtype} {tuple(y.shape)}")
        found = (
            inverted(self.model, x, layers=self._layers, method=self.method)
            if reconstruct
            else Inverted(self.model(x), (), ())
        )
        logits = found.output
        if logits.dim() != 2:
            raise ValueError(f"model: expected logits of shape (N, C) of it, got {tuple(logits.shape)}")
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        log_p = F.log_softmax(logits, dim=1)
        known = (y >= 0).to(log_p.dtype)
        unknown = torch.ones_like(known) if self.gammas is not None else 1 - known
        errors = tuple(
            mean_error(r, z, self.reconstruction)
            for r, z in zip(found.reconstructions, found.states, strict=True)
        )
        return Terms(
            cross_entropy=cross_entropy(log_p, y).dot(known) / known.sum().clamp(min=1),
            entropy=entropy(log_p).dot(unknown) / unknown.sum().clamp(min=1),
            reconstruction=errors or (logits.new_zeros(()),) * (1 + len(self._layers)),
            logits=logits,
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch, a 0-d tensor; `x`, `y` as in `terms`. In training mode the step is counted."""
        weights = self.weights()
        total = self.terms(x, y, reconstruct=any(weights[2:])).weighted(weights)
        if self.training:
            self.step.add_(1)
        return total


def _check(name: str, weight: Weight, highest: float | None) -> None:
    if callable(weight):  # what it gives is checked when it gives it
        return
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"{name}: expected a number or a function of the step, got {weight!r}")
    if not 0 <= weight < float("inf") or (highest is not None and weight > highest):
        raise ValueError(
            f"{name}: expected a number {'in [0, 1]' if highest else 'of at least 0'}, got {weight}"
        )
