"""Rows that train a network by the loss of 003's Eq. (10): the ``[objective]`` of their files.

[objective]
alpha = 0.7                   # weight of the labels
beta = 0.2                    # of R among what takes no labels
reconstruction = "squared"    # R, as `lmser.inversion.reconstruction_error` calls it; by default "mean_squared"
beta_first = 0.9              # where beta starts, to fall or rise to `beta` along a line
ramp = 0.5                    # within this share of the steps: reconstruction first, as 003 proposes below Eq. (13)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from lmser.experiments.networks import build_network
from lmser.experiments.rows import RowConfig
from lmser.inversion import SemiSupervised

__all__ = ["build_semi_supervised"]

_NEEDED = ("alpha", "beta")
_KEYS = (*_NEEDED, "reconstruction", "beta_first", "ramp")


def build_semi_supervised(row: RowConfig, further: Sequence[str] = ()) -> SemiSupervised:
    """The row's network under the loss that its ``[objective]`` names; the experiment reads the keys `further` itself.

    Raises ValueError naming a key of the file that is not known, missing or out of range, and what `SemiSupervised`
    raises.
    """
    objective = row.objective
    for key in objective:
        if key not in (*_KEYS, *further):
            raise ValueError(f"{row.path}: objective.{key} is not known, expected {', '.join(_KEYS)}")
    for key in _NEEDED:
        if key not in objective:
            raise ValueError(f"{row.path}: objective.{key} is missing")
    beta = objective["beta"]
    if ("beta_first" in objective) != ("ramp" in objective):
        raise ValueError(f"{row.path}: objective: expected beta_first and ramp together")
    if "ramp" in objective:
        first, ramp = objective["beta_first"], objective["ramp"]
        if not 0 <= first <= 1:
            raise ValueError(f"{row.path}: objective.beta_first: expected a number in [0, 1], got {first}")
        if not 0 < ramp <= 1:
            raise ValueError(
                f"{row.path}: objective.ramp: expected a share of the steps in (0, 1], got {ramp}"
            )
        if "steps" not in row.training:
            raise ValueError(f"{row.path}: objective.ramp: expected training.steps to take the share of")
        beta = functools.partial(_along, first, beta, ramp * row.training["steps"])
    kind = objective.get("reconstruction", "mean_squared")
    return SemiSupervised(build_network(row.model), objective["alpha"], beta, reconstruction=kind)


def _along(first: float, last: float, steps: float, step: int) -> float:
    return last + (first - last) * max(0.0, 1 - step / steps)
