"""What the rows of the completion experiments are trained by, and the number of iterations that it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmser.baselines import DenoisingVAE
from lmser.models import AttractorNetwork, attractor_loss

__all__ = ["ITERATIONS", "CompletionLoss", "counting"]

ITERATIONS = "forward iterations"
"""The name under which `CompletionLoss.scalars` logs how many sweeps a batch took to settle."""


_BATCHES = "batches_seen"


class CompletionLoss:
    """``loss(model, images, observed)`` of a row's ``[objective]``, and ``loss(model, images, observed, evidence)`` where
    the evidence is not a part of the images; one object for each job.

    An attractor network is trained by the squared error of its unclamped visible values (004 Sect. 3.2): at every
    iteration (``td = 1.0``, TD(1)) or at the last one (``td = "last"``). `DenoisingVAE` is trained by its bound.

    With ``later_theta`` in the objective a batch settles to that from half of the `steps` on (004 App. D.5), and the
    network has to have been given to `counting`.
    """

    def __init__(self, objective: Mapping[str, Any], steps: int | None = None) -> None:
        self._kind, self._td = objective["loss"], objective.get("td", 1.0)
        self._later = objective.get("later_theta")
        if self._later is not None and steps is None:
            raise ValueError("steps: expected a number with objective.later_theta, got none")
        self._half = 0 if steps is None else steps // 2
        self._iterations: Tensor | None = None

    @property
    def not_capturable(self) -> str | None:
        """Why a training step cannot be recorded and replayed (`lmser.training.graphed`), or None."""
        return None if self._later is None else "what it settles to changes after half of the steps"

    def __call__(
        self, model: nn.Module, images: Tensor, observed: Tensor, evidence: Tensor | None = None
    ) -> Tensor:
        if isinstance(model, DenoisingVAE):
            return model.loss(images, observed)
        if not isinstance(model, AttractorNetwork):
            raise TypeError(
                f"model: expected an attractor network or a DenoisingVAE, got {type(model).__name__}"
            )
        given = images if evidence is None else evidence
        settled = model.complete(given, observed, readouts=True, theta=self._theta(model))
        self._iterations = settled.steps
        return attractor_loss(model.trajectory(settled), images, kind=self._kind, td=self._td)

    def _theta(self, model: AttractorNetwork) -> float | None:
        """What this batch settles to; None: the network's own threshold."""
        if self._later is None:
            return None
        seen = model.get_buffer(_BATCHES)
        theta = float(self._later) if int(seen) >= self._half else None
        seen += 1
        return theta

    def scalars(self, _model: nn.Module) -> dict[str, float | Tensor]:
        """What is logged with a step."""
        return {} if self._iterations is None else {ITERATIONS: self._iterations}


def counting(model: nn.Module) -> nn.Module:
    """`model`, which now counts its training batches in a buffer, so that a run that is continued knows how many
    there were."""
    model.register_buffer(_BATCHES, torch.zeros((), dtype=torch.int64))
    return model
