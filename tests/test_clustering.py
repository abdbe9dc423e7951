"""Clustering without labels: the loss, the measures, and the experiment at a tiny scale."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch
from torch import nn

from lmser.data import load_mnist
from lmser.experiments import Request, clustering
from lmser.experiments.inversion_objective import build_semi_supervised
from lmser.experiments.labelled_images import LabelledImages
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.inversion import SemiSupervised, entropy, invert

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

pytestmark = pytest.mark.usefixtures("light_collections")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return made_up_data.digits(tmp_path / "data", "mnist")


def tiny_rows() -> list[RowConfig]:
    """One pooling of each table, and k-means."""
    return [
        dataclasses.replace(row, training={**row.training, "steps": 2, "batch_size": 10, "log_every": 1})
        if row.model
        else dataclasses.replace(row, evaluation={"images": 20, "fitted": 50, "starts": 1})
        for row in load_rows("clustering", "quick")
        if row.model.get("pooling", "mean") == "mean"
    ]


def test_the_loss_without_labels() -> None:
    row = next(row for row in tiny_rows() if row.table == "squared" and row.objective["beta"] == 0.2)
    model = build_semi_supervised(row, ("balance",)).double()
    images = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    error = (invert(model.model, images) - images).square().sum((1, 2, 3)).mean()
    expected = 0.2 * error + 0.8 * entropy(model(images).log_softmax(1)).mean()
    torch.testing.assert_close(clustering._loss(model, images, 0.0), expected)
    p = model(images).softmax(1).mean(0)
    torch.testing.assert_close(clustering._loss(model, images, 2.0), expected + 2 * (p * p.log()).sum())
    assert int(model.step) == 2


class OneOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 10)
        logits[:, 3] = 1000 * self.weight
        return logits


def test_a_collapsed_network_is_seen(data: Path) -> None:
    pixels = LabelledImages.of(load_mnist(data, False, True), load_mnist(data, False, False), "cpu")
    model = SemiSupervised(OneOutput(), 0.0, 0.5)
    members = clustering._members(model, pixels.test)
    assert torch.equal(members[3], pixels.test[:12])
    assert bool(members[[0, 1, 2, 4]].isnan().all())
    found = clustering._agreement(pixels.test_labels, torch.full((20,), 3))
    assert found == {clustering.ACCURACY: 10, clustering.NMI: 0, clustering.USED: 1}


def test_k_means(data: Path) -> None:
    pixels = LabelledImages.of(load_mnist(data, False, True), load_mnist(data, False, False), "cpu")
    telling = dataclasses.replace(
        pixels,
        train=(pixels.train_labels / 10).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28),
        test=(pixels.test_labels / 10).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28),
    )
    found = clustering._k_means(telling, 0, images=20, fitted=60, starts=3)
    assert found[clustering.ACCURACY] == pytest.approx(100)
    assert found[clustering.NMI] == pytest.approx(1)
    assert found[clustering.REBUILT] == pytest.approx(0, abs=1e-9)


def test_runs_and_continues_to_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request(out: str, *, resume: bool = False) -> Request:
        return Request(data, "cpu", "quick", (0,), tmp_path / out, resume=resume, progress=False)

    rows = tiny_rows()
    results = clustering.run(request("whole"), rows)
    assert [table.title for table in results.tables] == list(clustering._TITLES.values())
    for table in results.tables:
        *networks, beside = table.rows
        assert beside.group == "k-means on pixels"
        assert [len(cell.ours) for cell in beside.cells] == [1, 1, 1, 1, 0]
        for row in networks:
            assert all(len(cell.ours) == 1 and math.isfinite(cell.ours[0]) for cell in row.cells)
    assert len(results.claims) == 4
    assert results.figures
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    measure, calls = clustering._measure, []

    def stopping(*arguments: object, **keywords: object) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return measure(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(clustering, "_measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        clustering.run(request("cut"), rows)
    again = clustering.run(request("cut", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims
    for figure in results.figures:
        assert (tmp_path / "cut" / figure.file).read_bytes() == (
            tmp_path / "whole" / figure.file
        ).read_bytes()


def test_claims_follow_the_numbers() -> None:
    def table(key: str, sure: float, low: float, accuracy: float) -> Table:
        def row(group: str, label: str, *values: float) -> Row:
            return Row(label, tuple(Cell((value,)) for value in values), group=group)

        return Table(
            clustering._TITLES[key],
            clustering.COLUMNS,
            (
                row("mean pools", "β = 0", 90, 1, 1, 1, 0),
                row("mean pools", "β = 0.2", 90, 1, 1, 0.1, sure),
                row("mean pools", "β = 0.5", accuracy, 1, 1, 0.1, 0.1),
                row("mean pools", "β = 1", 90, 1, 1, low, 1.0),
                row("k-means on pixels", "10,000 images", 50, 1, 1, 1, 1),
            ),
        )

    for sure, low, accuracy, expected in (
        (0.5, 0.05, 60, [True, True]),
        (1.5, 0.05, 50, [False, True]),
        (0.5, 0.2, 40, [False, False]),
    ):
        assert [c.confirmed for c in clustering._claims(table("squared", sure, low, accuracy))] == expected
    assert [c.confirmed for c in clustering._claims(table("mean_squared", 0.5, 0.05, 60))] == [True]
    assert [c.confirmed for c in clustering._claims(table("balanced", 0.5, 0.05, 60))] == [True]


def test_reconstruction_asks_for_the_length_of_the_output_alone() -> None:
    """`(df/dx)ᵀ f = ∇ ½‖f‖²`: what the experiment's docstring says of R."""
    network = build_semi_supervised(tiny_rows()[0]).model.double()
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x).square().sum() / 2, x)
    torch.testing.assert_close(invert(network, x).detach(), slope)
