"""Attention Transfer Network of PEN-Net (Zeng et al. 2019, Sec. 3.1): holes filled by what fits around them.

Affinities are found on a high-level feature map, where patches have meaning, and used one level below, where
they have texture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention_transfer(
    high: Tensor, low: Tensor, missing: Tensor, *, patch: int = 3, softmax_scale: float = 10.0
) -> Tensor:
    """Fill the missing positions of `low` with its patches outside the holes, weighted as `high` says.

        s_ji = <p_j, p_i> / (|p_j| |p_i|)             patch x patch of `high` around positions j and i
        a_ji = exp(c s_ji) / Σ_i' exp(c s_ji')        i, i' in the sources only, c = `softmax_scale`
        q_j = Σ_i a_ji r_i                            r_i: (patch + 1) x (patch + 1) of `low` behind p_i

    (Zeng et al. Eqs. 2-4.) A position of `high` is missing where any of the 2 x 2 positions of `low` behind it
    is; the sources are those whose p_i, and so r_i, hold none. A missing position of `low` becomes the mean
    over the q_j that reach it, with neither the zeros beyond the border counted; all others stay as they are,
    and so does everything in an image without a source.

    high:    ``(N, C, H, W)``; low: ``(N, C', 2H, 2W)``; missing: bool ``(N, 1, 2H, 2W)``
    patch:   odd; 1 for maps too small to hold a 3 x 3 neighbourhood beside a hole

    Returns a tensor shaped like `low`. Takes memory for N (H W)² affinities. Raises ValueError naming the
    argument.
    """
    if patch < 1 or patch % 2 == 0:
        raise ValueError(f"patch: expected an odd number, got {patch}")
    count, _, height, width = high.shape
    if tuple(low.shape[2:]) != (2 * height, 2 * width) or len(low) != count:
        raise ValueError(
            f"low: expected shape ({count}, C', {2 * height}, {2 * width}), got {tuple(low.shape)}"
        )
    if tuple(missing.shape) != (count, 1, *low.shape[2:]) or missing.dtype is not torch.bool:
        raise ValueError(
            f"missing: expected a bool tensor {(count, 1, *low.shape[2:])}, got {tuple(missing.shape)} of "
            f"{missing.dtype}"
        )
    reach = patch // 2
    holes = missing_above(missing).to(high.dtype)
    sources = (F.max_pool2d(holes, patch, 1, reach) == 0).reshape(count, 1, -1)
    has_source = sources.any(2, keepdim=True)

    patches = F.normalize(F.unfold(high, patch, padding=reach), dim=1, eps=1e-4)
    affinity = softmax_scale * torch.bmm(patches.transpose(1, 2), patches)
    # An image without a source keeps its affinities, which are then not used, so that none becomes NaN.
    weights = affinity.masked_fill(~sources & has_source, -torch.inf).softmax(2).transpose(1, 2)

    def pasted(x: Tensor) -> Tensor:
        found = F.unfold(x, patch + 1, padding=reach, stride=2).expand(count, -1, -1)
        return F.fold(torch.bmm(found, weights), x.shape[2:], patch + 1, padding=reach, stride=2)

    filled = pasted(low) / pasted(low.new_ones(1, 1, *low.shape[2:]))
    return torch.where(missing & has_source.unsqueeze(3), filled, low)


def missing_above(missing: Tensor) -> Tensor:
    """The missing positions of the level above: those with any missing one among their 2 x 2. Bool both."""
    return F.max_pool2d(missing.float(), 2) > 0


class AttentionTransfer(nn.Module):
    """`attention_transfer`, then dilated convolutions that fit what was pasted to its surroundings.

        relu(conv(filled, dilation d)),  d = 1, 2, 4, 8, concatenated: a quarter of the channels each

    (Zeng et al. Sec. 3.1.) channels: of the lower level, a multiple of 4; refine: whether the convolutions
    follow. ``forward(high, low, missing)`` as `attention_transfer`.
    """

    dilations = (1, 2, 4, 8)

    def __init__(self, channels: int, *, patch: int = 3, softmax_scale: float = 10.0, refine: bool = True):
        super().__init__()
        if channels % len(self.dilations):
            raise ValueError(f"channels: expected a multiple of {len(self.dilations)}, got {channels}")
        self.patch, self.softmax_scale = patch, softmax_scale
        self.groups = nn.ModuleList(
            nn.Conv2d(channels, channels // len(self.dilations), 3, padding=d, dilation=d)
            for d in (self.dilations if refine else ())
        )

    def forward(self, high: Tensor, low: Tensor, missing: Tensor) -> Tensor:
        filled = attention_transfer(high, low, missing, patch=self.patch, softmax_scale=self.softmax_scale)
        if not self.groups:
            return filled
        return torch.cat([F.relu(group(filled)) for group in self.groups], dim=1)
