"""Rows that train a network by the loss of 003's Eq. (10): the ``[objective]`` of their files.

[objective]
alpha = 0.0                   # weight of the labels
beta = 0.5                    # of R among what takes no labels
reconstruction = "squared"    # R, as `lmser.inversion.reconstruction_error` calls it
"""

from __future__ import annotations

from collections.abc import Sequence

from lmser.experiments.networks import build_network
from lmser.experiments.rows import RowConfig
from lmser.inversion import SemiSupervised

__all__ = ["build_semi_supervised"]

_KEYS = ("alpha", "beta", "reconstruction")


def build_semi_supervised(row: RowConfig, further: Sequence[str] = ()) -> SemiSupervised:
    """The row's network under the loss that its ``[objective]`` names; the experiment reads the keys `further` itself.

    Raises ValueError naming a key of the file that is not known or missing, and what `SemiSupervised` raises.
    """
    for key in row.objective:
        if key not in (*_KEYS, *further):
            raise ValueError(f"{row.path}: objective.{key} is not known, expected {', '.join(_KEYS)}")
    for key in _KEYS:
        if key not in row.objective:
            raise ValueError(f"{row.path}: objective.{key} is missing")
    alpha, beta, reconstruction = (row.objective[key] for key in _KEYS)
    return SemiSupervised(build_network(row.model), alpha, beta, reconstruction=reconstruction)
