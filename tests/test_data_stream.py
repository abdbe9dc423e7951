from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lmser.data import BadData, PhotoStream, load_photos, photo_streams
from lmser.data.photo_files import find_photos

Image = pytest.importorskip("PIL.Image", reason="images are decoded by pillow, of the extra 'experiments'")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A stand-in of 30 noisy JPEG files of different shapes."""
    draws = np.random.RandomState(0)
    (tmp_path / "scenes256").mkdir()
    for i in range(30):
        pixels = draws.randint(0, 256, (20 + i % 3, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scenes256" / f"zoo__{i:02}.jpg", quality=92)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_the_pixels_of_load_photos(scenes: Path, workers: int) -> None:
    options = {"train": 11, "seed": 4, "crop": 18}
    wanted = load_photos(scenes, "scenes", 16, **options)  # type: ignore[arg-type]
    for stream, whole in zip(photo_streams(scenes, "scenes", 16, **options), wanted, strict=True):  # type: ignore[arg-type]
        assert len(stream) == len(whole)
        assert stream.name == whole.name
        batches = list(DataLoader(stream, batch_size=4, num_workers=workers))
        assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
        assert torch.equal(torch.cat(batches), whole.images)


def test_indices(scenes: Path) -> None:
    stream, _ = photo_streams(scenes, "scenes", 16)
    assert torch.equal(stream[-1], stream[len(stream) - 1])
    assert stream[0].dtype == torch.uint8
    assert stream[0].shape == (3, 16, 16)
    for index in (27, -28):
        with pytest.raises(IndexError, match=rf"index must be in 0\.\.26, got {index}"):
            stream[index]


def test_pickled(scenes: Path) -> None:
    stream, _ = photo_streams(scenes, "scenes", 16)
    stream[0]
    copy = pickle.loads(pickle.dumps(stream))
    assert torch.equal(copy[3], stream[3])
    assert copy.fingerprint() == stream.fingerprint()


def test_fingerprint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    stream, _ = photo_streams(scenes, "scenes", 16)
    mark = stream.fingerprint()
    assert len(mark) == 64
    assert photo_streams(scenes, "scenes", 16)[0].fingerprint() == mark
    moved = tmp_path_factory.mktemp("elsewhere")
    os.rename(scenes / "scenes256", moved / "scenes256")
    assert photo_streams(moved, "scenes", 16)[0].fingerprint() == mark
    others = [
        photo_streams(moved, "scenes", 16)[1],
        photo_streams(moved, "scenes", 16, seed=1)[0],
        photo_streams(moved, "scenes", 16, train=26)[0],
        photo_streams(moved, "scenes", 15)[0],
        photo_streams(moved, "scenes", 16, crop=16)[0],
    ]
    assert len({mark, *(other.fingerprint() for other in others)}) == 1 + len(others)
    files = find_photos(moved, "scenes").train
    with open(files.path(5), "ab") as file:
        file.write(b"x")
    assert PhotoStream(files, 16).fingerprint() != mark
    files.path(5).unlink()
    with pytest.raises(FileNotFoundError, match=files.names[5]):
        PhotoStream(files, 16).fingerprint()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(scenes: Path, workers: int) -> None:
    stream, _ = photo_streams(scenes, "scenes", 16)
    path = stream.files.path(7)
    path.write_bytes(path.read_bytes()[:200])
    loader = DataLoader(stream, batch_size=9, num_workers=workers)
    with pytest.raises((BadData, RuntimeError), match=rf"{path.name}: the image cannot be decoded"):
        list(loader)
    path.unlink()
    with pytest.raises((FileNotFoundError, RuntimeError), match=path.name):
        list(loader)


def test_arguments(scenes: Path) -> None:
    files = find_photos(scenes, "scenes").train
    with pytest.raises(ValueError, match="PhotoStream: size must be at least 1, got 0"):
        PhotoStream(files, 0)
    with pytest.raises(ValueError, match="photo_streams: crop must be at least size"):
        photo_streams(scenes, "scenes", 16, crop=15)
    with pytest.raises(ValueError, match=r"train must be in 1\.\.27"):
        photo_streams(scenes, "scenes", 16, train=28)
    stream = PhotoStream(files, 21)
    with pytest.raises(BadData, match="its middle square is 20x20 and would have to be enlarged to 21x21"):
        [stream[i] for i in range(len(stream))]


def test_the_measurement_runs(scenes: Path) -> None:
    from bench.decoding import rate

    stream, _ = photo_streams(scenes, "scenes", 16)
    assert rate(stream, batch=4, workers=0, seconds=0.05) > 10
