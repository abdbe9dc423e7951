"""CelebA, CelebA-HQ, Places2 and their stand-ins as made-up folders: found, split, cropped and reduced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lmser.data import BadData, MissingData, load_photos, photo_files, photo_sets
from lmser.data.decode import decode_square, decode_squares
from lmser.data.photo_files import DATA_SET_KEYS, find_photos
from lmser.data.registry import DATA_SETS

Image = pytest.importorskip("PIL.Image", reason="images are decoded by pillow, of the extra 'experiments'")


def save(path: Path, value: int | np.ndarray, height: int = 16, width: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), value, np.uint8) if isinstance(value, int) else value
    Image.fromarray(pixels).save(path)


def touch(folder: Path, *names: str) -> None:
    """Files that are listed but never decoded."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def made_of(images: torch.Tensor) -> list[int]:
    assert bool((images == images[:, :1, :1, :1]).all())
    return images[:, 0, 0, 0].tolist()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A stand-in of 30 PNG files, number i of value i."""
    for i in range(30):
        save(tmp_path / "faces128" / f"face_{i:04}.png", i)
    return tmp_path


def test_load_photos(faces: Path) -> None:
    train, test = load_photos(faces, "faces", 16)
    assert train.images.shape == (27, 3, 16, 16)
    assert test.images.shape == (3, 3, 16, 16)
    assert train.images.dtype == torch.uint8
    assert made_of(train.images) == sorted(made_of(train.images))
    assert sorted(made_of(train.images) + made_of(test.images)) == list(range(30))
    assert train.name == "CelebA stand-in (faces128), 27 training images by file name, seed 0"
    assert test.name == "CelebA stand-in (faces128), 3 test images by file name, seed 0"
    assert train.classes == ("face",)
    assert not train.labels.any()
    assert not train.verified
    for dataset in ("faces-hq", "celeba-like"):
        assert load_photos(faces, dataset, 16).test.sha256() == test.sha256()
    assert torch.equal(load_photos(faces, "faces", 16, workers=1).train.images, train.images)


def test_the_split_is_seeded_and_nested(faces: Path) -> None:
    whole = find_photos(faces, "faces")
    assert find_photos(faces, "faces") == whole
    other = find_photos(faces, "faces", seed=1)
    assert other.test.names != whole.test.names
    assert sorted(other.train.names + other.test.names) == sorted(whole.train.names + whole.test.names)
    few, more = find_photos(faces, "faces", train=5, test=1), find_photos(faces, "faces", train=9, test=2)
    assert set(few.train.names) < set(more.train.names) < set(whole.train.names)
    assert set(few.test.names) < set(more.test.names) < set(whole.test.names)
    assert [len(part) for part in more] == [9, 2]
    # Pinned: an experiment's data must not change with a release or a machine.
    assert whole.test.names == PINNED
    # A name decides about itself alone: without another file the order of the rest stays.
    (faces / "faces128" / few.train.names[0]).unlink()
    assert set(few.train.names[1:]) < set(find_photos(faces, "faces", train=5).train.names)


PINNED = ("face_0000.png", "face_0023.png", "face_0029.png")


def test_the_suffix_does_not_decide(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "celeba-hq", *(f"{i:05}.jpg" for i in range(40)))
    touch(tmp_path / "b" / "celeba-hq", *(f"{i:05}.png" for i in range(40)))
    a, b = (find_photos(tmp_path / part, "faces-hq").test.names for part in "ab")
    assert [name[:5] for name in a] == [name[:5] for name in b]


def test_celeba_hq_of_30_000(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "celeba-hq").mkdir()
    monkeypatch.setattr(photo_files, "_list", lambda folder: tuple(f"{i:05}.jpg" for i in range(30_000)))
    train, test = find_photos(tmp_path, "faces-hq")
    assert (len(train), len(test)) == (27_000, 3_000)
    assert train.title == "CelebA-HQ (celeba-hq), 27,000 training images by file name, seed 0"
    assert train.key == "celeba-hq"


def test_nested_folders(tmp_path: Path) -> None:
    folder = tmp_path / "celeba-hq"
    touch(folder, *(f"train/male/{i}.jpg" for i in range(6)), *(f"val/{i}.jpg" for i in range(4)))
    touch(folder, ".DS_Store", "val/Thumbs.db")
    train, test = find_photos(tmp_path, "faces-hq")
    assert sorted(train.names + test.names) == [
        *(f"train/male/{i}.jpg" for i in range(6)),
        *(f"val/{i}.jpg" for i in range(4)),
    ]
    assert train.path(0) == folder / train.names[0]


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12 files of CelebA's size; 1-7 are for training, 8-9 for validation, 10-12 for testing."""
    monkeypatch.setattr(photo_files, "_CELEBA_FILES", 12)
    monkeypatch.setattr(photo_files, "_CELEBA_TRAIN_UNTIL", 7)
    monkeypatch.setattr(photo_files, "_CELEBA_TEST_FROM", 10)
    for i in range(1, 13):
        save(tmp_path / "celeba" / "img_align_celeba" / f"{i:06}.jpg", 20 * i, 218, 178)
    return tmp_path


def test_celeba(celeba: Path) -> None:
    train, test = load_photos(celeba, "faces", 128)
    assert train.images.shape == (7, 3, 128, 128)
    assert made_of(train.images) == [20 * i for i in range(1, 8)]
    assert made_of(test.images) == [20 * i for i in range(10, 13)]
    assert train.name == (
        "CelebA (img_align_celeba, its own partition), 7 training images by file name, seed 0"
    )
    assert "stand-in" not in train.name
    (celeba / "faces128").mkdir()
    assert find_photos(celeba, "faces").train.key == "celeba"
    save(celeba / "celeba" / "img_align_celeba" / "000003.jpg", 0, 178, 178)
    with pytest.raises(BadData, match=r"000003\.jpg: the image is 178x178, expected 218x178"):
        load_photos(celeba, "celeba", 128)
    (celeba / "celeba" / "img_align_celeba" / "000012.jpg").unlink()
    with pytest.raises(
        BadData, match=r"expected the 12 files .*, found 11 images from 000001\.jpg to 000011"
    ):
        load_photos(celeba, "celeba", 128)


def test_the_partition_of_celeba() -> None:
    assert photo_files._CELEBA_FILES - photo_files._CELEBA_TEST_FROM + 1 == 19_962
    assert photo_files._CELEBA_TEST_FROM - photo_files._CELEBA_TRAIN_UNTIL - 1 == 19_867


def test_places2(tmp_path: Path) -> None:
    folder = tmp_path / "places2"
    touch(
        folder / "data_256",
        *(f"{scene[0]}/{scene}/{i:08}.jpg" for scene in ("abbey", "zoo") for i in range(9)),
    )
    touch(folder / "data_256", *(f"a/arch/outdoor/{i:08}.jpg" for i in range(9)))
    with pytest.raises(MissingData, match="data_256 is there but neither test_256 nor val_256 beside it"):
        find_photos(tmp_path, "scenes", train=5, test=5)
    touch(folder / "val_256", *(f"Places365_val_{i:08}.jpg" for i in range(7)))
    train, test = find_photos(tmp_path, "scenes", train=20, test=5)
    assert train.title == "Places2 (data_256), 20 training images by file name, seed 0"
    assert test.title == "Places2 (val_256), 5 test images by file name, seed 0"
    assert {name.partition("/")[0] for name in train.names} == {"a", "z"}
    assert train.subject == "scene"
    touch(folder / "test_256", *(f"Places365_test_{i:08}.jpg" for i in range(7)))
    assert find_photos(tmp_path, "scenes", train=20, test=5).test.folder == folder / "test_256"
    # Without numbers: those of 001.
    with pytest.raises(
        ValueError, match=r"train must be in 1\.\.27, the training images of Places2 .*, got 180000"
    ):
        find_photos(tmp_path, "scenes")
    with pytest.raises(ValueError, match=r"test must be in 1\.\.7, .*, got 10000"):
        find_photos(tmp_path, "scenes", train=20)


def test_the_middle_square_is_reduced(tmp_path: Path) -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, 5:15] = 255
    pixels[3:7, 8:12] = 100
    save(tmp_path / "x.png", pixels)
    assert decode_square(tmp_path / "x.png", 10).tolist() == pixels[:, 5:15].transpose(2, 0, 1).tolist()
    assert made_of(decode_square(tmp_path / "x.png", 4, crop=4)[None]) == [100]
    half = decode_square(tmp_path / "x.png", 5)
    assert half.shape == (3, 5, 5)
    assert half.is_contiguous()
    wanted = Image.fromarray(pixels[:, 5:15]).resize((5, 5), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(half.numpy(), np.asarray(wanted).transpose(2, 0, 1))


def test_reduction_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    save(tmp_path / "x.png", stripes)
    grey = decode_square(tmp_path / "x.png", 24).float()
    assert bool(((grey - 127.5).abs() < 16).all())  # a filter of fixed width would give 0 or 255 somewhere


def test_images_too_small(tmp_path: Path) -> None:
    save(tmp_path / "faces128" / "x.png", 3, 20, 12)
    path = tmp_path / "faces128" / "x.png"
    with pytest.raises(BadData, match="its middle square is 12x12 and would have to be enlarged to 16x16"):
        decode_square(path, 16)
    with pytest.raises(BadData, match="the image is 20x12, too small for a crop of 14x14"):
        decode_square(path, 8, crop=14)
    with pytest.raises(ValueError, match="paths is empty"):
        decode_squares([], 8)
    with pytest.raises(ValueError, match="decode_squares: workers must be at least 1, got 0"):
        decode_squares([path], 8, workers=0)


def test_a_damaged_image_is_named(faces: Path) -> None:
    path = faces / "faces128" / "face_0011.png"
    save(path, np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BadData, match=r"face_0011\.png: the image cannot be decoded") as caught:
        load_photos(faces, "faces", 16)
    assert caught.value.path == path


def test_foreign_entries(faces: Path) -> None:
    folder = faces / "faces128"
    touch(folder, "list.txt")
    with pytest.raises(BadData, match=r"list\.txt: expected only image files \(\.jpg, \.jpeg, \.png\)"):
        find_photos(faces, "faces")
    (folder / "list.txt").unlink()
    (folder / "loop").symlink_to(folder)
    with pytest.raises(BadData, match="loop: expected only image files"):
        find_photos(faces, "faces")
    (faces / "scenes256").mkdir()
    with pytest.raises(BadData, match="scenes256: it holds no image"):
        find_photos(faces, "scenes")
    touch(faces / "scenes256", *(f"{i}.jpg" for i in range(9)))
    with pytest.raises(BadData, match="it holds 9 images, too few to keep one in 10 for testing"):
        find_photos(faces, "scenes")


def test_arguments(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"one of faces, faces-hq, scenes, celeba, .*, got 'cats'"):
        find_photos(faces, "cats")
    for name in ("train", "test"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            find_photos(faces, "faces", **{name: 0})
        with pytest.raises(TypeError, match=f"{name} must be an int or None, got float"):
            find_photos(faces, "faces", **{name: 0.5})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"train must be in 1\.\.27, the training images of CelebA stand-in"):
        load_photos(faces, "faces", 16, train=28)
    with pytest.raises(ValueError, match="seed must not be negative"):
        load_photos(faces, "faces", 16, seed=-1)
    with pytest.raises(ValueError, match="load_photos: size must be at least 1, got 0"):
        load_photos(faces, "faces", 0)
    with pytest.raises(TypeError, match="load_photos: size must be an int, got float"):
        load_photos(faces, "faces", 16.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="crop must be at least size, got crop=8 and size=16"):
        load_photos(faces, "faces", 16, crop=8)
    monkeypatch.setattr(photo_sets, "_MOST_BYTES", 3 * 16 * 16 * 30 - 1)
    with pytest.raises(ValueError, match="give smaller numbers with train and test, or use photo_streams"):
        load_photos(faces, "faces", 16)
    assert len(load_photos(faces, "faces", 16, train=26).train) == 26


@pytest.mark.parametrize("dataset", [*DATA_SET_KEYS, "celeba", "celeba-hq", "places2"])
def test_nothing_there(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(MissingData) as caught:
        load_photos(tmp_path, dataset, 16)
    for key in DATA_SET_KEYS.get(dataset, (dataset,)):
        assert f"{DATA_SETS[key].title} was not found: {tmp_path} has none of" in str(caught.value)
        assert DATA_SETS[key].by_hand in str(caught.value)


def test_real_data(request: pytest.FixtureRequest) -> None:
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("reads real photographs; give their folder with --data DIR")
    for dataset, size in (("faces", 64), ("scenes", 128)):
        try:
            train, test = load_photos(data, dataset, size, train=40, test=20)
        except MissingData as error:
            pytest.skip(str(error))
        assert train.images.shape == (40, 3, size, size)
        assert test.images.shape == (20, 3, size, size)
        assert 70 < float(train.images.double().mean()) < 160  # photographs are neither black nor white
        x = train.to_float()
        assert float(x.diff(dim=2).abs().mean()) < 0.1  # and neighbours are alike
