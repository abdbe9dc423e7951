from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lmser.data import MissingData, coverage_of, eyes_mask, load_photos, masks, point_masks
from lmser.data.masks import EYE_BOXES
from lmser.data.photo_files import DATA_SET_KEYS


def digest(masks: Tensor) -> str:
    return hashlib.sha256(np.packbits(masks.numpy()).tobytes()).hexdigest()


def blobs(mask: Tensor) -> list[int]:
    """The numbers of pixels of the 4-connected parts of one mask `(H, W)`, by growing each from a pixel."""
    left = {(y, x) for y, x in mask.nonzero().tolist()}
    found = []
    while left:
        edge, count = [left.pop()], 0
        while edge:
            y, x = edge.pop()
            count += 1
            for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    edge.append(neighbour)
        found.append(count)
    return found


def test_blobs_of_a_known_mask() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=torch.bool)
    assert sorted(blobs(mask)) == [3, 3]


@pytest.mark.parametrize("size", [16, 17, 48, 128, 256])
@pytest.mark.parametrize("coverage", [0.01, 0.25, 0.5, 0.9])
def test_coverage(size: int, coverage: float) -> None:
    found = point_masks(3, size, coverage, seed=size)
    assert found.shape == (3, 1, size, size)
    assert found.dtype == torch.bool
    # Dots fall until the share is reached: the last one goes beyond it by less than its own pixels.
    largest = max(1.0, math.pi * (2 * size / 64) ** 2)
    missing = found.flatten(1).sum(dim=1)
    wanted = math.ceil(coverage * size * size)
    assert bool((missing >= wanted).all())
    assert bool((missing < wanted + largest).all())
    torch.testing.assert_close(coverage_of(found), missing.double() / size**2, rtol=0, atol=0)


def test_the_default_is_a_quarter() -> None:
    found = coverage_of(point_masks(4, 256))
    assert bool(((found >= 0.25) & (found < 0.252)).all())


def test_the_points_are_small_and_dense() -> None:
    found = point_masks(2, 256, 0.25)
    for mask in found[:, 0]:
        sizes = sorted(blobs(mask))
        assert len(sizes) > 300
        assert sizes[len(sizes) // 2] < 40  # the typical point: 6 by 6 pixels
        assert sizes[-1] < 256 * 256 // 100  # points that touch make no hole of the picture's scale
        shares = torch.nn.functional.avg_pool2d(mask[None, None].double(), 64)
        assert bool((shares > 0.1).all())  # everywhere
        assert bool((shares < 0.45).all())


def test_the_dots_are_irregular() -> None:
    rows, columns, areas = masks._dots(256, 0)
    shapes = np.split(np.stack([rows, columns], axis=1), np.cumsum(areas)[:-1])
    assert len({shape.tobytes() for shape in shapes}) > 200
    assert all([0, 0] in shape.tolist() for shape in shapes)
    discs = 0
    for shape in shapes:
        lopsided = np.abs(shape.mean(axis=0)).max() > 0.25
        discs += not lopsided
        assert np.abs(shape).max() <= 6  # half of 4 off the middle, then 4
    assert discs < 128


def test_every_pixel_is_equally_likely() -> None:
    shares = point_masks(600, 16, 0.25).double().mean(dim=(0, 1))
    # 600 draws of probability 1/4 have a standard deviation of 0.018.
    assert float((shares - 0.25).abs().max()) < 5 * 0.018
    edge = torch.cat([shares[0], shares[-1], shares[:, 0], shares[:, -1]]).mean()
    assert abs(float(edge) - 0.25) < 0.01


def test_the_bits_are_pinned() -> None:
    # An experiment's masks must not change with a release or a machine.
    assert digest(point_masks(2, 32, 0.25, seed=3)) == PINNED_SMALL
    assert digest(point_masks(1, 256)) == PINNED_LARGE


PINNED_SMALL = "df5640323eb64b5d871ba85f942f912dc7c079e878a7da033d4b4fe67bd09d72"
PINNED_LARGE = "049e950c10edab7070b9a419eb4234c63e04bf1aa21f39d55799e31666d88713"


def test_a_pure_function() -> None:
    first = point_masks(5, 64, 0.3, seed=7)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(point_masks(5, 64, 0.3, seed=7), first)
    assert torch.equal(point_masks(2, 64, 0.3, seed=7), first[:2])
    assert not torch.equal(point_masks(5, 64, 0.3, seed=8), first)
    assert len({digest(mask[None]) for mask in first}) == 5
    # More of the picture is missing where more was asked for, and the same as well.
    assert bool((point_masks(5, 64, 0.4, seed=7) | ~first).all())


def test_the_first_estimate_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = point_masks(3, 64, 0.6, seed=1)
    calls = []
    draw = masks.words

    def fewer(count: int, seed: int, purpose: str) -> np.ndarray:
        calls.append(count)
        return draw(count, seed, purpose)

    monkeypatch.setattr(masks, "words", fewer)
    monkeypatch.setattr(masks.math, "log", lambda value: -0.01)
    assert torch.equal(point_masks(3, 64, 0.6, seed=1), wanted)
    assert len(calls) > 1 + 3  # the dots, then more than one try per mask


def test_eyes_mask() -> None:
    found = eyes_mask(128)
    assert found.shape == (1, 1, 128, 128)
    assert found.dtype == torch.bool
    rows, columns = found[0, 0].any(dim=1).nonzero(), found[0, 0].any(dim=0).nonzero()
    assert (int(rows.min()), int(rows.max()) + 1) == (44, 64)
    assert (int(columns.min()), int(columns.max()) + 1) == (31, 97)
    assert len(blobs(found[0, 0])) == 1
    assert set(EYE_BOXES) == set(DATA_SET_KEYS["faces"])
    for faces in EYE_BOXES:
        for size in (16, 128, 256):
            assert 0.06 < float(coverage_of(eyes_mask(size, faces))) < 0.1
            assert torch.equal(
                eyes_mask(size, faces), eyes_mask(size, faces).flip(3)
            )  # the middle of the face
    with pytest.raises(TypeError):
        EYE_BOXES["celeba"] = (0, 1, 0, 1)  # type: ignore[index]


def test_arguments() -> None:
    with pytest.raises(ValueError, match="point_masks: count must be at least 1, got 0"):
        point_masks(0, 64)
    with pytest.raises(TypeError, match="point_masks: count must be an int, got float"):
        point_masks(2.0, 64)  # type: ignore[arg-type]
    for size in (15, 4097):
        with pytest.raises(ValueError, match=rf"point_masks: size must be in 16\.\.4096, got {size}"):
            point_masks(1, size)
        with pytest.raises(ValueError, match=rf"eyes_mask: size must be in 16\.\.4096, got {size}"):
            eyes_mask(size)
    with pytest.raises(TypeError, match="point_masks: size must be an int, got tuple"):
        point_masks(1, (64, 64))  # type: ignore[arg-type]
    for coverage in (0.0, -0.1, 0.91, float("nan")):
        with pytest.raises(ValueError, match=f"coverage must be above 0 and at most 0.9, got {coverage}"):
            point_masks(1, 64, coverage)
    with pytest.raises(TypeError, match="coverage must be a number, got str"):
        point_masks(1, 64, "half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="point_masks: seed must not be negative, got -1"):
        point_masks(1, 64, seed=-1)
    with pytest.raises(ValueError, match="faces must be one of celeba, celeba-hq, celeba-like, got 'cats'"):
        eyes_mask(64, "cats")
    for wrong in (torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"masks must be bool of shape \(N, 1, H, W\), got"):
            coverage_of(wrong)


def harmonic_fill(images: Tensor, missing: Tensor) -> Tensor:
    """The images with every missing pixel the mean of its four neighbours, by 100 sweeps."""
    filled = torch.where(missing, images.mean(dim=(2, 3), keepdim=True), images)
    for _ in range(100):
        around = torch.nn.functional.pad(filled, (1, 1, 1, 1), mode="replicate")
        mean = (
            around[:, :, 1:-1, 2:]
            + around[:, :, 1:-1, :-2]
            + around[:, :, 2:, 1:-1]
            + around[:, :, :-2, 1:-1]
        ) / 4
        filled = torch.where(missing, mean, filled)
    return filled


def test_how_hard_the_default_is(request: pytest.FixtureRequest) -> None:
    """What `point_masks` says of its default."""
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("reads real photographs; give their folder with --data DIR")
    try:
        scenes = load_photos(data, "places2-like", 256, train=1, test=16).test.to_float()
    except MissingData as error:
        pytest.skip(str(error))
    error = (harmonic_fill(scenes, point_masks(len(scenes), 256)) - scenes).square().mean(dim=(1, 2, 3))
    assert 28.3 < float((-10 * error.log10()).mean()) < 28.7
