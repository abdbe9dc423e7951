"""Classification and reconstruction at once: what is measured, what is claimed, and a tiny run."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch
from torch import nn

from lmser.data import ImageSet
from lmser.experiments import Request, classification
from lmser.experiments.classification import _Pictures
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.supervised_loss import loss_of
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import CLmser, Reflected

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

_CLASSES = tuple("0123456789")


def image_set(name: str, count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, 32, 32) if name.startswith("CIFAR") else (count, 28, 28)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 10, _CLASSES, name, verified=True)


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    def mnist(root: Path, fashion: bool = False, train: bool = True) -> ImageSet:
        return image_set("Fashion-MNIST" if fashion else "MNIST", 30 if train else 20, 2 * fashion + train)

    def cifar10(root: Path, train: bool = True) -> ImageSet:
        return image_set("CIFAR-10 subset (a file)", 30 if train else 20, 4 + train)

    monkeypatch.setattr(classification, "load_mnist", mnist)
    monkeypatch.setattr(classification, "load_cifar10", cifar10)


def request(out: Path, *, resume: bool = False) -> Request:
    return Request(out, "cpu", "paper", (0,), out, resume=resume, progress=False)


def tiny_rows() -> list[RowConfig]:
    return [
        dataclasses.replace(
            row,
            model={**row.model, "channels": [3, 12], "strides": [2, 2]},
            training={**row.training, "batch_size": 10, "epochs": 1, "log_every": 1},
        )
        for row in load_rows("classification", "paper")
    ]


class _Echo(nn.Module):
    """Gives the image back with an error of `off` and reads class 0 everywhere."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off))

    def forward(self, x: torch.Tensor) -> Reflected:
        logits = torch.zeros(len(x), 10)
        logits[:, 0] = 1
        return Reflected(x + self.off, logits, logits)


def test_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "_CHUNK", 7)  # 20 images: two whole parts and a shorter one
    pictures = _Pictures.load("cifar10", request(tmp_path))
    found = classification._measure(_Echo(0.5), pictures, ("accuracy", "MSE"))
    assert found == {"accuracy": 0.1, "MSE": pytest.approx(0.25)}
    mean = pictures.train.mean(0)
    assert pictures.mean_image_error == pytest.approx(float((pictures.test - mean).square().mean()), rel=1e-5)
    assert pictures.stand_in == "30 training and 20 test images"
    fashion = _Pictures.load("fashion-mnist", request(tmp_path))
    assert [images.name for images in fashion.sets] == ["Fashion-MNIST"] * 2
    assert fashion.stand_in == ""
    assert fashion.shown.shape == (10, 1, 28, 28)


def test_runs_and_continues_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in tiny_rows() if row.data["name"] != "fashion-mnist"]
    results = classification.run(request(tmp_path / "whole"), rows)
    (table,) = results.tables
    assert [(row.group, row.label) for row in table.rows] == [
        (group, label)
        for group in ("MNIST", "CIFAR-10")
        for label in ("CLmser", "CLmser, averaged error", "CNN")
    ]
    for row in table.rows:
        accuracy, error = row.cells
        assert len(accuracy.ours) == 1
        assert len(error.ours) == (0 if row.label == "CNN" else 1)
        assert ("30 training and 20 test images" in row.differs) == (row.group == "CIFAR-10")
    assert (table.rows[0].cells[0].paper, table.rows[0].cells[1].paper) == (0.9923, 0.0021)
    assert table.rows[1].cells[0].paper == 0.9923
    assert [cell.paper for cell in table.rows[2].cells] == [0.9906, None]
    assert [claim.text.partition(": ")[2] for claim in results.claims] == [
        f"{group}, {label}"
        for group in ("MNIST", "CIFAR-10")
        for label in ("CLmser", "CLmser, averaged error")
    ]
    assert len(results.figures) == 2
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    measure, calls = classification._measure, []

    def stopping(*arguments: object, **further: object) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 5:
            raise RuntimeError("killed")
        return measure(*arguments, **further)  # type: ignore[arg-type]

    monkeypatch.setattr(classification, "_measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        classification.run(request(tmp_path / "parts"), rows)
    again = classification.run(request(tmp_path / "parts", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims


def test_an_unknown_data_set_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    row = dataclasses.replace(tiny_rows()[0], data={"name": "svhn"})
    with pytest.raises(ValueError, match=r"data\.name: expected 'mnist', .*, got 'svhn'"):
        classification.run(request(tmp_path / "out"), [row])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("accuracy", "error", "confirmed"),
    [(0.971, 0.001, True), (0.969, 0.001, False), (0.999, 0.02, False), (0.999, float("nan"), False)],
)
def test_a_claim_needs_both_tasks(accuracy: float, error: float, confirmed: bool, tmp_path: Path) -> None:
    pictures = _Pictures.load("mnist", request(tmp_path))  # uniform noise: the mean image's error is 0.083
    rows = load_rows("classification", "paper")[:4:2]
    table = Table(
        "",
        ("accuracy", "MSE"),
        (
            Row("CLmser", (Cell((accuracy,)), Cell((error,))), "MNIST"),
            Row("CNN", (Cell((0.99,)), Cell(())), "MNIST"),
        ),
    )
    (claim,) = classification._claims(table, {row: [] for row in rows}, {"mnist": pictures})
    assert claim.confirmed is confirmed


def test_the_networks_of_a_data_set_differ_in_kind_and_loss_only() -> None:
    rows = load_rows("classification", "paper")
    assert len(rows) == 9
    for start in range(0, 9, 3):
        both, averaged, cnn = rows[start : start + 3]
        for row in (averaged, cnn):
            assert row.training == both.training
            assert all(row.model[key] == both.model[key] for key in ("in_channels", "channels", "strides"))
        assert averaged.model == both.model
        assert (both.objective, averaged.objective) == ({"loss": "sum"}, {"loss": "mean"})
    assert rows[0].steps(60000) == 6000


def test_the_two_readings_of_the_loss() -> None:
    rows = load_rows("classification", "paper")
    model = CLmser(1, (3, 12), (2, 2), num_classes=10)
    images, labels = torch.rand(5, 1, 8, 8), torch.arange(5)
    output = model(images)
    entropy = nn.functional.cross_entropy(output.logits, labels)
    squared = (output.reconstruction - images).square()
    summed, averaged, _, unlabelled = (loss_of(row) for row in rows[:4])
    torch.testing.assert_close(summed(model, images, labels), squared.sum() / 10 + entropy)
    torch.testing.assert_close(averaged(model, images, labels), squared.mean() / 2 + entropy)
    torch.testing.assert_close(unlabelled(model, images), squared.sum() / 10)
    with pytest.raises(
        ValueError, match=r"table-7/mnist/CLmser: objective\.loss: expected one of 'sum', .* got 'l1'"
    ):
        loss_of(dataclasses.replace(rows[0], objective={"loss": "l1"}))
