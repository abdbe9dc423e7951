"""Square patches over drawings: their sides, where they end, and when they stop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmser.data import patch_masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strokes(count: int = 60) -> Tensor:
    """A cross in the middle and a line at the left edge."""
    white = torch.zeros(count, 1, 28, 28, dtype=torch.bool)
    white[..., 12:15, 4:24] = True
    white[..., 4:24, 12:15] = True
    white[..., 8:20, 0] = True
    return white


def missing(masks: Tensor, white: Tensor) -> Tensor:
    return (masks & white).flatten(1).sum(dim=1)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.9, 1.0])
def test_the_share_is_reached(share: float) -> None:
    white = strokes()
    masks = patch_masks(white, generator(), share=share)
    assert masks.shape == white.shape
    assert masks.dtype == torch.bool
    wanted = share * int(white[0].sum())
    assert bool((missing(masks, white) >= wanted).all())
    # The last patch was needed: it alone covers what goes beyond, 36 pixels at most.
    assert bool((missing(masks, white) - 36 < wanted).all())


def test_the_last_patch_was_needed() -> None:
    """With one white pixel, patches fall until one is on it, and that is the last."""
    white = torch.zeros(300, 1, 12, 12, dtype=torch.bool)
    white[..., 6, 6] = True
    masks = patch_masks(white, generator(), sides=(3, 3))
    assert bool(masks[..., 6, 6].all())
    # 9 of the 100 places are over the pixel, so one in 11 falls is the first: many masks are one patch alone.
    single = masks.flatten(1).sum(dim=1) == 9
    assert 10 < int(single.sum()) < 60
    areas = masks.double().mean(dim=0)[0]
    assert bool((areas > 0).all())  # no pixel is out of reach


@pytest.mark.parametrize("side", [3, 6])
def test_patches_are_squares_inside(side: int) -> None:
    white = torch.ones(200, 1, 9, 11, dtype=torch.bool)
    masks = patch_masks(white, generator(), share=0.001, sides=(side, side))[:, 0]
    for mask in masks:
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        assert int(mask.sum()) == side * side
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == side - 1
    # Every place inside is taken.
    tops = {int(mask.any(dim=1).int().argmax()) for mask in masks}
    lefts = {int(mask.any(dim=0).int().argmax()) for mask in masks}
    assert tops == set(range(9 - side + 1))
    assert lefts == set(range(11 - side + 1))


def test_sides_are_equally_likely() -> None:
    white = torch.ones(4000, 1, 28, 28, dtype=torch.bool)
    areas = patch_masks(white, generator(), share=0.001).flatten(1).sum(dim=1)
    counts = [int((areas == side * side).sum()) for side in (3, 4, 5, 6)]
    assert sum(counts) == 4000
    assert all(abs(count - 1000) < 140 for count in counts)  # 5 standard deviations of 27


def test_a_function_of_the_generator_and_the_images() -> None:
    white = strokes(5)
    first = patch_masks(white, generator(3))
    torch.manual_seed(1)
    stream = generator(3)
    assert torch.equal(patch_masks(white, stream), first)
    assert not torch.equal(patch_masks(white, stream), first)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(white, strokes(5))
    expected = [int((mask * torch.arange(784)).sum()) for mask in first.flatten(1).long()]
    assert expected == PINNED


PINNED = [49582, 39042, 14517, 36235, 73265]


def test_arguments() -> None:
    white = strokes(3)
    for wrong in (white.float(), white[:, 0], white.expand(3, 2, 28, 28)):
        with pytest.raises(
            ValueError, match=r"patch_masks: white must be bool of shape \(N, 1, H, W\) on the CPU"
        ):
            patch_masks(wrong, generator())
    white[1] = False
    with pytest.raises(ValueError, match="image 1 of white has no white pixel"):
        patch_masks(white, generator())
    for share in (0.0, 1.1, -0.2, float("nan")):
        with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
            patch_masks(strokes(1), generator(), share=share)
    with pytest.raises(TypeError, match="share must be a number, got str"):
        patch_masks(strokes(1), generator(), share="half")  # type: ignore[arg-type]
    for sides in ((0, 3), (4, 3), (3, 29)):
        with pytest.raises(ValueError, match=r"sides must be 1 <= smallest <= largest <= 28, .*, got"):
            patch_masks(strokes(1), generator(), sides=sides)
    with pytest.raises(TypeError, match="sides must be two ints"):
        patch_masks(strokes(1), generator(), sides=(3.0, 6))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"patch_masks: generator must be a torch\.Generator, got NoneType"):
        patch_masks(strokes(1), None)  # type: ignore[arg-type]
