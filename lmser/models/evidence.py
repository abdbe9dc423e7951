"""How an observation holds the visible units (004 Sect. 3.2 and Appendix A).

    clamp      an observed unit has the observed value and does not move
    init       it starts there, and is as free as the others
    blend      it is `a · observed + (1 - a) · f(net input)`; a = 1 clamps, a = 0 is `init`
    bias       its net input has `c · observed` added, for good
    replicate  all visible units exist twice: one copy is clamped to the observation (0 where there is none), the
               other is free and is what is read

In all of them a visible unit starts at the observation, and at 0 where there is none. `strength` is the `a` of
``"blend"`` and the `c` of ``"bias"``; the others have none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("clamp", "init", "blend", "bias", "replicate")


class Held(NamedTuple):
    """Where the visible layer starts, and what `lmser_kernels.settle` needs to hold it."""

    visible: Tensor
    evidence: Tensor | None
    mask: Tensor | None
    strength: float
    external: Tensor | None


def check_mode(mode: str, strength: float) -> None:
    """TypeError or ValueError naming `evidence` or `strength`."""
    if mode not in MODES:
        raise ValueError(f"evidence: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise TypeError(f"strength: expected a number, got {strength!r}")
    if not math.isfinite(strength):
        raise ValueError(f"strength: expected a finite number, got {strength}")
    if mode == "blend" and not 0 <= strength <= 1:
        raise ValueError(f"strength: expected a share between 0 and 1 with evidence='blend', got {strength}")
    if mode not in ("blend", "bias") and strength != 1:
        raise ValueError(f"strength: is for evidence='blend' and 'bias', got {strength} with {mode!r}")


def hold(mode: str, strength: float, observation: Tensor, mask: Tensor) -> Held:
    """`observation` ``(N, C, H, W)`` where `mask` (bool, of its shape) is true, in one of the five ways.

    What stands in `observation` elsewhere is never looked at; it may be NaN.
    """
    observed = torch.where(mask, observation, 0)
    if mode == "init":
        return Held(observed, None, None, 1.0, None)
    if mode == "bias":
        return Held(observed, None, None, 1.0, strength * observed)
    if mode == "replicate":
        both = torch.cat([observed, torch.zeros_like(observed)], 1)
        copy = torch.cat([torch.ones_like(mask), torch.zeros_like(mask)], 1)
        return Held(both, both, copy, 1.0, None)
    return Held(observed, observed, mask, strength if mode == "blend" else 1.0, None)
