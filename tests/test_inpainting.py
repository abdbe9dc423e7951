"""Inpainting at a tiny scale: what is trained on, what is measured, what is claimed."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch

from lmser import metrics
from lmser.baselines import PICNet
from lmser.data import load_photos
from lmser.data.masks import coverage_of, point_masks
from lmser.experiments import Request, inpainting
from lmser.experiments.completions import complete, with_holes
from lmser.experiments.inpainting_tables import DISTANCE, claims
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import CLmser

pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
Image = pytest.importorskip("PIL.Image")

LABELS = ["CLmser", "CLmser-w", "CLmser-n", "CAE", "PConv", "PEN-Net", "PICNet"]

# Networks as small as their files allow.
TINY_MODELS = {
    "CLmser": {"channels": [4, 4], "strides": [1, 2]},
    "PConvUNet": {"depth": 2, "width": 0.05},
    "PENNet": {"size": 256, "width": 0.05},
    "PICNet": {"size": 256, "width": 0.05},
}


def tiny_rows() -> list[RowConfig]:
    return [
        dataclasses.replace(
            row,
            data={"name": row.data["name"], "side": 64, "stand_in_side": 32, "test": 2},
            model={**row.model, **TINY_MODELS[row.model["kind"]]},
            training={**row.training, "batch_size": 2, "steps": 2},
        )
        for row in load_rows("inpainting", "quick")
        if row.group == "CelebA-HQ" or row.label in ("CLmser-w", "PICNet")
    ]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("faces128", "scenes256"):
        made_up_data.pictures(tmp_path / "data" / name, 24, (32, 32))
    return tmp_path / "data"


def test_a_batch_is_whole_images_and_masks_that_the_generator_decides() -> None:
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    torch.manual_seed(1)
    images, masks = inpainting.damaged_batch(pixels)
    _, others = inpainting.damaged_batch(pixels)
    torch.manual_seed(1)
    again = inpainting.damaged_batch(pixels)
    assert torch.equal(images, pixels / 255)
    assert torch.equal(masks, again[1])
    assert not torch.equal(masks, others)
    assert len({mask.numpy().tobytes() for mask in masks}) == 3
    assert bool(((coverage_of(masks) >= 0.25) & (coverage_of(masks) < 0.27)).all())


def test_clmser_learns_the_whole_image_from_the_damaged_one() -> None:
    model = CLmser(3, (4,), (1,))
    images, masks = torch.rand(2, 3, 16, 16), point_masks(2, 16)
    found = complete(model, images, masks).detach()
    loss = inpainting.reconstruction_loss(model, images, masks).detach()
    assert float(loss) == pytest.approx(0.5 * float((found - images).square().sum()) / 2, rel=1e-5)
    # What stands in a hole is not seen.
    assert torch.equal(complete(model, torch.where(masks, 9.0, images), masks), found)
    assert torch.equal(with_holes(images, masks) == 0, masks.expand_as(images) | (images == 0))


def test_a_drawn_completion_is_always_the_same() -> None:
    network = PICNet(size=32, width=0.05).eval()
    images, masks = torch.rand(1, 3, 32, 32), point_masks(1, 32)
    with torch.no_grad():
        first = complete(network, images, masks, samples=2)
        torch.rand(5)
        assert torch.equal(complete(network, images, masks, samples=2), first)


def test_runs_and_continues_to_the_same_bits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows()

    def request(out: str, *, resume: bool = False) -> Request:
        return Request(photos, "cpu", "quick", (0,), tmp_path / out, resume=resume, progress=False)

    results = inpainting.run(request("whole"), rows)
    completed, own = results.tables
    assert [row.label for row in completed.rows] == [*LABELS, "CLmser-w", "PICNet"]
    assert completed.columns[:4] == ("l1 x 100", "MSE x 1000", "PSNR", "SSIM")
    assert completed.columns[4].startswith(
        "Fréchet distance (pooled VGG-16"
    )  # not called FID without its weights
    assert completed.rows[0].cells[2].paper == 32.13
    assert completed.rows[0].cells[4].paper is None
    assert "stand-in data, 32x32 pixels" in completed.rows[0].differs
    assert "no perceptual and style terms" in completed.rows[4].differs
    assert len(results.claims) == 4
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)
    # Pasting known pixels in takes error away, and where nothing was learned it takes three quarters.
    for pasted, plain in zip(completed.rows, own.rows, strict=True):
        assert pasted.cells[1].ours[0] < 0.5 * plain.cells[1].ours[0]

    measure, calls = inpainting._Prepared._measure, []

    def stopping(*args: object, **kwargs: object) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 6:  # PEN-Net, which has two optimisers
            raise RuntimeError("killed")
        return measure(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(inpainting._Prepared, "_measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        inpainting.run(request("parts"), rows)
    again = inpainting.run(request("parts", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims


@pytest.mark.filterwarnings("ignore:frechet_distance")  # two images are few
def test_the_metrics_are_of_the_completed_image(photos: Path, tmp_path: Path) -> None:
    rows = [row for row in tiny_rows() if row.label == "CLmser" or row.group == "Places2"]
    prepared = inpainting._Prepared(Request(photos, "cpu", "quick", (0,), tmp_path), rows)
    model = CLmser(3, (4,), (1,)).eval()
    found = prepared._measure(model, "faces-hq", None)
    images = load_photos(photos, "faces-hq", 32, test=2).test.to_float()
    masks = point_masks(2, 32, seed=0)
    with torch.no_grad():
        output = complete(model, images, masks)
    whole = torch.where(masks, output, images)
    assert found["MSE"] == pytest.approx(metrics.mse(whole, images))
    assert found["SSIM"] == pytest.approx(metrics.ssim(whole, images, 1.0))
    assert found["PSNR"] == pytest.approx(-10 * math.log10(metrics.mse(whole, images)))
    assert found["own l1"] == pytest.approx(metrics.l1(output, images))
    assert found[DISTANCE] == pytest.approx(prepared.distance(whole.clamp(0, 1), images), rel=1e-4)


def _table(**mse: float) -> Table:
    columns = ("l1 x 100", "MSE x 1000", "PSNR", "SSIM", "FID")
    rows = [
        Row(label, tuple(Cell((-v if column in ("PSNR", "SSIM") else v,)) for column in columns), group=group)
        for group in ("CelebA-HQ", "Places2")
        for label, v in zip(LABELS, mse.values(), strict=True)
    ]
    return Table("t", columns, tuple(rows))


def test_claims_are_decided_by_the_numbers() -> None:
    def decided(*mse: float) -> list[bool]:
        return [claim.confirmed for claim in claims(_table(**dict(zip(LABELS, mse, strict=True))))]

    #              CL   -w   -n   CAE  PConv PEN PIC
    assert decided(2.0, 1.0, 4.0, 3.0, 5.0, 6.0, 7.0) == [True, True, True, True]
    assert decided(2.0, 3.0, 4.0, 3.5, 5.0, 6.0, 7.0) == [False, False, True, True]
    assert decided(2.0, 1.0, 1.5, 3.0, 5.0, 6.0, 0.5) == [False, True, False, False]
    # A run that diverged is the worst, also where larger is better.
    assert decided(2.0, math.nan, 4.0, 3.0, 5.0, 6.0, 7.0) == [False, False, False, False]


def test_what_the_peers_lacked_is_said_where_they_lose() -> None:
    table = _table(**dict(zip(LABELS, (2.0, 1.0, 4.0, 3.0, 5.0, 6.0, 7.0), strict=True)))
    small = [
        dataclasses.replace(r, differs="a quarter of the channels") for r in table.rows if r.label == "PConv"
    ]
    rows = [*small, *(r for r in table.rows if r.label != "PConv")]
    best, _, dpn, beaten = claims(dataclasses.replace(table, rows=tuple(rows)))
    for claim in (best, beaten):
        assert claim.evidence.endswith("Not the papers': PConv: a quarter of the channels")
    assert "quarter" not in dpn.evidence


@pytest.mark.parametrize("group", ["CelebA-HQ", "Places2"])
def test_paper_scale_is_the_papers(group: str) -> None:
    rows = [row for row in load_rows("inpainting", "paper") if row.group == group]
    assert [row.label for row in rows] == LABELS
    for row in rows:
        assert row.data["side"] == 256
        assert row.training["epochs"] == 20
        assert row.training["batch_size"] == 16
        if row.model["kind"] == "CLmser":
            assert row.training["lr"] == 0.001
            assert row.model["channels"] == [16, 32, 64, 128, 256, 256, 256]
