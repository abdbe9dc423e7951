"""Gradient norms by layer: the two terms of a shared weight's gradient, and the experiment at a tiny scale."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch

from lmser.experiments import Request, gradients
from lmser.experiments.figures_panels import line_panels
from lmser.experiments.image_reconstruction import VARIANTS
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import CLmser

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
Image = pytest.importorskip("PIL.Image")


def tiny_rows() -> list[RowConfig]:
    return [
        dataclasses.replace(
            row,
            data={"per_class": 2},
            model={**row.model, "channels": [4, 5, 6], "strides": [1, 2, 2]},
            training={**row.training, "batch_size": 2, "steps": 3},
            evaluation={"side": 16, "probe": 3, "first": 1, "at": [0, 1, 3]},
        )
        for row in load_rows("gradients", "quick")
    ]


@pytest.fixture
def stl10(tmp_path: Path) -> Path:
    return made_up_data.stl10(tmp_path / "data", test=1)


@pytest.mark.parametrize("label", VARIANTS)
def test_the_terms_add_up_to_what_backward_gives(label: str) -> None:
    dcw, dpn = VARIANTS[label]
    model = CLmser(3, (4, 5), (1, 2), dcw=dcw, dpn=dpn, dtype=torch.float64)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        up, down = gradients.gradient_parts(model, images)
        norms = gradients.gradient_norms(model, images)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.loss(images).backward()
    for layer, weight in enumerate(model.weights):
        assert weight.grad is not None
        wanted = up[layer] + down[layer] if dcw else up[layer]
        torch.testing.assert_close(weight.grad, wanted)
        assert norms[f"W {layer + 1}"] == pytest.approx(float(weight.grad.norm()))
        assert float(up[layer].norm()) > 0
        assert float(down[layer].norm()) > 0
        if model.decoder_weights is not None:
            torch.testing.assert_close(model.decoder_weights[layer].grad, down[layer])


def test_runs_and_continues_to_the_same_bits(
    stl10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows()

    def request(out: str, *, resume: bool = False) -> Request:
        return Request(stl10, "cpu", "quick", (0, 1), tmp_path / out, resume=resume, progress=False)

    results = gradients.run(request("whole"), rows)
    assert [table.title.removeprefix("Norm of the gradient, ") for table in results.tables] == [
        "before the first step",
        "Adam, lr 0.01, median over steps 0 ... 1",
        "SGD, lr 0.01, median over steps 0 ... 1",
    ]
    assert all([row.label for row in table.rows] == list(VARIANTS) for table in results.tables)
    assert len(results.tables[0].rows[0].cells[0].ours) == 2
    assert len(results.claims) == 9
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    # The start is that of the networks as built: nothing was trained before it was measured.
    torch.manual_seed(1)
    row = rows[0]
    built = CLmser(3, row.model["channels"], row.model["strides"])
    saved = json.loads((tmp_path / "whole" / row.path / "seed-1" / "result.json").read_text())
    images = gradients._sized(gradients.load_stl10(stl10, 2, 0).train, row)
    assert saved["metrics"]["0"] == pytest.approx(gradients.gradient_norms(built, images[[0, 1, 2]]))

    norms, calls = gradients.gradient_norms, []

    def stopping(model: CLmser, images: torch.Tensor) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 8:
            raise RuntimeError("killed")
        return norms(model, images)

    monkeypatch.setattr(gradients, "gradient_norms", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        gradients.run(request("parts"), rows)
    again = gradients.run(request("parts", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims


def _table(title: str, **norms: float) -> Table:
    columns = ("W_1", "log10(W_1 / W_2)", "log10(up / down at W_1)")
    rows = tuple(Row(label, (Cell((value,)),) * 3) for label, value in norms.items())
    return Table(f"Norm of the gradient, {title}", columns, rows)


def test_a_claim_needs_every_group() -> None:
    names = list(VARIANTS)  # CLmser, CLmser-w, CLmser-n, CAE
    good = _table("a", **dict(zip(names, (4.0, 3.0, 2.0, 1.0), strict=True)))
    bad = _table("b", **dict(zip(names, (2.5, 3.0, 2.0, 1.0), strict=True)))
    assert [claim.confirmed for claim in gradients._claims([good])] == [True, True, True] * 3
    claims = gradients._claims([good, bad])
    assert [claim.confirmed for claim in claims] == [False, True, True] * 3
    assert "CLmser 2.5 ≤ CLmser-w 3" in claims[0].evidence


def test_paper_scale_is_the_papers() -> None:
    rows = load_rows("gradients", "paper")
    assert [(row.table, row.label) for row in rows] == [
        (table, label) for table in ("adam", "sgd") for label in VARIANTS
    ]
    for row in rows:
        assert row.steps(1000) == 200
        assert row.training["lr"] == 0.01
        assert row.model["channels"] == [16, 32, 64, 128, 256]
        assert (row.model["dcw"], row.model["dpn"]) == VARIANTS[row.label]


def test_panels_break_a_line_at_zero_and_refuse_none() -> None:
    drawn = line_panels("p", {"a": {"x": [(0, 1.0), (1, 0.0), (2, 2.0)]}}, x_label="l", y_label="n", symlog=1)
    assert drawn == line_panels(
        "p", {"a": {"x": [(0, 1.0), (1, 0.0), (2, 2.0)]}}, x_label="l", y_label="n", symlog=1
    )
    xml.etree.ElementTree.fromstring(drawn)
    with pytest.raises(ValueError, match="no panel"):
        line_panels("p", {}, x_label="l", y_label="n")
