"""The weights of a semi-supervised loss learned by gradient, along with the network (003 Eqs. 14 and 15)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmser.inversion.semi_supervised import SemiSupervised

__all__ = ["LearnedWeights"]


class LearnedWeights:
    """Steps of gradient descent on a network and on the weights of its loss:

        theta(t+1) = theta(t) - lr dL(theta(t); v(t)) / dtheta                       003 Eq. (14)
        v(t+1) = v(t) - rate dL(theta(t+1)) / dv(t)                                  003 Eq. (15)

    for `v` = (alpha, beta) of Eq. (10), each kept in [0, 1], or (alpha, beta, gamma_0, ...) of Eq. (11), each kept at
    0 or above. With the terms `T_i` of the loss and their weights `w_i(v)`,

        dL(theta(t+1)) / dw_i = - lr <dL/dtheta at theta(t+1), dT_i/dtheta at theta(t)>   [ + T_i(theta(t+1)) ]

    exactly, and without a derivative of second order: the new parameters are linear in the weights.

    model:    whose `alpha`, `beta`, `gammas` are numbers to begin with, and are replaced
    lr, rate: of the two equations; 003 has 1 for `rate`
    explicit: whether the loss's own dependence on its weights, in brackets above, counts. As no term is negative, it
              lowers every weight for ever; without it a weight grows where following its term would have lowered the
              loss, and falls where it would have raised it

    Raises TypeError or ValueError naming the argument.
    """

    def __init__(
        self, model: SemiSupervised, lr: float, rate: float = 1.0, *, explicit: bool = False
    ) -> None:
        for name, value in (("lr", lr), ("rate", rate)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        values: list[Any] = [model.alpha, model.beta, *(model.gammas or ())]
        if any(callable(value) for value in values):
            raise TypeError(
                "model: expected weights that are numbers, got one that is a function of the step"
            )
        self.model, self.lr, self.rate, self.explicit = model, float(lr), float(rate), explicit
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._values = torch.tensor([float(value) for value in values], dtype=torch.float64)

    @property
    def values(self) -> tuple[float, ...]:
        """(alpha, beta) or (alpha, beta, gamma_0, ...)."""
        return tuple(self._values.tolist())

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of both equations on one batch; the loss before it, detached."""
        values = self._values.requires_grad_()
        weights = self._weights(values)
        numbers = [float(w) for w in weights]
        terms = self._terms(x, y)
        before = [self._gradient(term) for term in terms]
        loss = sum(w * term.detach() for w, term in zip(numbers, terms, strict=True))
        with torch.no_grad():
            for position, parameter in enumerate(self._parameters):
                for w, gradients in zip(numbers, before, strict=True):
                    gradient = gradients[position]
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=self.lr * w)
        terms = self._terms(x, y)
        after = self._gradient(sum((w * term for w, term in zip(numbers, terms, strict=True)), terms[0] * 0))
        slopes = []
        for term, gradients in zip(terms, before, strict=True):
            along = torch.zeros((), dtype=torch.float64, device=term.device)
            for a, b in zip(after, gradients, strict=True):
                if a is not None and b is not None:
                    along = along + (a.double() * b.double()).sum()
            slopes.append(-self.lr * along + (term.detach().double() if self.explicit else 0.0))
        (found,) = torch.autograd.grad(weights, values, torch.stack(slopes).cpu())
        highest = 1.0 if self.model.gammas is None else float("inf")
        self._values = (values.detach() - self.rate * found).clamp(0.0, highest)
        new = self.values
        self.model.alpha, self.model.beta = new[:2]
        self.model.gammas = None if self.model.gammas is None else new[2:]
        return torch.as_tensor(loss)

    def _weights(self, values: Tensor) -> Tensor:
        if self.model.gammas is not None:
            return values * 1
        alpha, beta = values
        return torch.stack([alpha, (1 - alpha) * (1 - beta), (1 - alpha) * beta])

    def _terms(self, x: Tensor, y: Tensor) -> list[Tensor]:
        found = self.model.terms(x, y)
        return [found.cross_entropy, found.entropy, *found.reconstruction]

    def _gradient(self, term: Tensor) -> tuple[Tensor | None, ...]:
        if not term.requires_grad:  # no sample of the batch has it
            return (None,) * len(self._parameters)
        return torch.autograd.grad(term, self._parameters, retain_graph=True, allow_unused=True)
