from __future__ import annotations

import dataclasses
import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lmser.data import BadData, MissingData, load_mnist
from lmser.data.idx import read_idx
from lmser.data.registry import DATA_SETS

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(values: np.ndarray) -> bytes:
    values = np.ascontiguousarray(values, dtype=np.uint8)
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def digits(n: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (n, 28, 28)).astype(np.uint8), random.randint(0, 10, n).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a made-up MNIST of 7 training images, gzip-compressed."""
    images, labels = digits()
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "mnist" / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3), (2, 3, 4), (1, 1, 1, 1, 6)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx(tmp_path: Path, shape: tuple[int, ...], pack: Callable[[bytes], bytes]) -> None:
    values = np.random.RandomState(1).randint(0, 256, shape).astype(np.uint8)
    (tmp_path / "f").write_bytes(pack(idx(values)))
    read = read_idx(tmp_path / "f")
    assert read.shape == shape
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values)


def test_load_mnist(folder: Path) -> None:
    images, labels = digits()
    found = load_mnist(folder)
    assert found.images.dtype == torch.uint8
    assert found.labels.dtype == torch.int64
    np.testing.assert_array_equal(found.images.numpy(), images)
    np.testing.assert_array_equal(found.labels.numpy(), labels)
    assert found.classes == tuple("0123456789")
    assert found.name == "MNIST, training part"
    assert found.verified is False
    found.images[0] = 0  # the tensor is writable memory of its own
    np.testing.assert_array_equal(load_mnist(folder).images.numpy(), images)


@pytest.mark.parametrize("where", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_places_and_names(tmp_path: Path, where: str, suffix: str) -> None:
    images, labels = digits(3)
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    (tmp_path / where / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
    (tmp_path / where / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    assert len(load_mnist(tmp_path, train=False)) == 3
    with pytest.raises(MissingData):
        load_mnist(tmp_path, train=True)


def test_each_set_has_its_own_subfolder(folder: Path) -> None:
    images, labels = digits(4, seed=2)
    (folder / "fashion-mnist").mkdir()
    (folder / "fashion-mnist" / TRAIN_IMAGES).write_bytes(idx(images))
    (folder / "fashion-mnist" / TRAIN_LABELS).write_bytes(idx(labels))
    assert len(load_mnist(folder)) == 7
    assert len(load_mnist(folder, fashion=True)) == 4
    assert load_mnist(folder, fashion=True).classes[9] == "ankle boot"


def test_verified_means_the_pinned_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content counts, however it is compressed; one file that is not the original is enough to say no."""
    pinned = dataclasses.replace(
        DATA_SETS["mnist"],
        files=tuple(
            dataclasses.replace(
                file,
                content_sha256=hashlib.sha256(
                    gzip.decompress((folder / "mnist" / file.name).read_bytes())
                ).hexdigest(),
            )
            for file in DATA_SETS["mnist"].files
            if file.name.startswith("train")
        ),
    )
    monkeypatch.setattr("lmser.data.idx.DATA_SETS", {**DATA_SETS, "mnist": pinned})
    assert load_mnist(folder).verified is True
    images, labels = digits()
    (folder / "mnist" / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(idx(images), 1))
    assert load_mnist(folder).verified is True
    (folder / "mnist" / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(idx((labels + 1) % 10)))
    assert load_mnist(folder).verified is False

    # The same files as Fashion-MNIST: known to be something else.
    (folder / "mnist").rename(folder / "fashion-mnist")
    with pytest.raises(BadData, match=r"it is train-images-idx3-ubyte of MNIST, not .* of Fashion-MNIST"):
        load_mnist(folder, fashion=True)


def test_nothing_there_is_one_sentence_with_the_folder_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        load_mnist(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert f"`lmser data get mnist --root {tmp_path}`" in message
    assert "\n" not in message
    with pytest.raises(MissingData, match="`lmser data get fashion-mnist --root "):
        load_mnist(tmp_path, fashion=True)
    with pytest.raises(MissingData, match="absent does not exist"):
        load_mnist(tmp_path / "absent")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        load_mnist(tmp_path / "file")
    with pytest.raises(TypeError, match="root must be a path, got int"):
        load_mnist(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("lost", "kept"), [(TRAIN_LABELS, TRAIN_IMAGES), (TRAIN_IMAGES, TRAIN_LABELS)])
def test_one_of_the_two_files_is_missing(folder: Path, lost: str, kept: str) -> None:
    (folder / "mnist" / f"{lost}.gz").unlink()
    with pytest.raises(MissingData, match=rf"{kept}\.gz is there but not {lost}\.gz beside it"):
        load_mnist(folder)


def damaged(folder: Path, name: str, content: bytes) -> str:
    """Replace a file and return what the refusal says, which must start with the file's name."""
    path = folder / "mnist" / f"{name}.gz"
    path.write_bytes(content)
    with pytest.raises(BadData) as caught:
        load_mnist(folder)
    assert caught.value.path == path
    assert str(caught.value) == f"{path}: {caught.value.what}"
    return caught.value.what


def test_truncated_files(folder: Path) -> None:
    images, labels = digits()
    whole = gzip.compress(idx(images))
    for keep in (len(whole) - 1, len(whole) // 2, 12, 3):
        assert "it is truncated" in damaged(folder, TRAIN_IMAGES, whole[:keep])
    short = damaged(folder, TRAIN_IMAGES, gzip.compress(idx(images)[:-100]))
    assert short == "it is truncated: the header says (7, 28, 28), 5488 values, but 5388 follow"
    assert "an idx file has at least a 4-byte magic number" in damaged(folder, TRAIN_IMAGES, b"")
    assert "announces 3 dimensions in a file of 10 bytes" in damaged(folder, TRAIN_IMAGES, idx(images)[:10])
    (folder / "mnist" / f"{TRAIN_IMAGES}.gz").write_bytes(whole)
    assert "(7,), 7 values, but 6 follow" in damaged(folder, TRAIN_LABELS, idx(labels)[:-1])


def test_corrupt_gzip(folder: Path) -> None:
    images, _ = digits()
    whole = bytearray(gzip.compress(idx(images)))
    whole[-6] ^= 1  # in the checksum
    assert "the gzip file is corrupt (CRC check failed" in damaged(folder, TRAIN_IMAGES, bytes(whole))
    whole = bytearray(gzip.compress(idx(images)))
    whole[len(whole) // 2] ^= 0xFF
    assert "corrupt" in damaged(folder, TRAIN_IMAGES, bytes(whole))
    assert "corrupt" in damaged(folder, TRAIN_IMAGES, gzip.compress(idx(images)) + b"more")


def test_foreign_files(folder: Path) -> None:
    images, labels = digits()
    content = idx(images)
    assert damaged(folder, TRAIN_IMAGES, b"\x89PNG" + content) == (
        "it is not an idx file: the magic number is 0x89504e47"
    )
    assert "it is not an idx file" in damaged(folder, TRAIN_IMAGES, b"\0\0\x07" + content[3:])
    assert "holds float32 values, expected uint8" in damaged(folder, TRAIN_IMAGES, b"\0\0\x0d" + content[3:])
    assert "announces 0 dimensions" in damaged(folder, TRAIN_IMAGES, b"\0\0\x08\0")
    assert "2 bytes too many follow the 5488 values" in damaged(folder, TRAIN_IMAGES, content + b"xx")
    assert "expected images of shape (N, 28, 28), got (7, 14, 56)" in damaged(
        folder, TRAIN_IMAGES, idx(images.reshape(7, 14, 56))
    )
    assert "it holds no image" in damaged(folder, TRAIN_IMAGES, idx(images[:0]))
    huge = b"\0\0\x08\x03" + struct.pack(">III", 2**32 - 1, 28, 28)
    assert "it is truncated: the header says (4294967295, 28, 28)" in damaged(folder, TRAIN_IMAGES, huge)
    damaged(folder, TRAIN_IMAGES, idx(labels))


def test_labels_that_contradict(folder: Path) -> None:
    _, labels = digits()
    assert damaged(folder, TRAIN_LABELS, idx(labels[:-1])) == (
        "it holds 6 labels, but train-images-idx3-ubyte.gz holds 7 images"
    )
    labels[3] = 10
    assert damaged(folder, TRAIN_LABELS, idx(labels)) == "labels must lie in 0..9, found 10"
    assert "expected labels of shape (N,)" in damaged(folder, TRAIN_LABELS, idx(labels[None]))


def test_a_gzip_bomb_is_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmser.data.idx._MAX_BYTES", 5 << 20)
    assert "more than 5242880 bytes" in damaged(folder, TRAIN_IMAGES, gzip.compress(bytes(64 << 20), 1))


@pytest.mark.parametrize("fashion", [False, True])
@pytest.mark.parametrize("train", [True, False])
def test_the_originals(request: pytest.FixtureRequest, fashion: bool, train: bool) -> None:
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("reads the real files; give their folder with --data DIR")
    try:
        found = load_mnist(data, fashion, train)
    except MissingData as error:
        pytest.skip(str(error))
    count = 60_000 if train else 10_000
    assert found.images.shape == (count, 28, 28)
    assert found.verified is True
    if fashion:
        assert found.labels.bincount().tolist() == [count // 10] * 10
    else:
        assert found.labels[:5].tolist() == ([5, 0, 4, 1, 9] if train else [7, 2, 1, 0, 4])
    if train:
        mean = found.images.double().mean() / 255
        assert float(mean) == pytest.approx(0.2860 if fashion else 0.1307, abs=1e-4)
