"""Digits sent back through networks: what is trained on and measured, and the experiment at a tiny scale."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch

from lmser.experiments import Request, inversion_figures
from lmser.experiments.inversion_figures import (
    ACCURACY,
    ALIKE,
    ERROR,
    nearness,
    reconstructions,
)
from lmser.experiments.inversion_objective import build_semi_supervised
from lmser.experiments.networks import build_network
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.inversion import invert

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

pytestmark = pytest.mark.usefixtures("light_collections")


def tiny_rows() -> list[RowConfig]:
    """Both tables, a CNN and a Resnet of few channels with two poolings each."""
    return [
        dataclasses.replace(
            row,
            data={**row.data, "per_class": 1, "labelled": 10},
            model={**row.model, **({"depth": 1, "width": 2} if row.model["kind"] == "ResNet" else {})},
            training={**row.training, "steps": 2, "batch_size": 20, "log_every": 1},
            evaluation={"images": 10},
        )
        for row in load_rows("inversion-figures", "quick")
        if row.label != "max pools"
    ]


def test_nearness() -> None:
    images = torch.rand(4, 1, 5, 5)
    assert nearness(images, images) == {ERROR: 0, ALIKE: pytest.approx(1)}
    scaled = nearness(3 * images - 1, images)
    assert scaled[ALIKE] == pytest.approx(1)
    assert scaled[ERROR] == pytest.approx(float((2 * images - 1).square().mean()), rel=1e-5)
    assert nearness(-images, images)[ALIKE] == pytest.approx(-1)
    assert nearness(torch.zeros_like(images), images)[ALIKE] == 0


def test_the_objective_of_a_file() -> None:
    row = tiny_rows()[0]
    model = build_semi_supervised(row)
    assert model.weights() == (0.6, pytest.approx(0.2), pytest.approx(0.2))
    assert model.reconstruction == "squared"
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(reconstructions(model, images), invert(model.model, images).detach())


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_rows(scale: str) -> None:
    rows = load_rows("inversion-figures", scale)
    assert len(rows) == {"quick": 12, "paper": 30}[scale]
    for row in rows:
        assert row.group.endswith(f"({row.objective['alpha']}, {row.objective['beta']})")
        assert row.objective["reconstruction"] == row.table.replace("-", "_")
        assert row.label.startswith(row.model["pooling"])
        assert row.data["per_class"] == 5
        assert row.data["labelled"] == row.training["batch_size"] // 2
        build_network(row.model)


def test_runs_and_continues_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made_up_data.digits(tmp_path / "data", "mnist")

    def request(out: str, *, resume: bool = False) -> Request:
        return Request(data, "cpu", "quick", (0,), tmp_path / out, resume=resume, progress=False)

    rows = tiny_rows()
    results = inversion_figures.run(request("whole"), rows)
    *learned, untrained = results.tables
    assert [len(table.rows) for table in results.tables] == [4, 4, 4]
    for table in learned:
        assert table.columns == (ERROR, ALIKE, ACCURACY)
        assert [row.label for row in table.rows] == ["mean pools", "inhibitor connections"] * 2
        assert all(len(cell.ours) == 1 for row in table.rows for cell in row.cells)
    assert [row.group for row in untrained.rows] == ["SmallCNN"] * 2 + ["Resnet3-16"] * 2
    assert len(results.claims) == 4
    assert len(results.figures) == 6
    assert len({figure.file for figure in results.figures}) == 6
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    measure, calls = inversion_figures._measure, []

    def stopping(*arguments: object, **keywords: object) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return measure(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(inversion_figures, "_measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        inversion_figures.run(request("cut"), rows)
    again = inversion_figures.run(request("cut", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims
    for figure in results.figures:
        assert (tmp_path / "cut" / figure.file).read_bytes() == (
            tmp_path / "whole" / figure.file
        ).read_bytes()


def test_claims_follow_the_numbers() -> None:
    def table(cnn: float, resnet: float) -> Table:
        def row(group: str, label: str, value: float) -> Row:
            return Row(label, (Cell((value,)), Cell((0.5,)), Cell((90.0,))), group=group)

        return Table(
            "t",
            inversion_figures.COLUMNS,
            (
                row("SmallCNN (0.6, 0.5)", "mean pools", cnn),
                row("SmallCNN (0.6, 0.5)", "max pools", 0.01),
                row("Resnet3-16 (0.6, 0.5)", "mean pools", resnet),
            ),
        )

    def confirmed(cnn: float, resnet: float) -> list[bool]:
        return [claim.confirmed for claim in inversion_figures._claims(table(cnn, resnet), 0.06)]

    assert confirmed(0.03, 0.02) == [True, True]
    assert confirmed(0.02, 0.03) == [True, False]
    assert confirmed(0.04, 0.02) == [False, True]
