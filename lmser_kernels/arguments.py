"""What every operation asks of its arguments: checked, normalised and cast before anything runs.

All of it is plain tests on types, shapes and integers, so `torch.compile` and `torch.export` trace through
it with static and with dynamic sizes, and it costs a few microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = int | Sequence[int]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """`value` (an int, or a sequence of two) as `(vertical, horizontal)`, both at least `least`."""
    if type(value) is int:
        first = second = value
    elif _is_int(value):
        first = second = value  # type: ignore[assignment]
    elif isinstance(value, (tuple, list)) and len(value) == 2 and _is_int(value[0]) and _is_int(value[1]):
        first, second = value
    else:
        raise TypeError(f"{name} must be an int or a pair of ints; got {value!r}")
    if first < least or second < least:
        raise ValueError(f"{name} must be at least {least}; got {value!r}")
    return first, second


def _is_int(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def operands(
    names: tuple[str, ...], tensors: tuple[Tensor | None, ...], required: int
) -> tuple[Tensor | None, ...]:
    """The tensor arguments, cast under autocast, of one dtype, on one device; the first `required` not None.

    The first is the one that the others must agree with. Raises `TypeError` for what is not a tensor or has
    a dtype that is not one of float32, float64, bfloat16, float16 or not the first one's, `ValueError` for
    another device.
    """
    for position, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor) and (tensor is not None or position < required):
            raise TypeError(f"{names[position]} must be a tensor; got {type(tensor).__name__}")
    first = tensors[0]
    assert first is not None
    kind = "cpu" if first.is_cpu else first.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        tensors = _autocast(names, tensors, torch.get_autocast_dtype(kind))
        first = tensors[0]
        assert first is not None
    dtype, device = first.dtype, first.device
    if dtype not in DTYPES:
        raise TypeError(f"{names[0]} must be float32, float64, bfloat16 or float16; got {dtype}")
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is not None:
            if tensor.dtype != dtype:
                raise TypeError(f"{name} must have the dtype of {names[0]}, {dtype}; got {tensor.dtype}")
            if tensor.device != device:
                raise ValueError(f"{name} must be on the device of {names[0]}, {device}; got {tensor.device}")
    return tensors


def _autocast(
    names: tuple[str, ...], tensors: tuple[Tensor | None, ...], dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    # As F.conv2d under autocast: every floating argument but float64.
    cast: list[Tensor | None] = []
    for name, tensor in zip(names, tensors, strict=True):
        if (
            tensor is None
            or tensor.dtype == dtype
            or tensor.dtype not in DTYPES
            or tensor.dtype == torch.float64
        ):
            cast.append(tensor)
        elif name in ("gate", "input_gate"):
            # Only its sign matters, and a small positive value must not be rounded to zero.
            cast.append((tensor > 0).to(dtype))
        else:
            cast.append(tensor.to(dtype))
    return tuple(cast)


def four_dimensional(name: str, tensor: Tensor, meaning: str) -> None:
    if tensor.dim() != 4:
        raise ValueError(f"{name} must be 4-D, {meaning}; got shape {tuple(tensor.shape)}")


def same_shape(name: str, tensor: Tensor, expected: Sequence[int], of: str) -> None:
    """`tensor` has exactly the shape `expected`, that of `of`; nothing is broadcast."""
    if tensor.dim() != len(expected) or tensor.shape != torch.Size(expected):
        raise ValueError(f"{name} must have {of}, {tuple(expected)}; got {tuple(tensor.shape)}")


def per_channel(bias: Tensor, channels: int, of: str) -> None:
    if bias.dim() != 1 or bias.shape[0] != channels:
        raise ValueError(
            f"bias must have one value per channel of {of}, shape ({channels},); got {tuple(bias.shape)}"
        )
