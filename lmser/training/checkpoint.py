"""The complete state of a run in one file, and the check that a continuation is the same run."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmser._atomic import atomic_write

FORMAT = 2
_KEYS = {
    "format",
    "step",
    "identity",
    "environment",
    "model",
    "optimizers",  # objective -> state; a run without objectives has one called "loss"
    "generators",  # of each process
    "losses",
    "extras",
    "evaluations",
    "blocks",
    "seconds_waiting",
    "peak_memory_bytes",
}


class ConfigMismatch(ValueError):
    """A run was to be resumed under other settings.

    `key`: which; `was`: its value when the run began; `now`: in this call.
    """

    def __init__(self, where: Path, key: str, was: Any, now: Any) -> None:
        super().__init__(
            f"cannot resume {where}: {key} was {_short(was)} when the run began and is {_short(now)} now"
        )
        self.where, self.key, self.was, self.now = where, key, was, now

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.key, self.was, self.now)  # for the other processes of a run


def _short(value: Any) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`, complete or not at all."""
    with atomic_write(path, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU; nothing in the file is executed (``weights_only=True``).

    Raises ValueError naming the file where it is not a checkpoint of this version.
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no exception of its own for what is not a file of its
        raise ValueError(f"{os.fspath(path)}: not a readable checkpoint ({error})") from error
    if isinstance(state, dict) and state.get("format") == 1 and "optimizer" in state:
        state = _from_format_1(state)
    if not isinstance(state, dict) or set(state) != _KEYS:
        raise ValueError(f"{os.fspath(path)}: not a checkpoint of a training run")
    if state["format"] != FORMAT:
        raise ValueError(
            f"{os.fspath(path)}: checkpoint format {state['format']}, this version reads {FORMAT}"
        )
    return state


def _from_format_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """Runs that began before there were objectives and several processes can be continued."""
    return {
        **{key: value for key, value in state.items() if key != "optimizer"},
        "format": FORMAT,
        "identity": {**state["identity"], "processes": 1},
        "optimizers": {"loss": state["optimizer"]},
        "generators": [state["generators"]],
        "extras": {},
        "seconds_waiting": 0.0,
    }


def run_identity(
    settings: Mapping[str, Any], extra: Mapping[str, Any], model: nn.Module, data: tuple[Tensor, ...] | str
) -> dict[str, Any]:
    """Everything that decides a run's numbers, as one flat mapping of plain values; tensors by their SHA-256.

    Raises TypeError where `extra` holds what JSON does not, or a data set's fingerprint is not a string.
    """
    try:
        plain = json.loads(json.dumps(dict(extra)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"identity: expected plain values (numbers, strings, lists, mappings): {error}"
        ) from error
    identity: dict[str, Any] = dict(settings)
    identity.update({f"identity.{key}": value for key, value in plain.items()})
    for name, tensor in model.state_dict().items():
        identity[f"model.{name}"] = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if not isinstance(data, (str, tuple)):
        raise TypeError(f"data: expected fingerprint() to be a string, got {type(data).__name__}")
    if isinstance(data, str):
        identity["data"] = data
        return identity
    for number, tensor in enumerate(data):
        identity[f"data[{number}]"] = _fingerprint(tensor)
    return identity


def check_identity(where: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `ConfigMismatch` for the first key that differs."""
    for key in (*was, *(key for key in now if key not in was)):
        if was.get(key) != now.get(key):
            raise ConfigMismatch(where, key, was.get(key), now.get(key))


def _fingerprint(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(content.data).hexdigest()
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} sha256 {digest}"
