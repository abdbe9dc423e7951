"""Digits and their class, ways to use evidence, and losses of attractor networks: tiny runs, and what is claimed."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch

from lmser.data import ImageSet, load_mnist
from lmser.experiments import Request, attractor_comparison, bar_task, cban_evidence, cban_loss, cban_mnist
from lmser.experiments.attractor_comparison import COLUMNS, shortfall
from lmser.experiments.attractor_objective import attractor_loss_of
from lmser.experiments.bar_task import BarTask
from lmser.experiments.digit_task import ERROR, FULL, MASKED, METRICS, OFF, DigitTask
from lmser.experiments.labelled_digits import HIGHEST, PIXELS, UNITS
from lmser.experiments.networks import build_network
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import FBAN, attractor_loss

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return made_up_data.digits(tmp_path / "data", "mnist")


def request(data: Path, out: Path, *, resume: bool = False) -> Request:
    return Request(data, "cpu", "quick", (0,), out, resume=resume, progress=False)


def tiny_rows(experiment: str) -> list[RowConfig]:
    return [
        dataclasses.replace(
            row,
            model={**row.model, "sizes": [row.model["sizes"][0], 3], "max_steps": 3},
            training={**row.training, "steps": 2, "batch_size": 20, "log_every": 1},
        )
        for row in load_rows(experiment, "quick")
    ]


def one_digit() -> tuple[ImageSet, ImageSet]:
    pixels = torch.zeros(4, 28, 28, dtype=torch.uint8)
    pixels[:, :14] = 255
    images = ImageSet(pixels, torch.tensor([0, 1, 2, 3]), tuple("0123456789"), "made up", verified=True)
    return images, images


def test_what_is_measured_of_digits() -> None:
    task = DigitTask(*one_digit(), "cpu")
    assert task.targets.shape == (4, UNITS)
    assert int((~task.masked[:, :PIXELS]).sum()) == 4 * round(PIXELS / 3)
    assert not bool(task.masked[:, PIXELS:].any())
    assert task.mean_error == pytest.approx(0, abs=1e-10)  # every digit has the same pixels
    still = FBAN((UNITS, 2), init=0.0)
    found = task.measure(still)
    assert tuple(found) == (MASKED, FULL, ERROR, OFF, "iterations") == METRICS
    assert found[ERROR] == pytest.approx(HIGHEST**2)  # what is missing stays at 0
    assert found[OFF] == 0
    assert found[MASKED] == 25  # equal sums: the first class
    with torch.no_grad():
        still.biases[0][:PIXELS].copy_(torch.atanh(task.targets[0, :PIXELS]))
        still.biases[0][PIXELS + 4 : PIXELS + 6] = 1.0
    found = task.measure(still)
    assert found[ERROR] == pytest.approx(0, abs=1e-8)
    assert tuple(task.measure(still, masked=False)) == (FULL, "iterations")
    free = FBAN((UNITS, 2), init=0.0, evidence="init")
    assert task.measure(free)[OFF] == pytest.approx(HIGHEST)


def test_masks_of_batches_are_new_and_the_runs_own() -> None:
    task = DigitTask(*one_digit(), "cpu", count=2)
    assert len(task.targets) == 2
    torch.manual_seed(0)
    targets, observed = task.transform(1 / 3)(task.train)
    assert torch.equal(targets, task.train)
    assert int(observed.sum()) == 4 * (PIXELS - round(PIXELS / 3))
    assert not torch.equal(task.transform(1 / 3)(task.train)[1], observed)
    torch.manual_seed(0)
    assert torch.equal(task.transform(1 / 3)(task.train)[1], observed)
    whole = task.transform(0)(task.train)[1]
    assert bool(whole[:, :PIXELS].all())
    assert not bool(whole[:, PIXELS:].any())


def test_images_are_moved_and_their_labels_stay() -> None:
    task = DigitTask(*one_digit(), "cpu", count=2)
    torch.manual_seed(0)
    moved, observed = task.transform(0, shift=2)(task.train.repeat(50, 1))
    assert torch.equal(moved[:, PIXELS:], task.train.repeat(50, 1)[:, PIXELS:])
    assert torch.equal(observed, task.transform(0)(moved)[1])
    images = moved[:, :PIXELS].reshape(-1, 28, 28)
    # The upper half is white: it ends at row 12 to 16, where it begins black has come in, and so from both sides.
    ends = (images[:, :, 14] > 0).sum(1) + (images[:, :, 14] > 0).int().argmax(1)
    assert sorted(set(ends.tolist())) == [12, 13, 14, 15, 16]
    left = (images[:, 8] > 0).int().argmax(1)
    assert sorted(set(left.tolist())) == [0, 1, 2]
    assert set((images[:, 8] > 0).sum(1).tolist()) == {26, 27, 28}
    assert set(images.unique().tolist()) == set(task.train.unique().tolist())
    for wrong in (-1, 28, 1.0, True):
        with pytest.raises(ValueError, match="shift: expected a whole number of pixels from 0 to 27, got"):
            task.transform(0, shift=wrong)


def test_the_loss_of_missing_units() -> None:
    torch.manual_seed(0)
    row = dataclasses.replace(tiny_rows("cban-loss")[0], objective={"loss": "delta_e", "units": "missing"})
    network = FBAN((25, 4))
    target = torch.full((3, 25), 0.5)
    observed = torch.zeros(3, 25, dtype=torch.bool)
    every = network.loss(target, observed, kind="delta_e").detach()
    torch.testing.assert_close(attractor_loss_of(row)(network, target, observed).detach(), every)
    observed[:, :24] = True
    loss = attractor_loss_of(row)(network, target, observed).detach()
    assert 0 < float(loss) < float(network.loss(target, observed, kind="delta_e").detach())
    observed[:] = True
    assert float(attractor_loss_of(row)(network, target, observed).detach()) == pytest.approx(0, abs=1e-6)
    for objective, words in (
        ({"loss": "se", "units": "label"}, "expected 'all' or 'missing', got 'label'"),
        ({"loss": "se", "label_weight": 0}, "expected a whole number above 0, got 0"),
        ({"loss": "se", "units": "missing", "stationary": 1.0}, "expected 0 where not all units and samples"),
    ):
        with pytest.raises(ValueError, match=words):
            attractor_loss_of(dataclasses.replace(row, objective=objective))


def test_label_units_count_as_often_as_asked() -> None:
    torch.manual_seed(0)
    row = tiny_rows("cban-loss")[0]
    network = FBAN((UNITS, 2), init=0.01, max_steps=1)
    target = torch.full((3, UNITS), 0.5)
    observed = torch.zeros(3, UNITS, dtype=torch.bool)
    loss = {
        weight: attractor_loss_of(
            dataclasses.replace(row, objective={"loss": "delta_e", "label_weight": weight})
        )(network, target, observed).detach()
        for weight in (1, 2, 4)
    }
    assert loss[2] > loss[1]
    torch.testing.assert_close(loss[4] - loss[2], 2 * (loss[2] - loss[1]), rtol=1e-4, atol=1e-3)


def test_digits_run_and_continue(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny_rows("cban-mnist")
    results = cban_mnist.run(request(data, tmp_path / "whole"), rows)
    assert [table.title for table in results.tables] == ["As printed: SGD-Linf, lr 0.01", "Calibrated"]
    for table in results.tables:
        masked, whole = table.rows
        assert [cell.paper for cell in masked.cells] == [87.5, 89.9, None, None]
        assert [cell.paper for cell in whole.cells] == [None, 98.5, None, None]
        assert [len(cell.ours) for cell in whole.cells] == [0, 1, 0, 1]
    assert len(results.claims) == 6
    assert len(results.figures) == 8
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    measure, calls = DigitTask.measure, []

    def stopping(self: DigitTask, network: torch.nn.Module, *, masked: bool = True) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return measure(self, network, masked=masked)

    monkeypatch.setattr(DigitTask, "measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        cban_mnist.run(request(data, tmp_path / "parts"), rows)
    again = cban_mnist.run(request(data, tmp_path / "parts", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims


@pytest.mark.parametrize(("module", "rows", "claims"), [(cban_evidence, 10, 6), (cban_loss, 16, 3)])
def test_comparisons_run(
    module: object, rows: int, claims: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attractor_comparison, "BarTask", lambda: BarTask(20))
    name = module.NAME  # type: ignore[attr-defined]
    tiny = tiny_rows(name)
    results = module.run(request(data, tmp_path / "out"), tiny)  # type: ignore[attr-defined]
    assert sum(len(table.rows) for table in results.tables) == rows == len(tiny)
    assert len(results.claims) == claims
    assert all(len(cell.ours) == 1 for table in results.tables for row in table.rows for cell in row.cells)
    first = {row.data["name"]: row for row in tiny[::-1]}
    for row in tiny:  # nothing but what is compared differs within a task
        same = first[row.data["name"]]
        assert (row.training, row.data, row.evaluation) == (same.training, same.data, same.evaluation)
        assert row.model["sizes"] == same.model["sizes"]


def table_of(values: dict[str, float], name: str = "bars") -> Table:
    column = bar_task.IMAGES if name == "bars" else ERROR
    rows = []
    for label, value in values.items():
        cells = dict.fromkeys(COLUMNS[name], 0.1) | {column: value, OFF: 0.9 if label == "init" else 0.1}
        rows.append(Row(label, tuple(Cell((cells[key],)) for key in COLUMNS[name])))
    return Table(attractor_comparison._TITLES[name], COLUMNS[name], tuple(rows), header="row")


def test_claims_on_evidence() -> None:
    bars = table_of({"clamp": 99.0, "init": 10.0, "blend": 60.0, "bias": 50.0, "replicate": 98.0})
    digits = table_of({"clamp": 0.1, "init": 0.9, "blend": 0.3, "bias": 0.4, "replicate": 0.05}, "mnist")
    assert all(claim.confirmed for claim in cban_evidence._claims((bars, digits)))
    digits = table_of({"clamp": 0.1, "init": 0.9, "blend": 0.05, "bias": 0.4, "replicate": 0.5}, "mnist")
    confirmed = [claim.confirmed for claim in cban_evidence._claims((bars, digits))]
    assert confirmed == [False, True, True, False, False, True]
    lost = table_of({"clamp": float("nan"), "init": 10.0, "blend": 60.0, "bias": 50.0, "replicate": 98.0})
    claims = cban_evidence._claims((lost,))
    assert "clamp diverged" in claims[0].evidence
    assert not claims[0].confirmed


@pytest.mark.parametrize(
    ("values", "confirmed"),
    [
        ((99.0, 98.0, 50.0, 97.0, 99.05, 90.0), [True, True, True]),
        ((99.0, 99.5, 50.0, 97.0, 99.5, 99.5), [False, False, True]),
        ((99.0, 98.0, 50.0, 99.1, 98.0, 98.0), [True, True, False]),
    ],
)
def test_claims_on_losses(values: tuple[float, ...], confirmed: list[bool]) -> None:
    labels = (
        cban_loss.TD1,
        cban_loss.TD05,
        cban_loss.TD0,
        cban_loss.LAST,
        cban_loss.STATIONARY,
        cban_loss.MIXED,
    )
    table = table_of(dict(zip(labels, values, strict=True)))
    assert [claim.confirmed for claim in cban_loss._claims((table,))] == confirmed
    assert shortfall(99.0) == 1
    assert shortfall(-0.2) == 0.2


def test_labels_are_those_of_the_files() -> None:
    labels = {row.label for row in load_rows("cban-loss", "paper")}
    named = {
        cban_loss.TD1,
        cban_loss.TD05,
        cban_loss.TD0,
        cban_loss.LAST,
        cban_loss.STATIONARY,
        cban_loss.MIXED,
    }
    assert named < labels
    modes = {row.label: row.model["evidence"] for row in load_rows("cban-evidence", "paper")}
    assert all(label == mode for label, mode in modes.items())
    assert len(modes) == 5


def test_paper_scale_is_appendix_d() -> None:
    masked, whole = [row for row in load_rows("cban-mnist", "paper") if row.table == "as-printed"]
    config = masked.train_config(seed=0, samples=60000)
    assert (config.optimizer, config.lr, config.batch_size) == ("sgd-linf", 0.01, 250)
    assert masked.model["sizes"] == [812, 200, 50]
    assert masked.objective == {"loss": "delta_e_plus", "td": 1.0}
    assert (masked.data["missing"], whole.data["missing"]) == (pytest.approx(1 / 3), 0)


def test_the_digits_are_the_ones_of_the_folder(data: Path) -> None:
    rows = tiny_rows("cban-evidence")
    tasks = attractor_comparison.Tasks(request(data, data), rows)
    assert tasks.identity()["training"] == load_mnist(data, False, True).sha256()
    assert tasks.differs(rows[-1]) == ("not the original files",)
    with pytest.raises(ValueError, match=r"data\.name: expected 'bars' or 'mnist', got 'svhn'"):
        attractor_comparison.Tasks(request(data, data), [dataclasses.replace(rows[0], data={"name": "svhn"})])


@pytest.mark.parametrize("weight", [1, 3])
def test_loss_of_missing_units_is_that_of_all_where_observed_ones_are_right(weight):
    (row,) = [row for row in load_rows("cban-mnist", "quick") if row.path == "calibrated/whole"]
    row = dataclasses.replace(row, objective={**row.objective, "label_weight": weight, "units": "missing"})
    torch.manual_seed(0)
    model = build_network(row.model).double()
    target = torch.rand(5, 812, dtype=torch.float64) * 1.8 - 0.9
    whole = torch.zeros(5, 812, dtype=torch.bool)
    whole[:, :784] = True
    some = torch.rand(5, 812) < 0.7
    for observed in (whole, some):
        found = attractor_loss_of(row)(model, target, observed)
        readouts = model.trajectory(model.complete(target, observed, readouts=True))
        given = torch.where(observed, target, readouts)
        copies = [*(weight - 1) * [slice(784, 812)]]
        given, wanted = (torch.cat([t, *(t[..., c] for c in copies)], -1) for t in (given, target))
        want = attractor_loss(given, wanted, kind="delta_e_plus")
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
        mine, other = (torch.autograd.grad(x, model.weights[0], retain_graph=True)[0] for x in (found, want))
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)
