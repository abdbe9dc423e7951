"""Association of faces with the eyes blocked: what is measured, and the experiment at a tiny scale."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch

from lmser import CLmser, reflection_loss
from lmser.data.masks import eyes_mask
from lmser.experiments import Request, association
from lmser.experiments.association import METRICS, block, nearest_faces, split_error
from lmser.experiments.networks import build_network
from lmser.experiments.photographs import on_unit_range
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.training_job import train_job

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.usefixtures("light_collections")

MASK = eyes_mask(16)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """The stand-in: 20 pictures, 18 for training and 2 for testing."""
    made_up_data.pictures(tmp_path / "data" / "faces128", 20, (16, 16))
    return tmp_path / "data"


def tiny_rows(scale: str = "quick", **training: object) -> list[RowConfig]:
    """The rows with three layers, 16x16 pixels and two steps; `training` changes those of Lmser(un-n)."""
    rows = []
    for row in load_rows("association", scale):
        changed = {key: value for key, value in row.training.items() if key != "epochs"}
        changed |= {"steps": 2, "batch_size": 6} | (training if row.label == "Lmser(un-n)" else {})
        model = {**row.model, "channels": [4, 5, 6], "strides": [1, 2, 2]}
        data = {"name": "faces", "side": 16}
        rows.append(dataclasses.replace(row, data=data, model=model, training=changed))
    return rows


def request(data: Path, out: Path, *, seeds: tuple[int, ...] = (0,), resume: bool = False) -> Request:
    return Request(data, "cpu", "quick", seeds, out, resume=resume, progress=False)


def loaded(data: Path, out: Path) -> association._Faces:
    return association._load(request(data, out), tiny_rows()[0])


def test_blocked_pixels_are_black_and_the_others_as_they_were() -> None:
    images = torch.rand(2, 3, 16, 16) + 0.1
    blocked = block(images, MASK)
    assert not blocked[MASK.expand_as(images)].any()
    assert torch.equal(blocked[~MASK.expand_as(images)], images[~MASK.expand_as(images)])
    assert images.all()


def test_errors_inside_and_outside_are_told_apart() -> None:
    images = torch.rand(2, 3, 16, 16)
    found = images + torch.where(MASK, 0.5, 0.1)
    assert split_error(found, images, MASK) == pytest.approx((0.25, 0.01), rel=1e-5)


def test_blocked_training_sees_no_eyes_and_is_asked_for_them() -> None:
    model, images = CLmser(3, (4, 5), (1, 2)), torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    expected = reflection_loss(model(block(on_unit_range(images), MASK)), on_unit_range(images))
    assert torch.equal(association._loss(model, images, MASK), expected)
    whole = model.loss(on_unit_range(images))
    torch.testing.assert_close(association._loss(model, images, None), whole)
    assert abs(float((whole - expected).detach())) > 1e-3


def test_the_references_are_what_they_say(faces: Path, tmp_path: Path) -> None:
    found = loaded(faces, tmp_path)
    train, test = (on_unit_range(part) for part in (found.photographs.train, found.photographs.test))
    rows = {row.label: row.cells for row in association._references(found)}
    inside = MASK.expand_as(test)
    black, mean = test[inside], (test - train.mean(0, keepdim=True))[inside]
    assert rows["blocked face"][0].mean == pytest.approx(float(black.square().mean()), rel=1e-5)
    assert rows["mean training face"][0].mean == pytest.approx(float(mean.square().mean()), rel=1e-5)
    for cells in rows.values():
        assert cells[1].mean == pytest.approx(-10 * math.log10(cells[0].mean), rel=1e-6)
        assert cells[2].mean == 0


def test_the_nearest_face_is_found_by_what_is_not_blocked(faces: Path, tmp_path: Path) -> None:
    found = loaded(faces, tmp_path)
    train = on_unit_range(found.photographs.train)
    disguised = torch.where(MASK, 1 - train[[7, 3]], train[[7, 3]] * 0.99)
    assert torch.equal(nearest_faces(disguised, found), train[[7, 3]])


def test_runs_and_continues_to_the_same_bits(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows()
    results = association.run(request(faces, tmp_path / "whole", seeds=(0, 1)), rows)
    assert [table.title.split(",")[0] for table in results.tables] == [
        "As printed: trained on whole faces",
        "Trained on whole faces",
        "Trained with the eyes blocked",
    ]
    references = ["blocked face", "mean training face", "nearest training face"]
    names = ["Lmser(un-n)", "Lmser(un)", "Lmser(un-w)", "AE"]
    assert [row.label for row in results.tables[1].rows] == names + references
    for table in results.tables:
        assert table.columns == METRICS
        for row in table.rows:
            if row.group == "":
                assert "stand-in data" in row.differs
                assert all(len(cell.ours) == 2 and all(map(math.isfinite, cell.ours)) for cell in row.cells)
    assert [claim.source for claim in results.claims] == ["000, Association"] * 4
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    calls: list[int] = []

    def stopping(*arguments: object, **further: object) -> object:
        calls.append(0)
        if len(calls) == 5:
            raise RuntimeError("killed")
        return train_job(*arguments, **further)  # type: ignore[arg-type]

    monkeypatch.setattr("lmser.experiments.campaign.train_job", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        association.run(request(faces, tmp_path / "cut", seeds=(0, 1)), rows)
    monkeypatch.setattr("lmser.experiments.campaign.train_job", train_job)
    again = association.run(request(faces, tmp_path / "cut", seeds=(0, 1), resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims
    for path in (tmp_path / "whole").rglob("*"):
        if path.suffix in (".svg", ".safetensors"):
            assert path.read_bytes() == (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_a_network_that_diverges_confirms_nothing(faces: Path, tmp_path: Path) -> None:
    rows = [row for row in tiny_rows(lr=1e30, steps=4) if row.table == "calibrated"]
    results = association.run(request(faces, tmp_path / "out"), rows)
    assert [cell.ours_text() for cell in results.tables[0].rows[0].cells] == ["diverged"] * 4
    assert [claim.confirmed for claim in results.claims] == [False, False]


def test_rows_with_different_data_are_refused(faces: Path, tmp_path: Path) -> None:
    first, second, *_ = tiny_rows()
    other = dataclasses.replace(second, data={"name": "faces", "side": 32})
    with pytest.raises(ValueError, match=r"rows: expected the same \[data\]"):
        association.run(request(faces, tmp_path / "out"), [first, other])
    assert not (tmp_path / "out").exists()


def test_the_rows_are_the_papers_network() -> None:
    rows = load_rows("association", "paper")
    assert [row.label for row in rows] == ["Lmser(un-n)", "Lmser(un)", "Lmser(un-w)", "AE"] * 3
    for row in rows:
        model = build_network(row.model)
        assert isinstance(model, CLmser)
        assert model.layer_sizes((128, 128))[-1] == (2, 2)
        assert model.dpn is (row.label in ("Lmser(un)", "Lmser(un-w)"))
        assert model.dcw is (row.label in ("Lmser(un)", "Lmser(un-n)"))
        config = row.train_config(0, samples=1800)
        assert (config.lr, config.gamma, config.batch_size, config.steps) == (
            0.01 if row.table == "as-printed" else 0.001,
            0.9999,
            50,
            2000,
        )
