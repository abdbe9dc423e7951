"""Optional dependencies, imported where they are used and named when they are missing.

``import lmser`` needs torch, numpy and click only. Whatever else a function wants it asks for here, so that
a user who lacks it reads which extra to install instead of a bare ``ModuleNotFoundError``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, extra: str = "experiments") -> ModuleType:
    """Import ``module`` (dotted names allowed) or say which extra of lmser brings it.

    Args:
        module: the name to import, for example ``"skimage.metrics"``.
        extra: the extra of the ``lmser`` distribution that lists the dependency.

    Returns:
        The imported module (the submodule itself for a dotted name).

    Raises:
        ImportError: ``module`` or one of its parent packages is not installed. An installed module that
            fails while it is being imported raises its own error, unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        parts = module.split(".")
        asked_for = {".".join(parts[: i + 1]) for i in range(len(parts))}
        if error.name not in asked_for:
            raise  # the module is there, one of its own dependencies is not: its message is the better one
        raise ImportError(
            f"{module} is not installed; it comes with the extra {extra!r}: pip install 'lmser[{extra}]'",
            name=error.name,
        ) from error
