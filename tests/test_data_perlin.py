"""Masks by Perlin noise: the noise against its definition, exact shares, pinned bits."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lmser.data import perlin, perlin_masks
from lmser.data.perlin import perlin_noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digest(masks: Tensor) -> str:
    return hashlib.sha256(np.packbits(masks.numpy()).tobytes()).hexdigest()


def by_definition(gradients: Tensor, height: int, width: int, frequency: int) -> Tensor:
    """Perlin's construction for one picture, pixel by pixel; `gradients` are (down, right) at the lattice."""
    noise = torch.empty(height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            y, x = (row + 0.5) * frequency / height, (column + 0.5) * frequency / width
            top, left = math.floor(y), math.floor(x)
            v, u = y - top, x - left
            corners = []
            for below in (0, 1):
                for beside in (0, 1):
                    down, right = gradients[top + below, left + beside].tolist()
                    corners.append(down * (v - below) + right * (u - beside))
            fade_y, fade_x = 3 * v**2 - 2 * v**3, 3 * u**2 - 2 * u**3
            above = corners[0] + fade_x * (corners[1] - corners[0])
            under = corners[2] + fade_x * (corners[3] - corners[2])
            noise[row, column] = above + fade_y * (under - above)
    return noise


@pytest.mark.parametrize(("height", "width", "frequency"), [(28, 28, 7), (32, 32, 7), (9, 14, 4), (5, 5, 5)])
def test_the_noise_is_perlins(height: int, width: int, frequency: int) -> None:
    found = perlin_noise(2, (height, width), generator(1), frequency=frequency)
    assert found.shape == (2, 1, height, width)
    assert found.dtype == torch.int64
    points = frequency + 1
    chosen = torch.randint(0, 16, (2, points, points), generator=generator(1))
    for picture in range(2):
        expected = by_definition(perlin._GRADIENTS[chosen[picture]], height, width, frequency)
        # Weights and distances are rounded to 2^-16.
        torch.testing.assert_close(found[picture, 0].double() / 2**32, expected, rtol=0, atol=1e-3)


def test_the_gradients() -> None:
    vectors = perlin._GRADIENTS
    assert vectors.shape == (16, 2)
    assert len({tuple(vector) for vector in vectors.tolist()}) == 16
    assert (vectors**2).sum(dim=1).tolist() == [65.0] * 16
    angles = sorted(math.degrees(math.atan2(down, right)) % 360 for down, right in vectors.tolist())
    gaps = [after - before for before, after in zip(angles, [*angles[1:], angles[0] + 360], strict=True)]
    assert 14 < min(gaps) <= max(gaps) < 31


@pytest.mark.parametrize(
    ("size", "share", "missing"),
    [(28, 1 / 3, 261), (32, 0.4, 410), ((9, 14), 0.5, 63), (8, 0.99, 63), (8, 0.01, 1)],
)
def test_the_share_is_exact(size: int | tuple[int, int], share: float, missing: int) -> None:
    masks = perlin_masks(50, size, share, generator())
    height, width = (size, size) if isinstance(size, int) else size
    assert masks.shape == (50, 1, height, width)
    assert masks.dtype == torch.bool
    assert masks.flatten(1).sum(dim=1).tolist() == [missing] * 50


def test_the_lowest_noise_is_missing() -> None:
    noise = perlin_noise(20, 28, generator(2)).flatten(1)
    masks = perlin_masks(20, 28, 1 / 3, generator(2)).flatten(1)
    highest = torch.where(masks, noise, noise.min()).amax(dim=1)
    lowest_left = torch.where(masks, noise.max(), noise).amin(dim=1)
    assert bool((highest <= lowest_left).all())


def test_equal_noise_is_ordered_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.zeros(3, 1, 4, 5, dtype=torch.int64)
    flat[1, 0, 3, 4] = -1
    flat[2, 0, 0, 0] = 1
    monkeypatch.setattr(perlin, "perlin_noise", lambda *arguments, **options: flat)
    found = perlin_masks(3, (4, 5), 0.25, generator()).flatten(1)
    assert [mask.nonzero().flatten().tolist() for mask in found] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 19],
        [1, 2, 3, 4, 5],
    ]


def test_the_bits_are_pinned() -> None:
    # An experiment's masks must not change with a release or a machine.
    assert digest(perlin_masks(3, 28, 1 / 3, generator(5))) == PINNED_MNIST
    assert digest(perlin_masks(3, 32, 0.4, generator(6))) == PINNED_CIFAR10


PINNED_MNIST = "8146902ce541b971634f65a3088cd73b24e57212cb24d9cf1b23c5e2a99b1c3b"
PINNED_CIFAR10 = "f64efa469d97df657e1b91d4d2774b2c0a33124bb41ff4bf3dd4ad0a547d7a62"


def test_holes_are_coherent() -> None:
    masks = perlin_masks(200, 28, 1 / 3, generator(3))
    beside = (masks[..., 1:] & masks[..., :-1]).double().mean() / masks.double().mean()
    assert float(beside) > 0.65  # of independent pixels: 1/3
    # Neither axis is favoured.
    under = (masks[..., 1:, :] & masks[..., :-1, :]).double().mean() / masks.double().mean()
    assert abs(float(beside - under)) < 0.02


def test_where_pixels_are_missing() -> None:
    """What the module says of pixels beside lattice points."""
    shares = perlin_masks(6000, 28, 1 / 3, generator(4)).double().mean(dim=(0, 1))
    assert 0.25 < float(shares.min()) < 0.29
    assert 0.36 < float(shares.max()) < 0.39


def test_a_function_of_the_generator_alone() -> None:
    first = perlin_masks(4, 28, 1 / 3, generator(7))
    torch.manual_seed(99)
    stream = generator(7)
    assert torch.equal(perlin_masks(4, 28, 1 / 3, stream), first)
    assert not torch.equal(perlin_masks(4, 28, 1 / 3, stream), first)
    assert not torch.equal(perlin_masks(4, 28, 1 / 3, generator(8)), first)
    assert len({digest(mask) for mask in first}) == 4
    # More is missing where more was asked for, and the same as well.
    assert bool((perlin_masks(4, 28, 0.5, generator(7)) | ~first).all())


def test_large_pictures() -> None:
    masks = perlin_masks(1, (512, 300), 0.25, generator(), frequency=8)
    assert int(masks.sum()) == 512 * 300 // 4
    rows = perlin._basis(4096, 7)[0]
    assert rows.sum(dim=1).unique().tolist() == [65536.0]


def test_arguments() -> None:
    with pytest.raises(ValueError, match="perlin_noise: count must be at least 1, got 0"):
        perlin_masks(0, 28, 0.5, generator())
    for size in (0, 4097, (28, 0)):
        with pytest.raises(ValueError, match=r"perlin_noise: sides must be in 1\.\.4096, got"):
            perlin_masks(1, size, 0.5, generator())
    for wrong in (2.0, (28,), (28, 28, 28), (28, 2.0), True):
        with pytest.raises(TypeError, match=r"perlin_noise: size must be an int or \(height, width\), got"):
            perlin_masks(1, wrong, 0.5, generator())  # type: ignore[arg-type]
    for share in (0.0, 1.0, -0.1, float("nan"), 0.0001, 0.9999):
        with pytest.raises(ValueError, match="perlin_masks: share must be in"):
            perlin_masks(1, 28, share, generator())
    with pytest.raises(TypeError, match="perlin_masks: share must be a number, got str"):
        perlin_masks(1, 28, "third", generator())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frequency must be at most the shorter side, 28, got 29"):
        perlin_masks(1, (28, 40), 0.5, generator(), frequency=29)
    with pytest.raises(TypeError, match=r"perlin_noise: generator must be a torch\.Generator, got int"):
        perlin_masks(1, 28, 0.5, 3)  # type: ignore[arg-type]
