"""From a row's ``[model]`` to the network."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["build_network"]


def build_network(model: Mapping[str, Any]) -> nn.Module:
    """Build ``model["kind"]``, a class of `lmser.models` or `lmser.baselines`, with the other keys as its
    keyword arguments, on the CPU.

    Raises ValueError listing the classes there are; what the class raises for its arguments otherwise.
    """
    known: dict[str, type[nn.Module]] = {}
    for package in ("lmser.models", "lmser.baselines"):
        module = importlib.import_module(package)
        found = {name: getattr(module, name) for name in module.__all__}
        known |= {
            name: value
            for name, value in found.items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        }
    arguments = dict(model)
    kind = arguments.pop("kind", None)
    if kind not in known:
        raise ValueError(f"model.kind: expected one of {', '.join(sorted(known))}, got {kind!r}")
    return known[kind](**arguments)
