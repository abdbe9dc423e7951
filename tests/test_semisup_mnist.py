"""`semisup-mnist` at a tiny scale: its files, what each kind of row is trained and measured on, tables and claims."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import made_up_data
import pytest
import torch
from click.testing import CliRunner

from lmser.cli import main
from lmser.data import few_labels
from lmser.experiments import Request, semisup_mnist
from lmser.experiments.balanced_loss import balanced_loss
from lmser.experiments.labelled_images import LabelledImages
from lmser.experiments.networks import build_network
from lmser.experiments.paper import paper_table
from lmser.experiments.results import Results
from lmser.experiments.rows import RowConfig, chosen_rows, load_rows
from lmser.experiments.semisup_mnist import COLUMNS, ERROR, FEW, GRID, MANY, SEMI, measure
from lmser.experiments.tables import Cell, Row, Table
from lmser.inversion import SemiSupervised, invert

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")


def tiny_rows(*tables: str) -> list[RowConfig]:
    rows = []
    for row in load_rows("semisup-mnist", "paper"):
        if row.table not in tables or row.label not in ("SmallCNNmean", "SmallUCNN", "0.7, 0.2"):
            continue
        data = {**row.data, "per_class": 2 if row.table == MANY else 1}
        if "labelled" in data:
            data["labelled"] = 5
        if "held_out" in data:
            data["held_out"] = 10
        batch = 10 if "labelled" in data else 5
        training = {**row.training, "steps": 3, "batch_size": batch, "log_every": 1}
        rows.append(dataclasses.replace(row, data=data, training=training))
    return rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_data.digits(tmp_path_factory.mktemp("data"), "mnist")


def run(root: Path, out: Path, *tables: str, resume: bool = False) -> Results:
    request = Request(root, "cpu", "quick", (0, 1), out, resume=resume, progress=False)
    return semisup_mnist.run(request, tiny_rows(*tables))


def test_every_network_of_table_2_has_its_three_rows() -> None:
    rows = load_rows("semisup-mnist", "paper")
    for table in (SEMI, FEW, MANY):
        assert {row.label for row in rows if row.table == table} == set(paper_table("003", "table 2"))
    for row in rows:
        if row.table == SEMI:
            printed = paper_table("003", "table 2")[row.label]
            assert (row.objective["alpha"], row.objective["beta"]) == (printed["alpha"], printed["beta"])
            assert row.data == {"name": "mnist", "per_class": 5, "labelled": 50}
    searched = [row for row in rows if row.table == GRID]
    assert all(row.data["held_out"] == 10_000 for row in searched)
    grid = {(row.objective["alpha"], row.objective["beta"]) for row in searched if not row.group}
    assert grid == {(a, b) for a in (0.3, 0.4, 0.5, 0.6, 0.7) for b in (0.2, 0.3, 0.5)}


def test_tables_and_figure(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path / "out", SEMI, FEW, MANY, GRID)
    table, grid, errors = results.tables
    assert table.columns == COLUMNS
    assert [row.label for row in table.rows] == ["SmallCNNmean (0.7, 0.2)", "SmallUCNN (0.5, 0.2)"]
    for row in table.rows:
        assert all(len(cell.ours) == 2 for cell in row.cells)
    assert [cell.paper for cell in table.rows[0].cells] == [99.07, None, None, 94.9]
    assert [row.label for row in grid.rows] == ["0.7, 0.2"]
    assert [(row.group, row.label[:23]) for row in errors.rows] == [
        (network, f"labels drawn by seed {seed}:")
        for network in ("SmallCNNmean", "SmallUCNN")
        for seed in (0, 1)
    ]
    for network, line in zip(("SmallCNNmean", "SmallUCNN"), table.rows, strict=True):
        of = [row.cells[0].ours[0] for row in errors.rows if row.group == network]
        assert of == pytest.approx(line.cells[0].ours)
    assert all(row.cells[2].mean is not None for row in errors.rows)
    assert len(results.claims) == 6
    (figure,) = results.figures
    assert (tmp_path / "out" / figure.file).is_file()
    again = run(root, tmp_path / "out", SEMI, FEW, MANY, GRID, resume=True)
    assert again.tables == results.tables


def test_what_each_row_is_trained_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def never(directory, **keywords):
        seen.append((directory.parent.name, keywords))
        raise KeyboardInterrupt

    monkeypatch.setattr("lmser.experiments.campaign.train_job", never)
    for table in (SEMI, FEW, MANY, GRID):
        with pytest.raises(KeyboardInterrupt):
            run(root, tmp_path / table, table)
    (_, semi), (_, few), (_, many), (_, grid) = seen
    images, labels = semi["data"]
    assert len(images) == 60
    assert int((labels >= 0).sum()) == 10
    assert semi["sampler"].described() == {
        "sampler": "two streams",
        "batch_size": 10,
        "labelled": 5,
        "seed": 0,
    }
    for keywords, count in ((few, 10), (many, 20)):
        images, labels = keywords["data"]
        assert len(images) == len(labels) == count
        assert bool((labels >= 0).all())
        assert "sampler" not in keywords
    # With one seed the same images have labels, with or without the others.
    full = torch.arange(60) % 10
    assert torch.equal(semi["data"][1], few_labels(full, 1, 0))
    assert torch.equal(few["data"][0], semi["data"][0][semi["data"][1] >= 0])
    # What is held out is not trained on, and is what is measured.
    assert torch.equal(grid["data"][0], semi["data"][0][:50])
    measured = grid["evaluate"].keywords
    assert torch.equal(measured["images"], semi["data"][0][50:])


def test_measures() -> None:
    torch.manual_seed(0)
    model = SemiSupervised(build_network({"kind": "SmallCNN", "pooling": "max"}))
    images = torch.rand(7, 1, 28, 28)
    labels = model(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    found = measure(model, images, labels)
    assert found["accuracy %"] == pytest.approx(100 * 5 / 7)
    assert found[ERROR] == pytest.approx(
        float((invert(model.model, images) - images).square().mean()), rel=1e-5
    )


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_balance_is_of_what_has_no_label(balance: float) -> None:
    torch.manual_seed(0)
    model = SemiSupervised(build_network({"kind": "SmallCNN", "pooling": "mean"}), 0.7, 0.2).double()
    images = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    labels = torch.tensor([3, -1, -1, 0, -1, -7])
    mean = model(images)[labels < 0].softmax(1).mean(0)
    expected = model.eval().loss(images, labels) + balance * (mean * mean.log()).sum()
    torch.testing.assert_close(balanced_loss(model, images, labels, balance=balance), expected)
    assert int(model.step) == 0
    assert torch.equal(
        balanced_loss(model, images, labels.abs(), balance=balance), model.loss(images, labels.abs())
    )
    model.train()
    balanced_loss(model, images, labels, balance=balance)
    assert int(model.step) == 1


def table(semi: float, few: float, many: float) -> Table:
    cells = (Cell((semi,), 99.07), Cell((0.1,)), Cell((few,)), Cell((many,), 94.9))
    return Table("t", COLUMNS, (Row("SmallCNNmean (0.7, 0.2)", cells),))


@pytest.mark.parametrize(
    ("values", "confirmed"),
    [
        ((98.6, 80.0, 96.0), [True, True, True]),
        ((98.5, 93.6, 98.5), [False, False, False]),
        ((97.0, 92.0, 96.9), [True, True, False]),
    ],
)
def test_claims(values: tuple[float, ...], confirmed: list[bool]) -> None:
    assert [claim.confirmed for claim in semisup_mnist._claims(table(*values))] == confirmed


def test_a_part_of_the_rows() -> None:
    rows = load_rows("semisup-mnist", "paper")
    assert {row.label for row in chosen_rows(rows, ("LargeU",))} == {"LargeUCNN"}
    assert len(chosen_rows(rows, ("grid/", "semi/"))) == 55
    assert chosen_rows(rows, ()) == rows
    with pytest.raises(ValueError, match="rows: none has one of Tiny in its path"):
        chosen_rows(rows, ("Tiny",))


def test_only_some_experiments_can_be_run_in_part(root: Path, tmp_path: Path) -> None:
    arguments = [
        "run",
        "mnist-reconstruction",
        "--data",
        str(root),
        "--rows",
        "AE",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code
    assert "mnist-reconstruction is run as a whole; a part can be run of semisup-mnist" in result.output
    assert not (tmp_path / "out").exists()
    arguments[1], arguments[5] = "semisup-mnist", "Tiny"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code
    assert "Error: rows: none has one of Tiny in its path; there are semi/SmallCNNmean" in result.output
    assert not (tmp_path / "out").exists()


def test_the_pixels_are_on_the_unit_range(root: Path) -> None:
    images = LabelledImages.of(
        *(semisup_mnist.load_mnist(root, False, part) for part in (True, False)), "cpu"
    )
    assert (float(images.train.min()), float(images.train.max())) == (0.0, 1.0)
