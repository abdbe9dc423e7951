from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmser.data import BadData, MissingData, cifar10, load_cifar10
from lmser.data.cifar10 import read_cifar10_binary, read_cifar10_pickle

N = 20
NAMES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_IMAGES_PER_FILE", N)


def records(name: str) -> np.ndarray:
    """20 made-up records, two of each class."""
    draws = np.random.RandomState(NAMES.index(name))
    pixels = draws.randint(0, 256, (N, 3072)).astype(np.uint8)
    return np.concatenate([draws.permutation(N)[:, None].astype(np.uint8) % 10, pixels], axis=1)


def short(text: str) -> bytes:
    """A Python 2 string in a pickle."""
    return b"U" + bytes([len(text)]) + text.encode()


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_pickle(labels: bytes, pixels: bytes, shape: tuple[int, int], kind: str = "u1") -> bytes:
    """What Python 2 and the NumPy of 2009 wrote: opcode by opcode, because neither is here to write it."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + integer(0) + b"\x85" + short("b")
    )
    dtype = b"cnumpy\ndtype\n" + short(kind) + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + short("|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    state = b"(" + integer(1) + integer(shape[0]) + integer(shape[1]) + b"\x86" + dtype + b"\x89"
    state += b"T" + struct.pack("<i", len(pixels)) + pixels + b"t"
    return (
        b"\x80\x02}("
        + (short("batch_label") + short("training batch 1 of 5"))
        + (short("labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e")
        + (short("data") + array + b"\x87R" + state + b"b")
        + (short("filenames") + b"](" + short("a.png") + short("b.png") + b"e")
        + b"u."
    )


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.bin").write_bytes(records(name).tobytes())


def write_python(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        made = records(name)
        content = python2_pickle(made[:, 0].tobytes(), made[:, 1:].tobytes(), (N, 3072))
        (folder / name).write_bytes(content)


def write_archive(folder: Path, names: tuple[str, ...] = NAMES, change: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
        for name in names[::-1]:
            content = records(name).tobytes() + bytes(change)
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return folder / "cifar-10-binary.tar.gz"


WRITERS = {"binary version": write_binary, "python version": write_python}


@pytest.mark.parametrize(
    ("version", "place"),
    [
        ("binary version", "."),
        ("binary version", "cifar10"),
        ("binary version", "cifar-10-batches-bin"),
        ("binary version", "cifar10/cifar-10-batches-bin"),
        ("archive cifar-10-binary.tar.gz", "."),
        ("archive cifar-10-binary.tar.gz", "cifar10"),
        ("python version", "."),
        ("python version", "cifar-10-batches-py"),
        ("python version", "cifar10/cifar-10-batches-py"),
    ],
)
def test_both_versions_hold_the_same(tmp_path: Path, version: str, place: str) -> None:
    WRITERS.get(version, write_archive)(tmp_path / place)
    train, test = load_cifar10(tmp_path), load_cifar10(tmp_path, train=False)
    wanted = np.concatenate([records(name) for name in NAMES[:5]])
    assert train.images.shape == (5 * N, 3, 32, 32)
    assert train.images.is_contiguous()
    np.testing.assert_array_equal(train.images.numpy(), wanted[:, 1:].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(train.labels.numpy(), wanted[:, 0])
    np.testing.assert_array_equal(test.images.flatten(1).numpy(), records("test_batch")[:, 1:])
    assert train.name == f"CIFAR-10 ({version}), training part"
    assert test.name == f"CIFAR-10 ({version}), test part"
    assert not train.verified
    assert train.classes[1] == "automobile"


@pytest.mark.parametrize("version", WRITERS)
def test_verified_means_the_known_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    assert set(cifar10._SHA256) == set(NAMES)
    known = {name: hashlib.sha256(records(name).tobytes()).hexdigest() for name in NAMES}
    monkeypatch.setattr(cifar10, "_SHA256", known)
    WRITERS[version](tmp_path)
    assert load_cifar10(tmp_path).verified
    assert load_cifar10(tmp_path, train=False).verified
    monkeypatch.setattr(cifar10, "_SHA256", {**known, "data_batch_4": "0" * 64})
    assert not load_cifar10(tmp_path).verified
    suffix = ".bin" if version == "binary version" else ""
    (tmp_path / f"data_batch_4{suffix}").write_bytes((tmp_path / f"data_batch_5{suffix}").read_bytes())
    with pytest.raises(BadData, match="it is data_batch_5 of CIFAR-10, not data_batch_4"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("version", WRITERS)
def test_a_missing_file(tmp_path: Path, version: str) -> None:
    WRITERS[version](tmp_path)
    suffix = ".bin" if version == "binary version" else ""
    (tmp_path / f"data_batch_3{suffix}").unlink()
    with pytest.raises(MissingData, match=rf"data_batch_3{suffix} is missing, other files of the set"):
        load_cifar10(tmp_path)
    assert len(load_cifar10(tmp_path, train=False)) == N


def test_what_is_preferred(tmp_path: Path) -> None:
    write_python(tmp_path)
    write_archive(tmp_path / "cifar10")
    assert "archive" in load_cifar10(tmp_path).name
    write_binary(tmp_path / "cifar-10-batches-bin")
    assert "binary version" in load_cifar10(tmp_path).name


def test_bad_archives(tmp_path: Path) -> None:
    path = write_archive(tmp_path, NAMES[1:])
    with pytest.raises(
        BadData, match=r"cifar-10-binary\.tar\.gz: there is no data_batch_1\.bin in the archive"
    ):
        load_cifar10(tmp_path)
    assert len(load_cifar10(tmp_path, train=False)) == N
    write_archive(tmp_path, change=1)
    with pytest.raises(BadData, match=rf"bin/data_batch_5\.bin: it is not this file: {N * 3073 + 1} bytes"):
        load_cifar10(tmp_path)
    content = write_archive(tmp_path).read_bytes()
    for part in (b"", b"text", content[:100], content[: len(content) // 2]):
        path.write_bytes(part)
        with pytest.raises(BadData, match=r"cifar-10-binary\.tar\.gz: the archive cannot be read"):
            load_cifar10(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        load_cifar10(tmp_path)
    for part in (
        str(tmp_path),
        "data_batch_1.bin",
        "cifar10_subset.npz",
        "cifar-10-binary.tar.gz",
        "lmser data get",
    ):
        assert part in str(caught.value)
    with pytest.raises(MissingData, match="absent does not exist"):
        load_cifar10(tmp_path / "absent")
    with pytest.raises(TypeError, match="train must be True or False, got 'test'"):
        load_cifar10(tmp_path, "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073])
def test_binary_files_of_another_length(tmp_path: Path, change: int) -> None:
    write_binary(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(bytes(N * 3073 + change))
    what = "it is truncated" if change < 0 else "it is not this file"
    with pytest.raises(BadData, match=rf"data_batch_2\.bin: {what}: {N * 3073 + change} bytes"):
        load_cifar10(tmp_path)


def test_the_real_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(BadData, match=r"1 bytes, expected 30730000 \(10000 records of 3073\)"):
        read_cifar10_binary(tmp_path / "x.bin")


def test_labels_of_the_binary_version(tmp_path: Path) -> None:
    write_binary(tmp_path)
    path = tmp_path / "data_batch_5.bin"
    content = bytearray(path.read_bytes())
    label = content[3073]
    content[3073] = 10
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"data_batch_5\.bin: labels must lie in 0\.\.9, found 10"):
        load_cifar10(tmp_path)
    content[3073] = (label + 1) % 10
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"expected 10 images of each class in data_batch_1, .*, found \["):
        load_cifar10(tmp_path)


def refusal(folder: Path, content: bytes) -> str:
    path = folder / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(BadData) as caught:
        read_cifar10_pickle(path)
    assert caught.value.path == path
    return caught.value.what


def good(**changes: Any) -> bytes:
    made = records("data_batch_1")
    arguments: dict[str, Any] = {
        "labels": made[:, 0].tobytes(),
        "pixels": made[:, 1:].tobytes(),
        "shape": (N, 3072),
    }
    return python2_pickle(**{**arguments, **changes})


def test_pickles_of_another_structure(tmp_path: Path) -> None:
    assert "labels must be a list of 20 integers in 0..9" in refusal(tmp_path, good(labels=bytes(N - 1)))
    assert "labels must be a list" in refusal(tmp_path, good(labels=bytes([10] * N)))
    assert "must be of shape (20, 3072) row by row, got (3072, 20)" in refusal(
        tmp_path, good(shape=(3072, N))
    )
    assert "does not hold the 61440 bytes" in refusal(tmp_path, good(pixels=bytes(N * 3072 - 1)))
    assert "must be a NumPy array of unsigned bytes" in refusal(tmp_path, good(kind="i1"))
    for other in ([1, 2], {b"data": 1}, {"data": 1, "labels": 2}):
        assert "not a dictionary with b'data' and b'labels'" in refusal(tmp_path, pickle.dumps(other, 4))
    labels = [0] * N
    assert "data is not a NumPy array" in refusal(
        tmp_path, pickle.dumps({b"labels": labels, b"data": b""}, 4)
    )
    truth = [True] * N
    assert "labels must be a list" in refusal(tmp_path, pickle.dumps({b"labels": truth, b"data": b""}, 4))


def test_a_pickle_of_python_3(tmp_path: Path) -> None:
    made = records("data_batch_1")
    path = tmp_path / "data_batch_1"
    for pixels in (made[:, 1:].copy(), np.asfortranarray(made[:, 1:])):
        path.write_bytes(pickle.dumps({b"labels": made[:, 0].tolist(), b"data": pixels}, 4))
        if pixels.flags.c_contiguous:
            np.testing.assert_array_equal(read_cifar10_pickle(path), made)
        else:
            assert "row by row" in refusal(tmp_path, path.read_bytes())


def test_damaged_pickles(tmp_path: Path) -> None:
    whole = good()
    for length in (0, 1, 2, 30, 200, len(whole) // 2, len(whole) - 1):
        assert "the pickle cannot be read" in refusal(tmp_path, whole[:length])
    for content in (json.dumps({"data": 1}).encode(), b"\x80\x02R.", b"\x80\x02\x85.", b"\x80\x63."):
        assert "the pickle cannot be read" in refusal(tmp_path, content)


def test_a_pickle_that_is_too_long(tmp_path: Path) -> None:
    with open(tmp_path / "data_batch_1", "wb") as file:
        file.truncate((40 << 20) + 1)
    with pytest.raises(BadData, match="it holds more than 41943040 bytes"):
        read_cifar10_pickle(tmp_path / "data_batch_1")


class Attack:
    """A pickle of this calls `function(*arguments)` wherever it is loaded by an ordinary unpickler."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def mark(path: str) -> int:
    return Path(path).write_text("executed")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    content = pickle.dumps({b"labels": [0] * N, b"data": Attack(mark, str(trace))}, protocol)
    what = refusal(tmp_path, content)
    assert "which has no place in CIFAR-10" in what
    assert not trace.exists()
    pickle.loads(content)  # the attack is a real one
    assert trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfrombuffer\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x8c\x01x\x86\x93.",
    ],
)
def test_other_names_are_refused(tmp_path: Path, content: bytes) -> None:
    assert "the pickle cannot be read" in refusal(tmp_path, content)


def test_a_pickle_cannot_change_what_stands_for_numpy(tmp_path: Path) -> None:
    before = {name: getattr(cifar10._Kept, name) for name in ("arguments", "state", "__setstate__")}
    change = b"}" + short("state") + b"K\x01s"
    refusal(tmp_path, b"\x80\x02cnumpy\ndtype\n" + change + b"b.")
    refusal(tmp_path, b"\x80\x02cnumpy\nndarray\nN" + change + b"\x86b.")
    # An object made without arguments, and so without __init__, has the attributes all the same.
    assert "not a dictionary" in refusal(tmp_path, b"\x80\x02cnumpy\nndarray\n)\x81.")
    assert {name: getattr(cifar10._Kept, name) for name in before} == before
    assert not set(vars(cifar10._Dtype)) & {"state", "arguments"}
    assert "refers to an object outside itself" in refusal(tmp_path, b"\x80\x02K\x01Q.")


def write_subset(path: Path, **changes: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    made = records("data_batch_1")
    arrays: dict[str, Any] = {
        "x_train": made[:, 1:].reshape(N, 3, 32, 32).transpose(0, 2, 3, 1),
        "y_train": made[:, 0].astype(np.int64),
        "x_test": made[:4, 1:].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1),
        "y_test": made[:4, 0].astype(np.int64),
    }
    arrays.update(changes)
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    write_subset(tmp_path / place / "cifar10_subset.npz")
    made = records("data_batch_1")
    monkeypatch.setattr(cifar10, "_SHA256", {"data_batch_1": hashlib.sha256(made.tobytes()).hexdigest()})
    train, test = load_cifar10(tmp_path), load_cifar10(tmp_path, train=False)
    np.testing.assert_array_equal(train.images.numpy(), made[:, 1:].reshape(N, 3, 32, 32))
    assert train.labels.tolist() == made[:, 0].tolist()
    assert train.name == "CIFAR-10 subset (cifar10_subset.npz), 20 training images"
    assert test.name == "CIFAR-10 subset (cifar10_subset.npz), 4 test images"
    assert train.verified
    assert not test.verified
    write_binary(tmp_path / "cifar-10-batches-bin")
    assert "subset" not in load_cifar10(tmp_path).name


def test_bad_subsets(tmp_path: Path) -> None:
    path = tmp_path / "cifar10_subset.npz"

    def refused(**changes: Any) -> str:
        write_subset(path, **changes)
        with pytest.raises(BadData) as caught:
            load_cifar10(tmp_path)
        assert caught.value.path == path
        return caught.value.what

    assert "x_train must be uint8 of shape (N, 32, 32, 3)" in refused(
        x_train=np.zeros((N, 3, 32, 32), np.uint8)
    )
    assert "got float64" in refused(x_train=np.zeros((N, 32, 32, 3)))
    assert "y_train must be 20 integers, got int64 of shape (19,)" in refused(y_train=np.zeros(19, np.int64))
    assert "got float64" in refused(y_train=np.zeros(N))
    assert "labels must lie in 0..9, found 0..10" in refused(y_train=np.arange(N) % 11)
    assert "labels must lie in 0..9, found -1.." in refused(y_train=np.arange(N) % 10 - 1)
    assert "it is not an npz file with x_train and y_train" in refused(x_train=None)
    trace = tmp_path / "trace"
    attack = np.empty(1, dtype=object)
    attack[0] = Attack(mark, str(trace))
    assert "Object arrays cannot be loaded" in refused(x_train=attack)
    assert not trace.exists()
    write_subset(path)
    content = path.read_bytes()
    for part in (b"", b"text", content[: len(content) // 2], content[:-1]):
        path.write_bytes(part)
        with pytest.raises(BadData, match="it is not an npz file with x_train and y_train, or damaged"):
            load_cifar10(tmp_path)
    flipped = bytearray(content)
    flipped[len(content) // 4] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(BadData, match="or damaged"):
        load_cifar10(tmp_path)


def test_real_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("reads real photographs; give their folder with --data DIR")
    monkeypatch.undo()
    try:
        train, test = load_cifar10(data), load_cifar10(data, train=False)
    except MissingData as error:
        pytest.skip(str(error))
    assert train.verified  # the training images of the subset are those of data_batch_1
    assert len(train) in (10_000, 50_000)
    assert len(test) in (1_000, 10_000)
    assert train.classes[int(train.labels[0])] == "frog"
    assert 100 < float(train.images.double().mean()) < 140
    # Neighbours in a row and in a column are equally alike, so neither axis was mixed up with another one.
    x = test.to_float()
    down, right = (x.diff(dim=dim).abs().mean() for dim in (2, 3))
    assert 0.8 < float(down / right) < 1.25
    assert torch.equal(train.images[0, :, 0, 0], torch.tensor([59, 62, 63], dtype=torch.uint8))
