"""What all readers share: the image set, the registry, and choices that do not depend on the machine."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from lmser.data import ImageSet
from lmser.data._draws import order, words
from lmser.data.registry import DATA_SETS, describe, find


def make(images: torch.Tensor, labels: list[int], classes: tuple[str, ...] = ("a", "b")) -> ImageSet:
    return ImageSet(images, torch.tensor(labels), classes, "made up", verified=False)


def test_to_float() -> None:
    grey = make(torch.tensor([[[0, 51], [102, 255]]], dtype=torch.uint8), [1])
    assert grey.to_float().shape == (1, 1, 2, 2)
    torch.testing.assert_close(grey.to_float().flatten(), torch.tensor([0, 0.2, 0.4, 1.0]), rtol=0, atol=0)
    assert grey.to_float(-1, 1).flatten().tolist()[::3] == [-1.0, 1.0]
    assert grey.to_float(dtype=torch.float64).flatten().tolist() == [0, 51 / 255, 102 / 255, 1]
    many = make(torch.randint(0, 256, (600, 3, 4, 5)).to(torch.uint8), [0] * 600)
    torch.testing.assert_close(many.to_float(0, 255), many.images.float(), rtol=0, atol=2e-5)


def test_to_float_refuses() -> None:
    found = make(torch.zeros(1, 2, 2, dtype=torch.uint8), [0])
    for low, high in ((1.0, 1.0), (1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="low must be below high"):
            found.to_float(low, high)
    with pytest.raises(ValueError, match=r"floating type, got torch\.int32"):
        found.to_float(dtype=torch.int32)


def test_image_set_checks_itself() -> None:
    good = torch.zeros(2, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"images must be uint8 .* got torch.float32 \(2, 4, 4\)"):
        make(good.float(), [0, 1])
    with pytest.raises(ValueError, match=r"got torch.uint8 \(4, 4\)"):
        make(good[0], [0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(2,\), got torch.int64 \(3,\)"):
        make(good, [0, 1, 0])
    for labels in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
            make(good, labels)


def test_take_and_checksum() -> None:
    images = torch.arange(3 * 4, dtype=torch.uint8).reshape(3, 2, 2)
    found = make(images, [0, 1, 1])
    part = found.take(torch.tensor([2, 0]))
    assert torch.equal(part.images, images[[2, 0]])
    assert part.labels.tolist() == [1, 0]
    assert len(part) == 2
    assert found.sha256() == make(images.clone(), [0, 1, 1]).sha256()
    others = [make(images + 1, [0, 1, 1]), make(images, [1, 1, 1]), make(images.reshape(3, 1, 4), [0, 1, 1])]
    assert len({found.sha256(), *(other.sha256() for other in others)}) == 4


def test_the_registry_is_consistent() -> None:
    assert list(DATA_SETS) == [
        *("mnist", "fashion-mnist", "stl10", "stl10-like", "cifar10", "cifar10-subset"),
        *("omniglot", "super-resolution"),
        *("celeba", "celeba-hq", "celeba-like", "places2", "places2-like", "photos", "fsdd", "birds10"),
    ]
    hashes = []
    for key, data_set in DATA_SETS.items():
        assert find(key) is data_set
        assert data_set.key == key
        assert data_set.downloadable or data_set.by_hand
        assert data_set.licence
        assert data_set.source
        for mirror in data_set.mirrors:
            assert mirror.startswith("https://")
            assert mirror.endswith("/")
        for file in data_set.files:
            digests = [file.sha256] if file.content_sha256 is None else [file.sha256, file.content_sha256]
            hashes += digests
            assert file.size > 0
            for digest in digests:
                assert len(digest) == 64
                assert set(digest) <= set("0123456789abcdef")
    assert len(hashes) == len(set(hashes)) == 17
    assert [key for key, d in DATA_SETS.items() if d.downloadable] == ["mnist", "fashion-mnist", "cifar10"]
    with pytest.raises(ValueError, match=r"no data set 'mnits'; there are mnist, fashion-mnist"):
        find("mnits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        DATA_SETS["mnist"].key = "x"  # type: ignore[misc]


def test_describe() -> None:
    assert "`lmser data get mnist` downloads it (12 MB)" in describe("mnist")
    assert "MIT, Zalando SE" in describe("fashion-mnist")
    assert "stl10_binary.tar.gz" in describe("stl10")
    for key in DATA_SETS:
        assert describe(key).count("\n") == 0
        assert ".." not in describe(key)


def test_draws_are_pinned() -> None:
    assert words(3, 0, "test").tolist() == PINNED_WORDS
    assert order(8, 5, "test").tolist() == PINNED_ORDER
    assert words(10, 0, "test")[:3].tolist() == words(3, 0, "test").tolist()
    assert words(3, 1, "test").tolist() != words(3, 0, "test").tolist()
    assert words(3, 0, "tent").tolist() != words(3, 0, "test").tolist()


PINNED_WORDS = [9573836717653885019, 9367658651262974418, 11055823685384227542]
PINNED_ORDER = [3, 4, 5, 1, 2, 0, 7, 6]


def test_order_is_a_fair_permutation() -> None:
    counts = np.zeros((6, 6))
    for seed in range(1200):
        permutation = order(6, seed, "fair")
        assert sorted(permutation.tolist()) == list(range(6))
        counts[np.arange(6), permutation] += 1
    assert np.abs(counts - 200).max() < 65  # 5 standard deviations


def test_importing_takes_no_extra() -> None:
    program = """
import sys
for extra in ("PIL", "skimage", "sklearn", "matplotlib", "tqdm"):
    sys.modules[extra] = None
import lmser.data, lmser.data.download, lmser.metrics
lmser.metrics.mse
"""
    subprocess.run([sys.executable, "-c", program], check=True)
