"""The bar task: its images, what agrees with evidence, and evidence for exactly one image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmser.data.bars import bar_images, bar_trials, consistent, unique_evidence, unseen_bars


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def completions(image: Tensor, observed: Tensor) -> list[int]:
    """By the definition: the numbers of the images that are equal to `image` at every observed pixel."""
    images = bar_images()
    pixels = observed[0].nonzero().tolist()
    return [
        number
        for number in range(20)
        if all(float(images[number, 0, y, x]) == float(image[0, y, x]) for y, x in pixels)
    ]


def mask(*rows: str) -> Tensor:
    return torch.tensor([[[character == "?" for character in row] for row in rows]]).logical_not()


def test_the_images() -> None:
    images = bar_images()
    assert images.shape == (20, 1, 5, 5)
    assert images.dtype == torch.float32
    assert bar_images(torch.float64).dtype == torch.float64
    assert set(images.unique().tolist()) == {-1.0, 1.0}
    assert len({tuple(image.flatten().tolist()) for image in images}) == 20
    assert torch.equal(images[10:], images[:10].transpose(2, 3))
    for image in images[:10]:
        rows = image[0].sum(dim=1)
        assert sorted(rows.tolist()) == [-5, -5, -5, 5, 5]
    assert images[0, 0, :, 0].tolist() == [1, 1, -1, -1, -1]
    assert images[9, 0, :, 0].tolist() == [-1, -1, -1, 1, 1]
    with pytest.raises(ValueError, match=r"dtype must be a floating type, got torch\.int8"):
        bar_images(torch.int8)


def test_every_trial_has_exactly_one_completion() -> None:
    images = bar_images()
    index, observed = bar_trials(10_000, generator())
    assert index.shape == (10_000,)
    assert observed.shape == (10_000, 1, 5, 5)
    assert observed.dtype == torch.bool
    # Each of the 20 images against every trial, pixel by pixel and without `consistent`.
    agree = ((images[None] == images[index][:, None]) | ~observed[:, None]).flatten(2).all(dim=2)
    assert bool((agree.sum(dim=1) == 1).all())
    assert torch.equal(agree.int().argmax(dim=1), index)
    assert bool((consistent(images[index], observed) == 1).all())
    for trial in range(20):
        number = int(index[trial])
        assert completions(images[number], observed[trial]) == [number]


def test_the_distribution() -> None:
    index, observed = bar_trials(10_000, generator(1))
    counts = torch.bincount(index, minlength=20)
    assert int((counts - 500).abs().max()) < 110  # 5 standard deviations of 22
    numbers = torch.bincount(observed.flatten(1).sum(dim=1), minlength=26)
    assert numbers[:3].tolist() == [0, 0, 0]  # two pixels never say which two bars
    # With so many observed, nothing is rejected: all numbers are equally likely.
    assert int(numbers[20:].max() - numbers[20:].min()) < 150
    # Bars that nothing was seen of, and images of which no white pixel was.
    unseen = torch.bincount(unseen_bars(index, observed), minlength=3)
    assert int(unseen[1]) > 300
    assert int(unseen[2]) > 10


def test_uneven_evidence_has_a_share_for_each_row_or_column() -> None:
    index = torch.arange(20).repeat(500)
    even = unique_evidence(index, generator(2))
    assert torch.equal(unique_evidence(index, generator(2), uneven=0.0), even)
    uneven = unique_evidence(index, generator(2), uneven=1.0)
    assert bool((consistent(bar_images()[index], uneven) == 1).all())

    def contrasts(observed: torch.Tensor, dim: int) -> int:
        """How many have a whole row (or column) beside one that at most a pixel is seen of."""
        lines = observed[:, 0].sum(dim)
        return int(((lines.amax(1) == 5) & (lines.amin(1) <= 1)).sum())

    for dim in (1, 2):
        assert contrasts(uneven, dim) > 2 * contrasts(even, dim)
    assert abs(contrasts(uneven, 1) - contrasts(uneven, 2)) < 200  # either way equally often
    half = unique_evidence(index, generator(2), uneven=0.5)
    assert contrasts(even, 1) < contrasts(half, 1) < contrasts(uneven, 1)


def test_consistent_by_hand() -> None:
    image = bar_images()[1]  # rows 0 and 2
    cases = {
        # Nothing is seen: all 20 agree.
        ("?????", "?????", "?????", "?????", "?????"): 20,
        # One white pixel: 4 pairs of rows and 4 pairs of columns.
        ("x????", "?????", "?????", "?????", "?????"): 8,
        # White in rows 0 and 2 of one column: rows 0 and 2, or column 0 and any other.
        ("x????", "?????", "x????", "?????", "?????"): 5,
        # Both bars, each at two pixels.
        ("xx???", "?????", "xx???", "?????", "?????"): 2,
        ("xxx??", "?????", "x????", "?????", "?????"): 1,
        # No pixel of row 2 is seen: the other three rows are black.
        ("xx???", "x????", "?????", "x????", "x????"): 1,
        # Neither bar is seen: black at three heights, and at every column.
        ("?????", "xx???", "?????", "??xx?", "????x"): 1,
    }
    for rows, expected in cases.items():
        observed = mask(*rows)
        assert len(completions(image, observed)) == expected, rows
        assert consistent(image[None], observed[None]).tolist() == [expected], rows
    assert unseen_bars(
        torch.tensor([1, 1]), torch.stack([mask(*rows) for rows in list(cases)[-2:]])
    ).tolist() == [1, 2]


def test_an_ambiguous_one_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    ambiguous = mask("xx???", "?????", "xx???", "?????", "?????")
    unique = mask("xxx??", "?????", "x????", "?????", "?????")
    draws = [
        torch.cat([torch.full((1, 1), 0.5), torch.where(observed.reshape(1, 25), 0.2, 0.8)], dim=1)
        for observed in (ambiguous, unique)
    ]
    monkeypatch.setattr(torch, "rand", lambda size, generator: draws.pop(0))
    assert torch.equal(unique_evidence(torch.tensor([1]), generator())[0], unique)
    assert not draws


def test_evidence_of_other_values() -> None:
    image, observed = bar_images()[:1], torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert consistent(0.999 * image, observed).tolist() == [1]
    assert consistent(image.double(), observed).tolist() == [1]
    assert consistent(-image, observed).tolist() == [0]  # three bars: no image at all
    hidden = torch.where(observed & (image > 0), image, torch.nan)
    assert consistent(hidden, image > 0).tolist() == [1]  # what is not observed does not matter


def test_unseen_bars_of_columns() -> None:
    index = torch.tensor([0, 10])  # rows 0 and 1; columns 0 and 1
    observed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    assert unseen_bars(index, observed).tolist() == [0, 0]
    observed[:, :, :, 0] = False
    assert unseen_bars(index, observed).tolist() == [0, 1]
    observed[:, :, :, 1] = False
    assert unseen_bars(index, observed).tolist() == [0, 2]


def test_a_pure_function_of_the_generator() -> None:
    first = bar_trials(50, generator(3))
    torch.manual_seed(5)
    again, other = bar_trials(50, generator(3)), bar_trials(50, generator(4))
    assert torch.equal(first.observed, again.observed)
    assert torch.equal(first.answer, again.answer)
    assert not torch.equal(first.observed, other.observed)
    stream = generator(3)
    bar_trials(50, stream)
    assert not torch.equal(bar_trials(50, stream).observed, first.observed)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="bar_trials: count must be at least 1, got 0"):
        bar_trials(0, generator())
    with pytest.raises(TypeError, match="bar_trials: count must be an int, got float"):
        bar_trials(2.0, generator())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"bar_trials: generator must be a torch\.Generator, got int"):
        bar_trials(1, 0)  # type: ignore[arg-type]
    for index in (torch.tensor([20]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor(3)):
        with pytest.raises(ValueError, match="unique_evidence: index must"):
            unique_evidence(index, generator())
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="unique_evidence: uneven must be between 0 and 1"):
            unique_evidence(torch.tensor([0]), generator(), uneven=share)
    observed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"evidence must have the shape of observed, \(2, 1, 5, 5\), got \(2, 25\)"
    ):
        consistent(torch.ones(2, 25), observed)
    for wrong in (observed.float(), observed.flatten(1)):
        with pytest.raises(
            ValueError, match=r"consistent: observed must be bool of shape \(N, 1, 5, 5\), got"
        ):
            consistent(torch.ones(2, 1, 5, 5), wrong)
    with pytest.raises(ValueError, match="index has 1 entries, observed 2"):
        unseen_bars(torch.tensor([0]), observed)
