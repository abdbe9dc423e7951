"""Reconstruction of scenes at a tiny scale, and how a restored photograph is measured."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch

from lmser import metrics
from lmser.data import load_photos, photo_streams
from lmser.experiments import Request, photographs, scenes_reconstruction
from lmser.experiments.photographs import METRICS, Tally, chunks, load_photographs, on_unit_range
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table

pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
Image = pytest.importorskip("PIL.Image")


def tiny_rows() -> list[RowConfig]:
    return [
        dataclasses.replace(
            row,
            data={"name": "scenes", "side": 64, "stand_in_side": 16},
            model={**row.model, "channels": [4, 6], "strides": [1, 2]},
            training={**row.training, "batch_size": 4, "steps": 4},
        )
        for row in load_rows("scenes-reconstruction", "quick")
    ]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    made_up_data.pictures(tmp_path / "data" / "scenes256", 30, (20, 24))
    return tmp_path / "data"


def request(data: Path, out: Path, *, resume: bool = False) -> Request:
    return Request(data, "cpu", "quick", (0, 1), out, resume=resume, progress=False)


def test_the_tally_of_parts_is_that_of_the_whole() -> None:
    wanted = torch.rand(5, 3, 12, 13)
    found = wanted + 0.1 * torch.randn_like(wanted)
    tally = Tally()
    tally.add(found[:2], wanted[:2])
    tally.add(found[2:], wanted[2:])
    means = tally.means()
    assert means["l1"] == pytest.approx(float((found - wanted).double().abs().mean()))
    assert means["MSE"] == pytest.approx(metrics.mse(found, wanted))
    assert means["PSNR"] == pytest.approx(-10 * math.log10(metrics.mse(found, wanted)))
    assert means["SSIM"] == pytest.approx(metrics.ssim(found, wanted, 1.0))
    tally.add(torch.full_like(found, math.nan), wanted)
    assert all(math.isnan(value) for value in tally.means().values())
    with pytest.raises(ValueError, match="no image"):
        Tally().means()


def test_photographs_are_the_loaders(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_photographs(scenes, {"name": "scenes", "side": 64, "stand_in_side": 16, "test": 2})
    assert found.stand_in
    assert found.side == 16
    wanted = load_photos(scenes, "scenes", 16, test=2)
    assert torch.equal(found.train, wanted.train.images)
    assert (found.train_digest, found.test_digest) == (wanted.train.sha256(), wanted.test.sha256())
    assert torch.equal(found.shown(9), wanted.test.to_float())
    with pytest.raises(TypeError, match="bytes"):
        on_unit_range(wanted.test.to_float())

    monkeypatch.setattr(photographs, "_MOST_BYTES", 100)
    streamed = load_photographs(scenes, {"name": "scenes", "side": 16, "test": 2})
    assert streamed.train_digest == photo_streams(scenes, "scenes", 16, test=2)[0].fingerprint()
    assert [start for start, _ in chunks(streamed.test)] == [0]
    assert torch.equal(next(chunks(streamed.test))[1], wanted.test.to_float())
    assert torch.equal(streamed.shown(2), wanted.test.to_float())


def test_runs_and_continues_to_the_same_bits(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows()
    results = scenes_reconstruction.run(request(scenes, tmp_path / "whole"), rows)
    (table,) = results.tables
    assert [row.label for row in table.rows] == ["CAE", "CLmser-n"]
    assert table.rows[0].cells[2].paper == 23.29
    assert all("stand-in data" in row.differs for row in table.rows)
    assert all(len(cell.ours) == 2 for row in table.rows for cell in row.cells)
    assert len(results.claims) == 1
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    measure, calls = scenes_reconstruction._measure, []

    def stopping(*args: object, **kwargs: object) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return measure(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(scenes_reconstruction, "_measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        scenes_reconstruction.run(request(scenes, tmp_path / "parts"), rows)
    again = scenes_reconstruction.run(request(scenes, tmp_path / "parts", resume=True), rows)
    assert again.tables == results.tables


def test_images_from_the_disk_train_the_same_network(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = tiny_rows()[0]
    decoded = scenes_reconstruction.run(request(scenes, tmp_path / "decoded"), [row])
    monkeypatch.setattr(photographs, "_MOST_BYTES", 100)
    streamed = scenes_reconstruction.run(request(scenes, tmp_path / "streamed"), [row])
    assert streamed.data["scenes: training data sha256"] != decoded.data["scenes: training data sha256"]
    assert streamed.tables == decoded.tables


def test_the_claim_needs_every_metric() -> None:
    def claim(*ours: float) -> bool:
        values = {"CAE": (0.5, 0.5, 0.5, 0.5), "CLmser-n": ours}
        rows = tuple(Row(label, tuple(Cell((v,)) for v in found)) for label, found in values.items())
        (found,) = scenes_reconstruction._claims(Table("t", METRICS, rows))
        return found.confirmed

    assert claim(0.4, 0.4, 0.6, 0.6)  # l1 and MSE want to be low, PSNR and SSIM high
    assert not claim(0.4, 0.4, 0.6, 0.4)
    assert not claim(0.4, math.nan, 0.6, 0.6)


def test_paper_scale_is_the_papers() -> None:
    for row in load_rows("scenes-reconstruction", "paper"):
        assert row.data["side"] == 256
        assert row.training["lr"] == 0.001
        assert row.steps(180_000) == 20 * 11_250
        assert (row.model["channels"], row.model["strides"]) == (
            [16, 32, 64, 128, 256, 256, 256],
            [1, 2, 2, 2, 2, 2, 2],
        )
        assert row.model["dcw"] is (row.label == "CLmser-n")
