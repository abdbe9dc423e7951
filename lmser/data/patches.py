"""Square patches over the strokes of a drawing (004, App. D.3).

"Masks were formed by selecting patches of diameter 3-6 uniformly, in random, possibly overlapping locations,
stopping when at least 25% of the white pixels have been masked." Here the side of a patch is uniform over 3,
4, 5 and 6 and its place uniform over those that lie inside the image. Black pixels under a patch are missing
as well. Over Omniglot as `load_omniglot` gives it 31 % of the white pixels are missing on average, from 25 to
43 % for nine in ten drawings (tests/test_data_omniglot.py with `--data`); 004 says 30 %, and 20 to 40 %.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmser.data._checks import check_generator

__all__ = ["patch_masks"]


def patch_masks(
    white: Tensor, generator: torch.Generator, *, share: float = 0.25, sides: tuple[int, int] = (3, 6)
) -> Tensor:
    """One mask for each image, bool `(N, 1, H, W)`, True where a pixel is missing.

    white: bool `(N, 1, H, W)`, the pixels that count, of a grey image those above the middle of its range.
    share: patches fall until at least this part of them is missing, and none after that. sides: the smallest
    and the largest side of a patch. generator: of the CPU; it decides the masks and goes on.

    100 drawings of 28x28 take a few milliseconds. Errors: TypeError or ValueError naming the argument for a
    mask of another dtype, shape or device, an image without a white pixel, a share outside (0, 1], sides that are
    not two numbers 1 <= smallest <= largest <= the shorter side, or a generator that is not the CPU's.
    """
    if white.dtype is not torch.bool or white.dim() != 4 or white.shape[1] != 1 or white.device.type != "cpu":
        raise ValueError(
            "patch_masks: white must be bool of shape (N, 1, H, W) on the CPU, "
            f"got {white.dtype} {tuple(white.shape)} on {white.device}"
        )
    count, _, height, width = white.shape
    _check_patches(share, sides, min(height, width))
    check_generator("patch_masks", generator)
    numbers = white.flatten(1).sum(dim=1)
    if not bool(numbers.all()):
        raise ValueError(f"patch_masks: image {int((numbers == 0).nonzero()[0])} of white has no white pixel")
    wanted = share * numbers.double()
    masks = torch.zeros((count, height, width), dtype=torch.bool)
    pending = torch.arange(count)
    rows, columns = torch.arange(height), torch.arange(width)
    while len(pending):
        # One patch for each image that is not done yet.
        draws = torch.rand((3, len(pending), 1), generator=generator, dtype=torch.float64)
        side = sides[0] + (draws[0] * (sides[1] - sides[0] + 1)).long()
        top, left = (draws[1] * (height - side + 1)).long(), (draws[2] * (width - side + 1)).long()
        inside_rows = (rows >= top) & (rows < top + side)
        inside_columns = (columns >= left) & (columns < left + side)
        masks[pending] |= inside_rows[:, :, None] & inside_columns[:, None, :]
        missing = (masks[pending] & white[pending, 0]).flatten(1).sum(dim=1)
        pending = pending[missing < wanted[pending]]
    return masks.unsqueeze(1)


def _check_patches(share: float, sides: tuple[int, int], shorter: int) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise TypeError(f"patch_masks: share must be a number, got {type(share).__name__}")
    if not 0 < share <= 1:
        raise ValueError(f"patch_masks: share must be above 0 and at most 1, got {share}")
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise TypeError(f"patch_masks: sides must be two ints, got {sides!r}")
    if not 1 <= sides[0] <= sides[1] <= shorter:
        raise ValueError(
            f"patch_masks: sides must be 1 <= smallest <= largest <= {shorter}, the image's shorter side, "
            f"got {sides}"
        )
