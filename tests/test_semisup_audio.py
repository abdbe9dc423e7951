"""Regularisation on audio: what is trained on, measured, chosen and claimed, and a tiny run."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch
from torch import nn

from lmser.data import load_audio
from lmser.experiments import Request, semisup_audio
from lmser.experiments.audio_task import LEVEL, PARTS, AudioTask, levelled
from lmser.experiments.figures_learning import accuracy_bars, learning_curves
from lmser.experiments.paper import paper_table
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.semisup_audio import COLUMNS, SPEED
from lmser.experiments.tables import Cell, Row, Table
from lmser.experiments.training_job import JobResult
from lmser.inversion import SemiSupervised

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return made_up_data.birds10(made_up_data.fsdd(tmp_path / "data"))


def request(data: Path, out: Path, *, resume: bool = False) -> Request:
    return Request(data, "cpu", "quick", (0, 1), out, resume=resume, progress=False)


def tiny_rows() -> list[RowConfig]:
    """The baseline and two pairs of each data set."""
    rows = load_rows("semisup-audio", "quick")
    return [
        dataclasses.replace(
            row,
            model={**row.model, "kernel_size": 64, "stride": 32, "channels": 6, "units": 8},
            training={**row.training, "epochs": 3},
            evaluation={"last": 2},
        )
        for row in rows
        if row.objective["beta"] in (0, 0.5)
    ]


def test_rows_are_the_papers() -> None:
    paper = paper_table("003", "bird10")
    for scale in ("quick", "paper"):
        rows = load_rows("semisup-audio", scale)
        for name in ("fsdd", "birds10"):
            pairs = [
                f"{row.objective['alpha']:g}, {row.objective['beta']:g}"
                for row in rows
                if row.data["name"] == name
            ]
            assert pairs == list(paper)
        assert {row.table for row in rows} == {"fsdd", "birds10"}
        assert {(row.model["kernel_size"], row.model["stride"]) for row in rows} == {(1024, 512)}
    assert {row.evaluation["last"] for row in load_rows("semisup-audio", "paper")} == {100}
    assert paper["0.7, 0.3"] == {"train": 93.55, "valid": 52.09, "test": 54.65}


def test_segments_are_levelled() -> None:
    x = 3 + 20 * torch.randn(4, 1, 1, 100)
    found = levelled(x)
    torch.testing.assert_close(found.mean(-1), torch.zeros(4, 1, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.square().mean(-1).sqrt(), torch.full((4, 1, 1), LEVEL))
    assert levelled(torch.full((1, 5), 2.0)).tolist() == [[0.0] * 5]
    torch.testing.assert_close(levelled(1e-6 * x), levelled(x) * 1e-2 * x.std(-1, correction=0, keepdim=True))


class _Reads(nn.Module):
    """Knows the class by the loudest frequency, and says 0 for all but the first `count` waveforms that it is given."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Digit d is a tone of (d + 1) / 200 of the sampling rate.
        frequencies = torch.fft.rfft(x.flatten(1), n=2000).abs()[:, 10:110].unflatten(1, (10, 10))
        power = frequencies[:, :, 0].clone()
        known = torch.arange(len(x)) < self.left
        self.left -= len(x)
        power[~known] = torch.eye(10)[0]
        return power


def test_what_is_measured(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmser.experiments.audio_task._CHUNK", 32)
    split = load_audio(data)
    task = AudioTask(split, "cpu")
    assert task.measure(_Reads(10**9)) == dict.fromkeys(PARTS, 100.0)
    zeros = 100 * float((split.train.labels == 0).double().mean())
    assert task.measure(_Reads(0))["train"] == pytest.approx(zeros)
    some = task.measure(_Reads(40))
    right = int((split.train.labels[:40] >= 0).sum() + (split.train.labels[40:] == 0).sum())
    assert some["train"] == pytest.approx(100 * right / len(split.train))
    assert task.chance == 10
    index, labels = task.data
    x, y = task.transform(index[[5, 2]], labels[[5, 2]])
    assert torch.equal(x, levelled(split.train.waveforms(torch.tensor([5, 2]))))
    assert torch.equal(y, split.train.labels[[5, 2]])


def test_the_loss_is_the_papers(data: Path) -> None:
    task = AudioTask(load_audio(data), "cpu")
    row = tiny_rows()[1]
    assert row.label == "α = 0.7, β = 0.5"
    job = semisup_audio._job(row, task)
    assert job.build is not None
    model = job.build().eval()
    assert isinstance(model, SemiSupervised)
    assert job.eval_at == range(2, 7, 2)  # 70 segments are two batches, three epochs
    x, y = task.transform(*(part[:6] for part in task.data))
    x = x.requires_grad_()
    logits = model(x)
    error = (torch.autograd.grad(logits, x, logits)[0] - x).square().flatten(1).sum(1).mean()
    expected = 0.7 * nn.functional.cross_entropy(logits, y) + 0.3 * 0.5 * 0.2 * error
    assert job.loss is not None
    torch.testing.assert_close(job.loss(model, x, y), expected)


def test_the_epoch_is_chosen_by_validation_among_the_last() -> None:
    row = dataclasses.replace(tiny_rows()[0], evaluation={"last": 3})
    values = ((90, 99, 1), (80, 30, 2), (70, 40, 3), (60, 40, 4))
    metrics = {10 * (i + 1): dict(zip(PARTS, map(float, v), strict=True)) for i, v in enumerate(values)}
    job = JobResult(metrics, [], {}, 1.0, 0.1, None)
    assert semisup_audio._chosen(row, job) == {"train": 70, "valid": 40, "test": 3, SPEED: 75}
    lost = semisup_audio._chosen(row, dataclasses.replace(job, diverged_at=35))
    assert all(math.isnan(lost[name]) for name in COLUMNS)


def table(rows: dict[str, tuple[float, float, float]]) -> Table:
    lines = [
        Row(label, (Cell((50.0,)), Cell((valid,)), Cell((test,)), Cell((speed,))))
        for label, (valid, test, speed) in rows.items()
    ]
    return Table("Made up: accuracy", COLUMNS, tuple(lines))


def test_claims() -> None:
    base = {"α = 1, β = 0": (30.0, 30.0, 80.0)}

    def verdicts(**others: tuple[float, float, float]) -> list[bool]:
        return [claim.confirmed for claim in semisup_audio._claims(table({**base, **others}))]

    assert verdicts(a=(40, 40, 70), b=(35, 31, 60)) == [True, True, True]
    assert verdicts(a=(40, 40, 70), b=(35, 30, 60)) == [True, False, True]
    assert verdicts(a=(40, 29, 90), b=(35, 31, 69)) == [False, False, True]
    assert verdicts(a=(40, 31, 90), b=(math.nan, math.nan, math.nan)) == [True, False, False]
    assert verdicts() == []
    claims = semisup_audio._claims(table({**base, "a": (40, 40, 70), "b": (35, 31, 60)}))
    assert "40.00 % of the test segments with a" in claims[0].evidence
    assert "2 of 2 are above the baseline's 30.00 %" in claims[1].evidence


def test_runs_and_continues_to_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, light_collections: None
) -> None:
    rows = [row for row in tiny_rows() if row.objective["alpha"] > 0.6]
    results = semisup_audio.run(request(data, tmp_path / "whole"), rows)
    assert [row.label for row in results.tables[0].rows] == ["α = 1, β = 0", "α = 0.7, β = 0.5"]
    for found in results.tables:
        assert found.rows[0].cells[2].paper == 50.23
        assert all(len(cell.ours) == 2 for row in found.rows for cell in row.cells)
        assert all(0 <= value <= 100 for row in found.rows for cell in row.cells for value in cell.ours)
    assert len(results.claims) == 6
    assert len(results.figures) == 4
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    class Killed(RuntimeError):
        pass

    measure, calls = AudioTask.measure, 0

    def killed(task: AudioTask, network: nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 5:  # within the second row, after its first epoch
            raise Killed
        return measure(task, network)

    out = tmp_path / "killed"
    monkeypatch.setattr(AudioTask, "measure", killed)
    with pytest.raises(Killed):
        semisup_audio.run(request(data, out), rows)
    again = semisup_audio.run(request(data, out, resume=True), rows)
    assert again.tables == results.tables


def test_figures_refuse_and_leave_out() -> None:
    with pytest.raises(ValueError, match="no group"):
        accuracy_bars("x", {})
    with pytest.raises(ValueError, match="expected a in every group"):
        accuracy_bars("x", {"one": {"a": (1.0, None)}, "two": {"b": (1.0, None)}})
    with pytest.raises(ValueError, match="no panel"):
        learning_curves("x", {}, x_label="epoch")
    lost = {"one": {"a": (math.nan, None)}, "two": {"a": (50.0, 2.0)}}
    assert b"two" in accuracy_bars("x", lost)
