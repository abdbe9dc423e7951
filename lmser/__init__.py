"""lmser: networks that run up and down through the same weights, trained through fused operations.

The names below are imported when they are first asked for, so that ``import lmser`` itself is light.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmser.inversion import SemiSupervised, invert
    from lmser.models import (
        CBAN,
        FBAN,
        AttractorNetwork,
        CLmser,
        Lmser,
        Reflected,
        attractor_loss,
        reflection_loss,
    )

_HOME = {
    "SemiSupervised": "lmser.inversion",
    "invert": "lmser.inversion",
    "AttractorNetwork": "lmser.models",
    "CBAN": "lmser.models",
    "FBAN": "lmser.models",
    "attractor_loss": "lmser.models",
    "CLmser": "lmser.models",
    "Lmser": "lmser.models",
    "Reflected": "lmser.models",
    "reflection_loss": "lmser.models",
}

__all__ = [
    "CBAN",
    "FBAN",
    "AttractorNetwork",
    "CLmser",
    "Lmser",
    "Reflected",
    "SemiSupervised",
    "__version__",
    "attractor_loss",
    "invert",
    "reflection_loss",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("lmser")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
