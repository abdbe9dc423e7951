"""The memory format of a result, as every kernel chooses it: that of one of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(t: Tensor) -> bool:
    """Whether `t` asks for a channels-last result: it is that, and not plainly contiguous as well.

    Of one channel every layout is the same memory, and the stride of the channel axis tells what was meant.
    Maps of one pixel are plainly contiguous.
    """
    if t.shape[2] * t.shape[3] == 1 or not t.is_contiguous(memory_format=torch.channels_last):
        return False
    if t.shape[1] == 1:
        return t.stride(1) == 1
    return not t.is_contiguous()


def telling(source: Tensor, *joins: Tensor | None) -> Tensor:
    """The first of `source` and what joins it whose layout can be told; `source` where there is none.

    It cannot of a map of one pixel, nor of one channel that lies plainly contiguous.
    """
    for t in (source, *joins):
        if t is not None and t.shape[2] * t.shape[3] != 1 and (t.shape[1] != 1 or t.stride(1) == 1):
            return t
    return source


def empty_like_layout(like: Tensor, size: Sequence[int]) -> Tensor:
    """An empty tensor of `size`, channels-last where `like` is that (see `is_channels_last`)."""
    return torch.empty(
        size,
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if is_channels_last(like) else torch.contiguous_format,
    )


def channels_last(tensor: Tensor) -> Tensor:
    """`tensor` in the kernels' own layout.

    An operation answers in the layout of its argument, but maps of one pixel and of one channel are in every
    layout at once, and what comes after them may be in the other: hence this is asked after every operation,
    and is a copy only there.
    """
    if tensor.shape[2] == 1 and tensor.shape[3] == 1:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
