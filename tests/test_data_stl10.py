from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lmser.data import BadData, MissingData, Split, load_stl10
from lmser.data.stl10 import read_stl10_images, read_stl10_labels

COUNT, IMAGE = 5000, 3 * 96 * 96


def label_of(index: int) -> int:
    return index * 7 % 10  # from 0; 500 of each


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original format, made up: the first two bytes of image i spell i, one pixel marks its place.

    The file is sparse: it takes a few megabytes on the disk, not 138.
    """
    folder = tmp_path_factory.mktemp("stl10")
    with open(folder / "train_X.bin", "wb") as file:
        file.truncate(COUNT * IMAGE)
        for i in range(COUNT):
            file.seek(i * IMAGE)
            file.write(bytes([i // 256, i % 256]))
            file.seek(i * IMAGE + 2 * 96 * 96 + 40 * 96 + 5)  # blue, column 40, row 5: columns come first
            file.write(b"\xff")
    labels = np.array([label_of(i) + 1 for i in range(COUNT)], dtype=np.uint8)
    (folder / "train_y.bin").write_bytes(labels.tobytes())
    return folder


def numbers(images: torch.Tensor) -> list[int]:
    """Which images these are: byte 0 is at row 0, column 0; byte 1 is one row below."""
    return (images[:, 0, 0, 0].long() * 256 + images[:, 0, 1, 0].long()).tolist()


def test_the_axes_of_the_binary_format(binary: Path) -> None:
    image = load_stl10(binary, 1).train.images[0]
    assert image.shape == (3, 96, 96)
    assert int(image[2, 5, 40]) == 255
    assert int(image[2, 40, 5]) == 0


def test_split_of_4_to_1(binary: Path) -> None:
    train, test = load_stl10(binary)
    assert train.images.shape == (4000, 3, 96, 96)
    assert test.images.shape == (1000, 3, 96, 96)
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert sorted(numbers(train.images) + numbers(test.images)) == list(range(COUNT))
    for part in (train, test):
        assert [label_of(i) for i in numbers(part.images)] == part.labels.tolist()
        assert part.classes[9] == "truck"
        assert part.verified is False
        assert part.images.is_contiguous()
    assert "original binary format" in train.name


def test_subsets_are_seeded_and_nested(binary: Path) -> None:
    ten, hundred = load_stl10(binary, 10), load_stl10(binary, 100)
    assert ten.train.labels.bincount().tolist() == [10] * 10
    assert set(numbers(ten.train.images)) < set(numbers(hundred.train.images))
    assert torch.equal(ten.test.images, hundred.test.images)
    other = load_stl10(binary, 10, seed=1)
    assert numbers(other.train.images) != numbers(ten.train.images)
    assert numbers(other.test.images) != numbers(ten.test.images)
    assert numbers(load_stl10(binary, 10).train.images) == numbers(ten.train.images)
    # Pinned: an experiment's data must not change with a release or a machine.
    assert numbers(load_stl10(binary, 1).train.images) == PINNED


PINNED = [2440, 3333, 2966, 3589, 1682, 2295, 1458, 3931, 2084, 4217]


@pytest.mark.parametrize("name", ["stl10_binary", "stl10", "STL10"])
def test_places(binary: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(binary)
    assert len(load_stl10(tmp_path, 1).train) == 10


@pytest.mark.parametrize("change", [-1, 1, -IMAGE, IMAGE])
def test_image_files_of_another_length(tmp_path: Path, change: int) -> None:
    with open(tmp_path / "train_X.bin", "wb") as file:
        file.truncate(COUNT * IMAGE + change)
    (tmp_path / "train_y.bin").write_bytes(bytes([1]) * COUNT)
    what = "it is truncated" if change < 0 else "it is not this file"
    with pytest.raises(
        BadData, match=rf"train_X.bin: {what}: {COUNT * IMAGE + change} bytes, expected 138240000"
    ):
        load_stl10(tmp_path)


def test_label_files(binary: Path, tmp_path: Path) -> None:
    (tmp_path / "train_X.bin").symlink_to(binary / "train_X.bin")
    with pytest.raises(MissingData, match=r"train_X\.bin is there but train_y\.bin beside it is not"):
        load_stl10(tmp_path)
    labels = bytearray((binary / "train_y.bin").read_bytes())
    path = tmp_path / "train_y.bin"
    path.write_bytes(labels[:-1])
    with pytest.raises(BadData, match=r"train_y\.bin: it is truncated: 4999 bytes, expected 5000"):
        load_stl10(tmp_path)
    for wrong in (0, 11):
        path.write_bytes(bytes([*labels[:-1], wrong]))
        with pytest.raises(BadData, match=r"labels must lie in 1\.\.10, found"):
            load_stl10(tmp_path)
    path.write_bytes(bytes([*labels[:-1], labels[-1] % 10 + 1]))
    with pytest.raises(BadData, match="expected 500 labels of each class"):
        load_stl10(tmp_path)


def test_readers_of_single_files(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (10, 3, 96, 96)).astype(np.uint8)
    (tmp_path / "x.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
    (tmp_path / "y.bin").write_bytes(bytes(range(1, 11)))
    np.testing.assert_array_equal(read_stl10_images(tmp_path / "x.bin", 10), pixels)
    np.testing.assert_array_equal(read_stl10_labels(tmp_path / "y.bin", 10), np.arange(10))


def test_arguments(binary: Path, tmp_path: Path) -> None:
    for per_class in (0, 401):
        with pytest.raises(ValueError, match=rf"per_class must be in 1\.\.400, got {per_class}"):
            load_stl10(binary, per_class)
    with pytest.raises(TypeError, match="per_class must be an int, got float"):
        load_stl10(binary, 10.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must not be negative"):
        load_stl10(binary, 1, seed=-1)
    with pytest.raises(MissingData) as caught:
        load_stl10(tmp_path)
    for part in (str(tmp_path), "train_X.bin", "train/CLASS", "stl10_binary.tar.gz"):
        assert part in str(caught.value)


def stand_in(folder: Path, train: int = 6, test: int = 2, side: int = 96) -> Path:
    image = pytest.importorskip(
        "PIL.Image", reason="images are decoded by pillow, of the extra 'experiments'"
    )
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(("fish", "church", "horn")):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                value = 100 * (part == "test") + 10 * i + label
                image.new("RGB", (side, side), (value,) * 3).save(folder / part / name / f"{i}.png")
    return folder


def test_folders_stand_in(tmp_path: Path) -> None:
    stand_in(tmp_path / "stl10_like")
    found = load_stl10(tmp_path, 4)
    assert isinstance(found, Split)
    assert found.train.images.shape == (12, 3, 96, 96)
    assert found.test.images.shape == (6, 3, 96, 96)
    assert found.train.classes == found.test.classes == ("church", "fish", "horn")
    assert "stand-in (image folders stl10_like)" in found.train.name
    assert set(found.test.images[:, 0, 0, 0].tolist()) == {100, 101, 102, 110, 111, 112}
    train = found.train.images[:, 0, 0, 0].tolist()
    assert max(train) < 100
    assert set(load_stl10(tmp_path, 2).train.images[:, 0, 0, 0].tolist()) < set(train)
    assert torch.equal(load_stl10(tmp_path / "stl10_like", 4, workers=1).train.images, found.train.images)


def test_the_original_is_preferred(binary: Path, tmp_path: Path) -> None:
    stand_in(tmp_path)
    (tmp_path / "stl10_binary").symlink_to(binary)
    assert "original binary format" in load_stl10(tmp_path, 1).train.name


def test_stand_in_of_another_structure(tmp_path: Path) -> None:
    stand_in(tmp_path / "a")
    with pytest.raises(ValueError, match=r"per_class must be in 1\.\.6, the images in .*train, got 400"):
        load_stl10(tmp_path / "a")
    (tmp_path / "a" / "test" / "horn").rename(tmp_path / "a" / "test" / "tuba")
    with pytest.raises(BadData, match=r"the same classes, only one of them has \['horn', 'tuba'\]"):
        load_stl10(tmp_path / "a", 1)
    stand_in(tmp_path / "b", side=64)
    with pytest.raises(BadData, match="the image is 64x64, expected 96x96"):
        load_stl10(tmp_path / "b", 1)


def test_real_data(request: pytest.FixtureRequest) -> None:
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("reads real photographs; give their folder with --data DIR")
    try:
        train, test = load_stl10(data, 10)
    except MissingData as error:
        pytest.skip(str(error))
    assert train.images.shape == (100, 3, 96, 96)
    assert test.images.shape == (1000, 3, 96, 96)
    assert 90 < float(test.images.double().mean()) < 140  # photographs are neither black nor white
    assert float(test.images[:, 0].double().std()) > 40
    # Neighbours in a row and in a column are equally alike, so neither axis was mixed up with another one.
    x = test.to_float()
    down, right = (x.diff(dim=dim).abs().mean() for dim in (2, 3))
    assert 0.8 < float(down / right) < 1.25
