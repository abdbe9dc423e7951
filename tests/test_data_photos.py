from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import torch

from lmser.data import MissingData, photo_crops, photos, sample_photos

for module in ("PIL.Image", "sklearn", "skimage"):
    pytest.importorskip(module, reason="the photographs come with the extra 'experiments'")

NAMES = ("china", "flower", "astronaut", "chelsea", "coffee", "rocket")


def test_sample_photos() -> None:
    found = sample_photos()
    assert tuple(photo.name for photo in found) == NAMES
    for photo in found:
        assert photo.pixels.dtype == torch.uint8
        assert photo.pixels.shape[0] == 3
        assert photo.verified
        assert len(photo.pixels.unique()) > 200  # a photograph, not a drawing


def test_nothing_goes_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in [name for name in sys.modules if name.startswith("skimage.data")]:
        monkeypatch.delitem(sys.modules, name)
    sample_photos()
    assert not any(name.startswith("skimage.data") for name in sys.modules)


def test_crops() -> None:
    found = photo_crops(40, 32)
    assert found.images.shape == (40, 3, 32, 32)
    assert found.classes == NAMES
    assert set(found.labels.tolist()) == set(range(6))
    assert found.verified
    assert found.name == "40 32x32 crops of sample photographs, train regions"


def test_crops_are_seeded_and_a_longer_set_starts_like_a_shorter() -> None:
    few, many = photo_crops(5, 24, seed=7), photo_crops(20, 24, seed=7)
    assert torch.equal(few.images, many.images[:5])
    assert torch.equal(few.labels, many.labels[:5])
    assert not torch.equal(photo_crops(5, 24, seed=8).images, few.images)
    assert not torch.equal(photo_crops(5, 24, 7, "test").labels, few.labels)


def test_crops_are_the_same_on_every_machine() -> None:
    """Pinned: an experiment's data must not change with a release or a machine."""
    assert photo_crops(16, 96, 0, "train").sha256() == PINNED["train"]
    assert photo_crops(16, 96, 0, "test").sha256() == PINNED["test"]


PINNED = {
    "train": "3732dfec6fbd48bdfa76fdd52c2cccb90bf9884ec2ef2b3d2add97efefdcc1f9",
    "test": "aa79891351739ebfc88b3f22865f84d204c4ce615c15bc5aaa9edd2f340f7ca5",
}


def coded_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every photograph by one whose pixels spell photograph, column and row."""
    coded = []
    for number, photo in enumerate(sample_photos()):
        _, height, width = photo.pixels.shape
        assert width < 6 * 256
        column = torch.arange(width)
        pixels = torch.empty_like(photo.pixels)
        pixels[0] = (column % 256).to(torch.uint8)
        pixels[1] = ((column // 256) + 6 * number).to(torch.uint8)
        pixels[2] = (torch.arange(height) % 256).to(torch.uint8)[:, None]
        coded.append(photos.Photo(photo.name, photo.package, pixels, photo.verified))
    monkeypatch.setattr(photos, "sample_photos", lambda: tuple(coded))


@pytest.mark.parametrize("size", [1, 32, 96, 136])
def test_no_pixel_is_in_both_splits(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    widths = [photo.pixels.shape[2] for photo in sample_photos()]
    coded_photos(monkeypatch)
    seen: dict[str, list[set[int]]] = {}
    for split in ("train", "test"):
        found = photo_crops(300, size, 1, split)  # type: ignore[arg-type]
        seen[split] = [set() for _ in NAMES]
        mirrored = 0
        for image, label in zip(found.images.long(), found.labels.tolist(), strict=True):
            assert bool((image[1] // 6 == label).all())
            columns = image[0] + 256 * (image[1] % 6)
            assert bool(
                (columns == columns[:1]).all()
            )  # upright: a row of the crop is a row of the photograph
            steps = set(columns[0].diff().tolist())
            assert steps <= {1} or steps <= {-1}
            mirrored += steps == {-1}
            assert set(image[2].diff(dim=0).unique().tolist()) <= {1, -255}
            seen[split][label] |= set(columns[0].tolist())
        assert size == 1 or 100 < mirrored < 200
    for width, train, test in zip(widths, seen["train"], seen["test"], strict=True):
        assert train
        assert test
        assert max(train) < width * 7 // 10 <= min(test)
        # Crops reach nearly everywhere in their region.
        assert min(train) < 20
        assert max(test) > width - 20


def test_arguments() -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        photo_crops(1, 8, split="valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        photo_crops(0, 8)
    with pytest.raises(ValueError, match="size must be at least 1, got -3"):
        photo_crops(1, -3)
    with pytest.raises(ValueError, match="size must be at most 136, the narrowest test region, got 137"):
        photo_crops(1, 137)
    with pytest.raises(TypeError, match="size must be an int, got float"):
        photo_crops(1, 8.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        photo_crops(1, 8, -1)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"skimage.*lmser\[experiments\]"):
        sample_photos()


def test_a_package_that_comes_without_its_photographs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(photos, "_folder_of", lambda package: tmp_path / package)
    with pytest.raises(MissingData, match="the installed sklearn comes without it"):
        sample_photos()


def test_other_pixels_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for bundled in photos._BUNDLED:
        path = tmp_path / bundled.package / bundled.file
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", bundled.size[::-1], (1, 2, 3)).save(path)
    monkeypatch.setattr(photos, "_folder_of", lambda package: tmp_path / package)
    assert not any(photo.verified for photo in sample_photos())
    assert photo_crops(2, 8).verified is False
