"""Generation from codes: what is sent down, how pictures are measured, and the experiment at a tiny scale."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch
from torch import Tensor

from lmser import CLmser, Lmser
from lmser.experiments import Request, generation
from lmser.experiments.codes import (
    Codes,
    codes_of,
    most_varied,
    random_styles,
    range_values,
    style_values,
    unit_range,
)
from lmser.experiments.figures_blocks import picture_blocks
from lmser.experiments.generated import (
    class_from_style,
    class_pictures,
    decoded,
    diversity,
    step_evenness,
    traverse,
)
from lmser.experiments.generation_claims import claims
from lmser.experiments.networks import build_network
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

pytestmark = pytest.mark.usefixtures("light_collections")


def network(kind: str, *, dpn: bool = True) -> Lmser | CLmser:
    if kind == "Lmser":
        return Lmser((36, 9, 5), dpn=dpn).eval()
    return CLmser(1, (3, 4), (1, 2), dpn=dpn).eval()


# Codes.


def test_range_and_spread_of_units() -> None:
    values = torch.zeros(101, 3)
    values[:, 1] = torch.arange(101.0)
    values[:, 2] = torch.arange(101.0) / 10
    codes = Codes(values[torch.randperm(101)], torch.zeros(101, dtype=torch.int64))
    assert unit_range(codes, 1) == (1.0, 99.0)
    assert most_varied(codes, 2) == [1, 2]
    assert range_values(codes, [1, 0], 3).tolist() == [[1, 50, 99], [0, 0, 0]]


def test_a_unit_of_a_convolutional_code_is_a_channel() -> None:
    values = torch.zeros(5, 2, 3, 3)
    values[:, 1] = torch.arange(45.0).reshape(5, 3, 3)
    codes = Codes(values, torch.zeros(5, dtype=torch.int64))
    assert most_varied(codes, 1) == [1]
    assert unit_range(codes, 1) == (0.0, 44.0)


def test_styles_are_drawn_as_the_decoder_saw_them() -> None:
    means = torch.tensor([3.0, -1.0]) + torch.randn(4000, 2) * torch.tensor([2.0, 0.5])
    codes = Codes(torch.cat([torch.zeros(4000, 3), means], 1), torch.zeros(4000, dtype=torch.int64))
    drawn = random_styles(codes, 2, 4000, seed=1)
    torch.testing.assert_close(drawn.mean(0), means.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.var(0), means.var(0) + 1, atol=0.35, rtol=0)
    assert torch.equal(drawn, random_styles(codes, 2, 4000, seed=1))
    grid = style_values(codes, 2, 5)
    assert torch.equal(grid[0, :, 1], means[:, 1].mean().expand(5))
    torch.testing.assert_close(
        grid[0, [0, 4], 0] - grid[0, 2, 0],
        2 * (means[:, 0].var() + 1).sqrt() * torch.tensor([-1.0, 1.0]),
    )


# Pictures.


@pytest.mark.parametrize("kind", ["Lmser", "CLmser"])
def test_codes_come_down_with_and_without_the_drives_of_an_image(kind: str) -> None:
    paired, images = network(kind), torch.rand(3, 1, 6, 6)
    codes = codes_of(paired, images, torch.zeros(3, dtype=torch.int64)).values
    expected = paired(images).reconstruction.clamp(0, 1).detach()
    torch.testing.assert_close(decoded(paired, codes, images, held=True), expected)
    alone = decoded(paired, codes, images, held=False)
    assert alone.shape == images.shape
    assert not torch.allclose(alone, expected, atol=1e-3)
    assert torch.equal(alone, decoded(paired, codes, 1 - images, held=False))
    unpaired = network(kind, dpn=False)
    codes = codes_of(unpaired, images, torch.zeros(3, dtype=torch.int64)).values
    for held in (True, False):
        torch.testing.assert_close(
            decoded(unpaired, codes, images, held=held),
            unpaired(images).reconstruction.clamp(0, 1).detach(),
        )


@pytest.mark.parametrize("kind", ["Lmser", "CLmser"])
@pytest.mark.parametrize("held", [True, False])
def test_a_traversal_changes_one_unit_and_keeps_the_others(kind: str, held: bool) -> None:
    paired, images = network(kind), torch.rand(2, 1, 6, 6)
    values = torch.tensor([[0.0, 1.0, 5.0], [2.0, 0.5, 0.1]])
    pictures = traverse(paired, images, [3, 1], values, held=held)
    assert pictures.shape == (2, 2, 3, 1, 6, 6)
    codes = codes_of(paired, images, torch.zeros(2, dtype=torch.int64)).values
    changed = codes[1:].clone()
    changed[:, 1] = 0.5
    torch.testing.assert_close(pictures[1, 1, 1], decoded(paired, changed, images[1:], held=held)[0])


def test_a_class_is_its_mean_code_with_the_style_asked_for() -> None:
    model = Lmser((36, 9, 5), num_classes=3, style_units=2, dpn=False).eval()
    images, labels = torch.rand(20, 1, 6, 6), torch.arange(20) % 3
    codes = codes_of(model, images, labels)
    styles = torch.tensor([[0.0, 1.0], [-3.0, 2.0]])
    pictures = class_pictures(model, codes, 1, styles, images[:2], held=False)
    code = torch.cat([codes.values[labels == 1].mean(0)[:5], styles[1]])
    torch.testing.assert_close(pictures[1], model.decode(code[None]).reshape(1, 6, 6).clamp(0, 1).detach())


# Measures.


def test_the_class_is_read_from_styles_only_where_they_hold_it() -> None:
    labels = torch.arange(400) % 4
    telling = torch.stack([labels * 10.0, torch.randn(400)], 1)
    silent = torch.randn(400, 2)
    for styles, low, high in ((telling, 99, 100), (silent, 10, 45)):
        known = Codes(torch.cat([torch.rand(400, 3), styles], 1), labels)
        assert low <= class_from_style(2, known, known) <= high


def test_diversity_of_equal_and_opposite_pictures() -> None:
    assert diversity(torch.rand(1, 1, 4, 4).expand(5, 1, 4, 4)) == pytest.approx(0, abs=1e-9)
    assert diversity(torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)) == pytest.approx(0.5)


def test_even_steps_one_jump_and_nothing() -> None:
    ramp, jump = torch.linspace(0, 1, 5), torch.tensor([0.0, 0, 0, 1, 1])
    pictures = torch.stack([ramp, jump, torch.zeros(5)])[None, :, :, None, None, None].expand(
        2, 3, 5, 1, 4, 4
    )
    change, _ = step_evenness(pictures, 0.05)
    assert change.tolist() == pytest.approx([1, 1, 0])
    assert step_evenness(pictures[:, :1], 0.05)[1] == pytest.approx(1)
    assert step_evenness(pictures[:, 1:2], 0.05)[1] == pytest.approx(4)
    assert step_evenness(pictures[:, 2:], 0.05)[1] is None


# Claims.


def styles_table(recognised: float, spread: float, from_style: float) -> Table:
    def row(label: str, *values: float) -> Row:
        return Row(label, tuple(Cell((value,)) for value in values), group="MNIST")

    return Table(
        "styles",
        ("recognised %", "diversity", "class from style %"),
        (
            Row("test images", (Cell((99.0,)), Cell((0.2,)), Cell(())), group="MNIST"),
            row("Lmser(sup), no drive from below", 10.0, 0.1, 20.0),
            row("Lmser(sup), drives held", 5.0, 0.0, 20.0),
            row("Lmser(sup-n)", recognised, spread, from_style),
        ),
    )


@pytest.mark.parametrize(
    ("recognised", "spread", "from_style", "kept"),
    [(95, 0.1, 20, True), (85, 0.1, 20, False), (95, 0.04, 20, False), (95, 0.1, 40, False)],
)
def test_the_claim_on_styles_keeps_its_bounds(
    recognised: float, spread: float, from_style: float, kept: bool
) -> None:
    paired, unpaired = claims(styles_table(recognised, spread, from_style), None)
    assert not paired.confirmed
    assert unpaired.confirmed is kept
    assert f"{recognised:.1f} % recognised" in unpaired.evidence


def units_table(units: float, largest: float | None, distance: float) -> Table:
    def row(label: str, units: float, largest: float | None, distance: float) -> Row:
        cells = (Cell((units,)), Cell(() if largest is None else (largest,)), Cell((distance,)))
        return Row(label, cells, group="MNIST")

    readings = [
        f"Lmser({kind}), {reading}"
        for kind in ("sup", "un")
        for reading in ("no drive from below", "drives held")
    ]
    return Table(
        "units",
        ("units that act", "largest step", "Fréchet distance"),
        (
            *(row(label, 10.0 if "held" in label else 0.0, 2.0, 1.0) for label in readings),
            row("Lmser(sup-n)", 10.0, 1.5, 30.0),
            row("Lmser(un-n)", units, largest, 20.0),
            row("CLmser(un-n), 10 units", 10.0, 1.0, distance),
            row("CLmser(sup-n), 10 units", 10.0, 1.0, 10.0),
        ),
    )


def test_the_claims_on_units() -> None:
    paired, unpaired, convolutional = claims(None, units_table(6, 2.0, 15.0))
    assert paired.confirmed  # one of the two readings of each network is enough
    assert unpaired.confirmed
    assert convolutional.confirmed
    assert not claims(None, units_table(4, 2.0, 15.0))[1].confirmed
    assert not claims(None, units_table(6, 3.5, 15.0))[1].confirmed
    assert not claims(None, units_table(0, None, 15.0))[1].confirmed
    assert not claims(None, units_table(6, 2.0, 25.0))[2].confirmed


# The figure.


def test_blocks_are_drawn_beside_one_another_and_the_same_every_time() -> None:
    blocks = {"a & b": torch.rand(2, 3, 1, 8, 8), "c": torch.rand(2, 1, 1, 8, 8)}
    svg = picture_blocks("blocks", blocks, rows=["x", "y"], data_range=(0, 1))
    assert svg == picture_blocks("blocks", blocks, rows=["x", "y"], data_range=(0, 1))
    words = "".join(xml.etree.ElementTree.fromstring(svg).itertext())
    assert all(word in words for word in ("a & b", "c", "x", "y"))


@pytest.mark.parametrize(
    "shapes", [[], [(2, 3, 2, 8, 8)], [(3, 3, 1, 8, 8)], [(2, 3, 1, 8)], [(2, 0, 1, 8, 8)]]
)
def test_blocks_of_other_shapes_are_refused(shapes: list[tuple[int, ...]]) -> None:
    blocks = {str(index): torch.rand(shape) for index, shape in enumerate(shapes)}
    with pytest.raises(ValueError, match=r"picture_blocks: expected \(2, N, 1 or 3, H, W\)"):
        picture_blocks("blocks", blocks, rows=["x", "y"], data_range=(0, 1))


# The experiment.


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return made_up_data.digits(tmp_path / "data", "mnist", test=40)


def tiny_rows(**training: object) -> list[RowConfig]:
    """MNIST's rows with a few units and two steps; `training` changes those of Lmser(sup-n)."""
    rows = []
    for row in load_rows("generation", "quick"):
        if row.data["name"] != "mnist" or row.evaluation.get("figure") == "conv":
            continue
        model = dict(row.model)
        if "sizes" in model:
            model["sizes"] = [784, 12, 10]
        else:
            last = model["channels"][-1]
            model["channels"], model["strides"] = [3, 4, last], [2, 2, 7]
        changed = {**row.training, "steps": 2, "batch_size": 20}
        if row.label == "Lmser(sup-n)":
            changed |= training
        evaluation = {**row.evaluation, **({"styles": 3} if row.table == "styles" else {})}
        rows.append(dataclasses.replace(row, model=model, training=changed, evaluation=evaluation))
    return rows


def bits(out: Path) -> dict[str, bytes]:
    """Figures, weights and tables: what must not depend on an interruption."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.svg"))}
    return found | {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.safetensors"))}


def test_runs_and_continues_to_the_same_bits(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows()

    def request(out: str, *, resume: bool = False) -> Request:
        return Request(mnist, "cpu", "quick", (0, 1), tmp_path / out, resume=resume, progress=False)

    results = generation.run(request("whole"), rows)
    styles, traversals, classifiers = results.tables
    assert [row.label for row in styles.rows] == [
        "test images",
        "Lmser(sup), no drive from below",
        "Lmser(sup), drives held",
        "Lmser(sup-n)",
    ]
    assert styles.rows[0].cells[0].ours == classifiers.rows[0].cells[0].ours
    assert [len(cell.ours) for cell in traversals.rows[0].cells] == [0, 0, 0, 0, 0, 2, 0]
    for row in (*styles.rows[1:], *traversals.rows[1:]):
        assert all(
            len(cell.ours) == 2 and all(map(math.isfinite, cell.ours)) for cell in row.cells if cell.ours
        )
        assert "lr 0.001" in row.differs
    assert {row.label for row in traversals.rows} >= {
        "Lmser(un), drives held",
        "AE",
        "CLmser(un-n), 10 units",
    }
    assert len(results.claims) == 5
    assert len(results.figures) == 7  # by style; with and without labels over two ranges; convolutional
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    loaded = generation.load_trained
    calls: list[int] = []

    def stopping(*arguments: object) -> object:
        calls.append(0)
        if len(calls) == 5:
            raise RuntimeError("killed")
        return loaded(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "load_trained", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        generation.run(request("cut"), rows)
    monkeypatch.setattr(generation, "load_trained", loaded)
    again = generation.run(request("cut", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_a_run_that_diverges_is_a_line_of_the_table(mnist: Path, tmp_path: Path) -> None:
    rows = [row for row in tiny_rows(lr=1e30, steps=4) if row.table != "traversals"]
    results = generation.run(Request(mnist, "cpu", "quick", (0,), tmp_path / "out", progress=False), rows)
    line = results.tables[0].rows[-1]
    assert line.label == "Lmser(sup-n)"
    assert [cell.ours_text() for cell in line.cells] == ["diverged"] * 4
    assert not results.claims[1].confirmed
    assert len(results.figures) == 1


def test_rows_that_are_measured_differently_are_refused(mnist: Path, tmp_path: Path) -> None:
    *rows, last = tiny_rows()
    rows.append(dataclasses.replace(last, evaluation={**last.evaluation, "values": 5}))
    with pytest.raises(ValueError, match="rows: expected the same"):
        generation.run(Request(mnist, "cpu", "quick", (0,), tmp_path / "out", progress=False), rows)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_every_row_builds_a_network_for_28x28(scale: str) -> None:
    for row in load_rows("generation", scale):
        model = build_network(row.model).eval()
        with torch.no_grad():
            found = model(torch.rand(1, 1, 28, 28))
        if row.table == "classifier":
            assert isinstance(found, Tensor)
            assert found.shape == (1, 10)
        elif not row.label.startswith("CLmser") or "10 units" in row.label:
            assert found.code.numel() == 10 + row.model.get("style_units", 0)
        assert row.group == {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}[row.data["name"]]
        assert row.training["steps"] == 20000 or scale == "quick" or row.table == "classifier"
