"""Weights alone, as safetensors: for use elsewhere, not for resuming."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from lmser._atomic import atomic_write
from lmser._extras import require


def save_weights(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `model`'s ``state_dict`` to `path` (extra ``experiments``); `metadata` is stored in the header.

    The file appears by rename. Raises ImportError naming the extra where safetensors is not installed.
    """
    safetensors = require("safetensors.torch", extra="experiments")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = safetensors.save(state, metadata=dict(metadata) if metadata else None)
    with atomic_write(path, "wb") as file:
        file.write(content)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what `save_weights` wrote into `model`, on the device that `model` is on.

    Raises ValueError naming the file where it is no safetensors file or has other names or shapes than
    `model`; `model` is then unchanged. ImportError naming the extra where safetensors is not installed.
    """
    safetensors = require("safetensors.torch", extra="experiments")
    content = Path(path).read_bytes()
    try:
        loaded = safetensors.load(content)
    except Exception as error:  # its own exception type, which lives in a compiled module
        raise ValueError(f"{os.fspath(path)}: not a complete safetensors file ({error})") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    for name in dict.fromkeys(
        [*expected, *found]
    ):  # in the model's order, so that the message is always the same
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{os.fspath(path)}: {name} is {found.get(name, 'missing')} there and "
                f"{expected.get(name, 'not known')} in this {type(model).__name__}"
            )
    model.load_state_dict(loaded)
