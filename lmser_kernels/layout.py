"""The memory format of a result, as every kernel chooses it: that of one of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_like_layout(like: Tensor, size: Sequence[int]) -> Tensor:
    """An empty tensor of `size`, channels-last where `like` is that and not plain contiguous as well."""
    channels_last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return torch.empty(
        size,
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
