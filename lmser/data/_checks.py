"""What functions that draw for every training batch ask of their arguments."""

from __future__ import annotations

import torch

__all__ = ["check_count", "check_generator"]


def check_generator(function: str, generator: torch.Generator) -> torch.Generator:
    """`generator` itself, or a TypeError or ValueError that names `function`.

    One of the CPU is asked for because a GPU's gives other numbers for the same seed, and other ones on
    another GPU.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"{function}: generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != "cpu":
        raise ValueError(f"{function}: generator must be on the CPU, got one on {generator.device}")
    return generator


def check_count(function: str, name: str, value: int) -> int:
    """`value` itself, or a TypeError or ValueError that names `function` and the argument `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{function}: {name} must be at least 1, got {value}")
    return value
