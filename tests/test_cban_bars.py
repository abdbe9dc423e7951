"""The bar task as an experiment: what is measured and claimed, and a tiny run."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch

from lmser.data import bar_images
from lmser.data.bars import consistent
from lmser.experiments import Request, bar_task, cban_bars
from lmser.experiments.attractor_objective import attractor_loss_of
from lmser.experiments.bar_task import (
    IMAGES,
    METRICS,
    MISSING,
    OFF,
    PIXELS,
    SWEEPS,
    BarTask,
    bar_batch,
    fixed_trials,
)
from lmser.experiments.cban_bars import COLUMNS
from lmser.experiments.figures_weights import signed_colours, weight_squares
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import FBAN, attractor_loss

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")


def request(out: Path, *, resume: bool = False) -> Request:
    return Request(out, "cpu", "quick", (0,), out, resume=resume, progress=False)


def tiny_rows() -> list[RowConfig]:
    return [
        dataclasses.replace(
            row,
            model={**row.model, "sizes": [25, 4], "max_steps": 3},
            training={**row.training, "steps": 4, "log_every": 1},
        )
        for row in load_rows("cban-bars", "quick")
    ]


@pytest.fixture(autouse=True)
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cban_bars, "BarTask", lambda: BarTask(40))
    monkeypatch.setattr(cban_bars, "_SHOWN", 4)
    monkeypatch.setattr(cban_bars, "_UNITS", 3)


def test_batches_hold_every_image_and_evidence_for_it_alone() -> None:
    torch.manual_seed(0)
    index = torch.arange(20).repeat(3)
    images, observed = bar_batch(index)
    assert torch.equal(images, bar_images()[index])
    assert torch.equal(consistent(images, observed), torch.ones(60, dtype=torch.int64))
    again = bar_batch(index)[1]
    assert not torch.equal(again, observed)
    torch.manual_seed(0)
    assert torch.equal(bar_batch(index)[1], observed)  # a resumed run draws the same


def test_a_row_may_train_on_uneven_evidence() -> None:
    row = tiny_rows()[0]
    drawn = []
    for share in (0.0, 1.0):
        job = cban_bars._job(
            request(Path()), BarTask(5), dataclasses.replace(row, data={**row.data, "uneven": share})
        )
        torch.manual_seed(0)
        assert job.further is not None
        drawn.append(job.further["transform"](torch.arange(20))[1])
    torch.manual_seed(0)
    assert torch.equal(drawn[0], bar_batch(torch.arange(20))[1])
    assert not torch.equal(*drawn)


def test_what_is_measured() -> None:
    task = BarTask(60)
    assert torch.equal(task.trials.answer, fixed_trials().answer[:60])
    untrained = FBAN((25, 4), init=0.0)  # everything stays at 0, which has no sign
    found = task.measure(untrained)
    assert set(found) == set(METRICS)
    assert found[IMAGES] == 100 * float(task.trials.observed.flatten(1).all(1).double().mean())
    assert found[PIXELS] == pytest.approx(100 * float(task.trials.observed.double().mean()))
    assert found[MISSING] == 0
    assert found[SWEEPS] == 1
    assert found[OFF] == 0
    black = FBAN((25, 4), init=0.0)
    with torch.no_grad():
        black.biases[0].fill_(-5.0)
    right = (task.targets < 0) | task.trials.observed
    assert task.measure(black)[PIXELS] == pytest.approx(100 * float(right.double().mean()))


def test_batch_sizes_must_hold_every_image() -> None:
    row = tiny_rows()[0]
    bad = dataclasses.replace(row, training={**row.training, "batch_size": 30})
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 20, got 30"):
        BarTask(5).data(bad, "cpu")


def test_runs_and_continues_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny_rows()
    results = cban_bars.run(request(tmp_path / "whole"), rows)
    assert [row.label for table in results.tables for row in table.rows] == 2 * [
        "FBAN 25-50",
        "FBAN 25-48-24",
    ]
    assert results.tables[0].rows[0].cells[0].paper == 99.995
    assert len(results.figures) == 8
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    measure, calls = BarTask.measure, []

    def stopping(self: BarTask, network: torch.nn.Module) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return measure(self, network)

    monkeypatch.setattr(BarTask, "measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        cban_bars.run(request(tmp_path / "parts"), rows)
    again = cban_bars.run(request(tmp_path / "parts", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims


@pytest.mark.parametrize(("pixels", "confirmed"), [(99.995, True), (99.994, False), (float("nan"), False)])
def test_the_papers_share_is_claimed_of_the_pixels(pixels: float, confirmed: bool) -> None:
    values = dict.fromkeys(COLUMNS, 99.99) | {PIXELS: pixels}
    table = Table("", COLUMNS, (Row("FBAN 25-50", tuple(Cell((values[name],)) for name in COLUMNS)),))
    claims = cban_bars._claims(table)
    assert [claim.confirmed for claim in claims] == [confirmed, True, True, confirmed]


def test_paper_scale_is_appendix_d() -> None:
    printed = [row for row in load_rows("cban-bars", "paper") if row.table == "as-printed"]
    assert [row.model["sizes"] for row in printed] == [[25, 50], [25, 48, 24]]
    for row in printed:
        config = row.train_config(seed=0, samples=20)
        assert (config.optimizer, config.lr, config.batch_size, config.gamma) == ("sgd-l2", 0.01, 20, 0.1)
        assert row.objective == {"loss": "delta_e_plus", "td": 1.0}
        assert (row.model["theta"], row.model["init"]) == (0.01, "bars")


def test_the_objective_is_read() -> None:
    row = tiny_rows()[0]
    with pytest.raises(
        ValueError, match="objective: expected loss, td, stationary, units, label_weight and power, got"
    ):
        attractor_loss_of(dataclasses.replace(row, objective={"loss": "se", "lambda": 1}))
    torch.manual_seed(0)
    network = FBAN((25, 4))
    images, observed = bar_batch(torch.arange(20))
    for objective in ({"loss": "se"}, {"loss": "delta_e", "td": "last"}, {"loss": "se", "stationary": 1.0}):
        loss = attractor_loss_of(dataclasses.replace(row, objective=objective))
        kind, td, share = objective["loss"], objective.get("td", 1.0), objective.get("stationary", 0.0)
        expected = network.loss(images, observed, kind=kind, td=td, stationary=share)  # type: ignore[arg-type]
        torch.testing.assert_close(loss(network, images, observed), expected)
    loss = attractor_loss_of(dataclasses.replace(row, objective={"loss": "se", "power": 3.0}))
    settled = network.complete(images, observed, readouts=True)
    expected = attractor_loss(network.trajectory(settled), images, power=3.0)
    torch.testing.assert_close(loss(network, images, observed), expected)
    with pytest.raises(ValueError, match=r"objective.stationary: expected 0 where .* count alike, got 1"):
        attractor_loss_of(dataclasses.replace(row, objective={"loss": "se", "power": 3.0, "stationary": 1}))
    with pytest.raises(TypeError, match="expected an attractor network, got Linear"):
        loss(torch.nn.Linear(2, 2), images, observed)


def test_squares_show_sign_and_magnitude() -> None:
    weights = torch.zeros(2, 5, 5)
    weights[0, 0, 0], weights[1, 2, 3] = 4.0, -1.0
    svg = weight_squares("squares.svg", weights, columns=2).decode()
    xml.etree.ElementTree.fromstring(svg)
    assert svg.count("#0072b2") == 1
    assert svg.count("#d55e00") == 1
    with pytest.raises(ValueError, match=r"expected \(K, H, W\)"):
        weight_squares("squares.svg", weights[0], columns=2)
    colours = signed_colours(weights)
    assert colours.shape == (2, 3, 5, 5)
    assert torch.equal(colours[0, :, 4, 4], torch.ones(3))
    assert colours[0, 2, 0, 0] > colours[0, 0, 0, 0]  # blue
    assert colours[1, 0, 2, 3] > colours[1, 2, 2, 3]  # vermilion


def fixed_trials_are_the_same_for_every_network() -> None:
    one, other = bar_task.fixed_trials(), bar_task.fixed_trials(7)
    assert torch.equal(one.observed[:7], other.observed)
    assert len(one.answer) == 10_000
