"""When a run is evaluated, and what an evaluation may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Evaluate = Callable[[nn.Module], Mapping[str, Any]]


def checked_eval_at(eval_at: Sequence[int] | None, evaluate: Evaluate | None, steps: int) -> frozenset[int]:
    """The steps after which is evaluated, by default the last; ValueError naming one that is none."""
    if eval_at is None:
        return frozenset() if evaluate is None else frozenset({steps})
    if evaluate is None and len(eval_at) > 0:
        raise ValueError("eval_at: steps were given but no evaluate to call at them")
    for step in eval_at:
        if not isinstance(step, int) or not 0 <= step <= steps:
            raise ValueError(f"eval_at: expected steps of the run, 0 ... {steps}, got {step!r}")
    return frozenset(eval_at)


def plain_values(values: object) -> dict[str, Any]:
    """What an evaluation returned, as a checkpoint and a log can hold it; TypeError where they cannot."""
    if not isinstance(values, Mapping):
        raise TypeError(f"evaluate: expected it to return a mapping, got {type(values).__name__}")
    return {str(key): _plain(key, value) for key, value in values.items()}


def _plain(key: object, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else value.detach().cpu().clone()
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) or (hasattr(value, "dtype") and getattr(value, "ndim", None) == 0):
        return _plain(key, value.item()) if hasattr(value, "item") else float(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(key, v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(key, v) for v in value]
    raise TypeError(
        f"evaluate: {key!r} is a {type(value).__name__}; expected a number, string, list, mapping or tensor"
    )
