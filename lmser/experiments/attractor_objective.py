"""What the rows of the experiments on fully connected attractor networks are trained by (004 Sects. 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lmser.experiments.labelled_digits import PIXELS
from lmser.experiments.rows import RowConfig
from lmser.models import AttractorNetwork, attractor_loss

__all__ = ["attractor_loss_of"]

_KEYS = {"loss", "td", "stationary", "units", "label_weight", "power"}


def attractor_loss_of(row: RowConfig) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """``loss(model, target, observed)`` of a row's ``[objective]``.

    loss:       ``"se"``, ``"delta_e"`` or ``"delta_e_plus"``
    td:         λ of TD(λ), or ``"last"``: the loss of the last sweep alone (noTD); by default 1
    stationary: share of the loss at the fixed point alone, differentiated implicitly; by default 0
    units:      ``"all"`` (the default, as 004 has it) or ``"missing"``: the loss of unobserved units alone
    label_weight: how often each label unit of `lmser.experiments.labelled_digits` counts, a whole number; by default
                once, like any pixel
    power:      p of the mean over samples of the p-th power of their losses (`lmser.models.attractor_loss`); by
                default 1

    The first three are `lmser.models.AttractorNetwork.loss`'s. Raises ValueError naming the row for other keys and
    values, TypeError where the loss is given another network.
    """
    objective = dict(row.objective)
    unknown = set(objective) - _KEYS
    if unknown or "loss" not in objective:
        raise ValueError(
            f"{row.path}: objective: expected loss, td, stationary, units, label_weight and power, got {sorted(objective)}"
        )
    kind, td, share = objective["loss"], objective.get("td", 1.0), objective.get("stationary", 0.0)
    units, weight = objective.get("units", "all"), objective.get("label_weight", 1)
    if units not in ("all", "missing"):
        raise ValueError(f"{row.path}: objective.units: expected 'all' or 'missing', got {units!r}")
    if not isinstance(weight, int) or isinstance(weight, bool) or weight < 1:
        raise ValueError(
            f"{row.path}: objective.label_weight: expected a whole number above 0, got {weight!r}"
        )
    power = objective.get("power", 1.0)
    plain = units == "all" and weight == 1 and power == 1
    if share and not plain:
        raise ValueError(
            f"{row.path}: objective.stationary: expected 0 where not all units and samples count alike, got {share}"
        )

    def loss(model: nn.Module, target: Tensor, observed: Tensor) -> Tensor:
        if not isinstance(model, AttractorNetwork):
            raise TypeError(f"model: expected an attractor network, got {type(model).__name__}")
        if plain:
            return model.loss(target, observed, kind=kind, td=td, stationary=share)
        found = model.trajectory(model.complete(target, observed, readouts=True))
        given, wanted = (
            _weighted(tensor.flatten(leading), weight) for tensor, leading in ((found, 2), (target, 1))
        )
        if units == "missing":
            # A unit that is where it should be has no loss and passes on no gradient; one that every sample observes
            # need not be looked at.
            seen = _weighted(observed.flatten(1), weight)
            missed = ~seen.all(0)
            given, wanted = given[..., missed], wanted[:, missed]
            given = torch.where(seen[:, missed], wanted, given)
        return attractor_loss(
            given, wanted, kind=kind, td=td, power=power, activation=model.activation, slope=model.slope
        )

    return loss


def _weighted(visible: Tensor, weight: int) -> Tensor:
    """States with as many copies of their label units as these count."""
    if weight == 1:
        return visible
    return torch.cat([visible, *(weight - 1) * [visible[..., PIXELS:]]], -1)
