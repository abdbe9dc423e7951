"""The experiments of 004's convolutional networks at a tiny scale: what is hidden, trained on, measured and claimed."""

from __future__ import annotations

import dataclasses
import importlib
import math
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import made_up_data
import numpy as np
import pytest
import torch
from torch import Tensor

from lmser import metrics
from lmser.baselines import DenoisingVAE
from lmser.experiments import Request, image_completion
from lmser.experiments.completion_loss import ITERATIONS, CompletionLoss, counting
from lmser.experiments.completion_metrics import PerImage, standard_error
from lmser.experiments.completion_tables import better, cycles, fixed_point, superior
from lmser.experiments.figures_bars import measure_bars
from lmser.experiments.image_completion import SETTLING, CompletionData, prefix_of
from lmser.experiments.image_damage import damage_of, damaged_batch, on_tanh_range
from lmser.experiments.limit_cycles import periods
from lmser.experiments.results import Results
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import CBAN, attractor_loss

pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("PIL.Image")

PATCHES = {"damage": "patches", "share": 0.25}
PERLIN = {"damage": "perlin", "share": 0.4}


def tiny_rows(experiment: str) -> list[RowConfig]:
    """The quick rows with networks and runs as small as they can be."""
    rows = []
    for row in load_rows(experiment, "quick"):
        model: dict[str, Any] = {"channels": [4, 8], "code": 3}
        if row.model["kind"] == "CBAN":
            visible = row.model["channels"][0]
            model = {"channels": [visible, 3, 4, 4], "max_steps": 3}
        evaluation = {**row.evaluation, "max_steps": 5}
        if experiment == "cban-superres":
            evaluation |= {"images": 1, "side": 24}
        data = {**row.data, **({"patches": 6, "side": 16} if "patches" in row.data else {"test": 4})}
        training = {**row.training, "steps": 3, "batch_size": 3}
        rows.append(
            dataclasses.replace(
                row, data=data, model={**row.model, **model}, training=training, evaluation=evaluation
            )
        )
    return rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    made_up_data.omniglot(folder, characters=2)
    generator = np.random.default_rng(0)
    (folder / "cifar10").mkdir()
    pixels = {
        k: generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for k, n in (("train", 12), ("test", 6))
    }
    np.savez(
        folder / "cifar10" / "cifar10_subset.npz",
        **{f"x_{part}": found for part, found in pixels.items()},
        **{f"y_{part}": np.arange(len(found)) % 10 for part, found in pixels.items()},
    )
    for name in ("T91", "Set5", "Set14", "BSD100"):
        made_up_data.pictures(folder / "sr" / name, 2, (26, 30))
    return folder


def run(root: Path, out: Path, experiment: str, *, resume: bool = False) -> Results:
    module = importlib.import_module(f"lmser.experiments.{experiment.replace('-', '_')}")
    request = Request(root, "cpu", "quick", (0,), out, resume=resume, progress=False)
    results: Results = module.run(request, tiny_rows(experiment))
    return results


# What is hidden.


def test_patches_hide_a_quarter_of_the_strokes_and_an_epoch_has_new_ones() -> None:
    strokes = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
    strokes[:, :, 10:14] = 100  # grey: below the middle of the range
    torch.manual_seed(1)
    images, observed = damaged_batch(strokes, damage=damage_of(PATCHES))
    _, others = damaged_batch(strokes, damage=damage_of(PATCHES))
    torch.manual_seed(1)
    again = damaged_batch(strokes, damage=damage_of(PATCHES))
    assert torch.equal(images, strokes.float() * (2 / 255) - 1)
    assert torch.equal(observed, again[1])
    assert not torch.equal(observed, others)
    hidden = (~observed & (strokes > 0)).flatten(1).sum(1) / (strokes > 0).flatten(1).sum(1)
    assert bool((hidden >= 0.25).all())
    assert bool((hidden < 0.25 + 36 / 112).all())


def test_noise_hides_all_channels_of_two_fifths_of_the_pixels() -> None:
    images = torch.rand(4, 3, 32, 32)
    observed = damage_of(PERLIN)(images, torch.Generator().manual_seed(0))
    assert observed.shape == images.shape
    assert (~observed).flatten(1).sum(1).tolist() == [3 * round(0.4 * 1024)] * 4
    assert torch.equal(observed[:, :1].expand_as(observed), observed)
    with pytest.raises(ValueError, match=r"data.damage: expected 'patches' or 'perlin', got 'ink'"):
        damage_of({"damage": "ink", "share": 0.1})


# What it is trained by.


def test_the_loss_is_the_attractor_loss_and_counts_its_iterations() -> None:
    torch.manual_seed(0)
    model = CBAN((1, 4, 4), pools=(1, 2), init=0.2, max_steps=6, theta=0.05)
    images, observed = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8) < 0.6
    for td in (1.0, "last"):
        loss = CompletionLoss({"loss": "se", "td": td})
        assert loss.scalars(model) == {}
        settled = model.complete(images, observed, readouts=True)
        expected = attractor_loss(model.trajectory(settled), images, td=td)
        assert torch.equal(loss(model, images, observed), expected)
        assert torch.equal(loss(model, images, observed), model.loss(images, observed, td=td))
        assert int(loss.scalars(model)[ITERATIONS]) == int(settled.steps) > 1


def test_the_threshold_of_super_resolution_rises_half_way() -> None:
    torch.manual_seed(0)
    model = CBAN(
        (3, 4, 4), pools=(1, 1), kernel_size=5, evidence="replicate", init=0.1, theta=1e-6, max_steps=20
    )
    low, high = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    objective = {"loss": "se", "later_theta": 2.0}
    loss = CompletionLoss(objective, steps=4)
    known = torch.ones_like(low, dtype=torch.bool)
    taken = []
    for _ in range(4):
        found = loss(counting(model) if not taken else model, high, known, low)
        taken.append(int(loss.scalars(model)[ITERATIONS]))
    assert taken[0] == taken[1] > 1
    assert taken[2:] == [1, 1]
    assert torch.equal(
        found, attractor_loss(model.trajectory(model.complete(low, theta=2.0, readouts=True)), high)
    )
    # A run that is continued goes on counting.
    other = counting(CBAN((3, 4, 4), pools=(1, 1), kernel_size=5, evidence="replicate", max_steps=20))
    other.load_state_dict(model.state_dict())
    CompletionLoss(objective, steps=4)(other, high, known, low)
    assert int(other.get_buffer("batches_seen")) == 5
    with pytest.raises(ValueError, match=r"steps: expected a number with objective\.later_theta"):
        CompletionLoss(objective)


# What is drawn.


def test_bars_are_drawn_of_what_is_finite() -> None:
    measured = {"CBAN": (21.0, 0.2), "lost": (math.nan, math.nan), "one image": (19.0, math.nan)}
    drawn = measure_bars("bars", {"PSNR": measured}).decode()
    xml.etree.ElementTree.fromstring(drawn)
    assert [label in drawn for label in (*measured, "PSNR")] == [True] * 4
    colours = ["#0072b2", "#e69f00", "#009e73"]  # of the first, second and third bar
    assert [colour in drawn for colour in colours] == [True, False, True]
    for panels in ({}, {"PSNR": {}}):
        with pytest.raises(ValueError, match="at least one panel and one network"):
            measure_bars("bars", panels)


# What is measured.


def test_periods_of_known_cycles() -> None:
    """Sample 0 rests, 1 to 3 go round in 2, 3 and 10, the last one never comes back."""
    lengths = torch.tensor([1, 2, 3, 10, 1000])

    def sweep(states: Any) -> list[Tensor]:
        phase = (states[0] + 1) % lengths.view(-1, 1)
        return [phase, states[1]]

    start = [torch.zeros(5, 1), torch.ones(5, 2)]
    assert periods(start, sweep, theta=0.5).tolist() == [1, 2, 3, 10, 0]
    assert periods(start, sweep, theta=0.5, longest=3).tolist() == [1, 2, 3, 0, 0]


def test_a_network_that_goes_round_is_found_out() -> None:
    """Two units that copy one another with opposite signs: weights up 3, down -3."""
    model = CBAN((1, 1), pools=(1,), kernel_size=1, symmetric=False)
    assert model.reverse_weights is not None
    with torch.no_grad():
        model.weights[0].fill_(3.0)
        model.reverse_weights[0].fill_(-3.0)
    images = torch.full((2, 1, 2, 2), 0.9)
    observed = torch.ones_like(images, dtype=torch.bool)
    observed[1, :, 0] = False
    start = [torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, 1, 2, 2)]
    settling = image_completion._Settling()
    with torch.no_grad():
        settled = model.complete(images, observed, states=start, theta=0.01, max_steps=30, per_sample=True)
        settling.add(model, images, observed, settled, 0.01)
    found = settling.shares()
    assert found["at rest"] == 50
    assert found["period 2"] == 50
    assert found["iterations"] == pytest.approx((int(settled.steps[0]) + 30) / 2)


def test_measures_are_each_images_own() -> None:
    found, wanted = 2 * torch.rand(3, 1, 16, 16) - 1, 2 * torch.rand(3, 1, 16, 16) - 1
    tally = PerImage()
    tally.add(found[:2], wanted[:2])
    tally.add(found[2:], wanted[2:])
    means = tally.means("own ")
    assert means["own PSNR"] == pytest.approx(metrics.psnr(found, wanted, 2.0))
    assert means["own SSIM"] == pytest.approx(metrics.ssim(found, wanted, 2.0))
    assert means["own L1"] == pytest.approx(float((found - wanted).abs().sum()) / 2 / 3, rel=1e-5)
    each = [metrics.psnr(found[i : i + 1], wanted[i : i + 1], 2.0) for i in range(3)]
    assert means["own PSNR s.e."] == pytest.approx(float(torch.tensor(each).std()) / math.sqrt(3), rel=1e-4)
    assert math.isnan(standard_error([1.0]))


def test_the_metrics_are_of_the_completed_image(root: Path) -> None:
    torch.manual_seed(0)
    request = Request(root, "cpu", "quick", (0,), root)
    data = CompletionData.load(request, {"name": "omniglot", **PATCHES, "test": 6})
    assert (len(data.train), len(data.test)) == (32, 6)
    model = CBAN((1, 3, 4), pools=(1, 2), init=0.2).eval()
    found = image_completion._measure(model, data, [0.01, 1.5], 50)
    with torch.no_grad():
        settled = model.complete(data.test, data.observed, theta=0.01, max_steps=50, per_sample=True)
    assert found["PSNR"] == pytest.approx(metrics.psnr(settled.states[0], data.test, 2.0), rel=1e-5)
    assert found["PSNR"] > found["own PSNR"]
    assert found["iterations"] == pytest.approx(float(settled.steps.double().mean()))
    assert found[f"{prefix_of(1, 1.5)}iterations"] < found["iterations"]
    network = DenoisingVAE(1, 28, channels=(4, 8), code=3).eval()
    pasted = image_completion._measure(network, data, [0.0], 1)
    with torch.no_grad():
        output = network(data.test, data.observed)
    whole = torch.where(data.observed, data.test, output)
    assert pasted["PSNR"] == pytest.approx(metrics.psnr(whole, data.test, 2.0), rel=1e-5)
    assert pasted["own PSNR"] == pytest.approx(metrics.psnr(output, data.test, 2.0), rel=1e-5)
    assert not set(SETTLING) & set(pasted)


# What comes out.


def test_omniglot_runs_and_continues_to_the_same_bits(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run(root, tmp_path / "whole", "cban-omniglot")
    completed, own, settling = results.tables
    assert [row.label for row in completed.rows] == ["CBAN", "CBAN-asym", "CBAN-noTD", "CD-VAE"]
    assert [row.label for row in settling.rows] == ["CBAN", "CBAN-asym", "CBAN-noTD"]
    assert len(results.claims) == 3
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)
    measure, calls = image_completion._measure, []

    def stopping(*args: Any, **kwargs: Any) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return measure(*args, **kwargs)

    monkeypatch.setattr(image_completion, "_measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        run(root, tmp_path / "parts", "cban-omniglot")
    again = run(root, tmp_path / "parts", "cban-omniglot", resume=True)
    assert again.tables == results.tables
    assert own.columns == completed.columns


def test_cifar_runs(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path, "cban-cifar")
    assert len(results.claims) == 3
    assert "12 training and 6 test images at hand" in results.tables[0].rows[0].differs


def test_threshold_has_its_iterations_beside_the_papers(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path, "cban-threshold")
    table, common, _ = results.tables
    assert table.columns == ("PSNR", "SSIM", "L1", "mean iterations", "median iterations")
    assert [cell.paper for cell in table.rows[1].cells] == [24.4494, 0.944, 10.3813, 3.01, 3.0]
    low, high = (row.cells[3].ours[0] for row in table.rows)
    assert 1 <= high <= low <= 3
    assert common.rows[0].cells[0].ours == table.rows[0].cells[0].ours  # the same settling
    assert len(results.claims) == 2


def test_order_stands_beside_the_paper(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path, "cban-order")
    assert [(row.label, row.cells[0].paper) for row in results.tables[0].rows] == [
        ("odd-even", 21.0335),
        ("up-down", 22.3537),
    ]
    assert len(results.claims) == 1


def test_super_resolution_runs(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path, "cban-superres")
    rgb, gain, luminance = results.tables
    assert [row.label for row in rgb.rows] == 3 * ["Bicubic", "CBAN", "DRCN", "LapSRN"]
    assert rgb.rows[0].cells[0].paper == 32.21
    assert luminance.rows[0].cells[0].paper is None
    ours = rgb.rows[1].cells[0].ours[0] - rgb.rows[0].cells[0].ours[0]
    assert gain.rows[0].cells[0].ours == (pytest.approx(ours),)
    assert gain.rows[0].cells[0].paper == pytest.approx(1.97)
    assert "Urban100 is left out: it is not in the data folder." in rgb.notes
    assert str(root) not in "".join(rgb.notes)
    assert not results.claims[0].confirmed
    xml.etree.ElementTree.parse(tmp_path / results.figures[0].file)


# What is claimed.


def _table(**psnr: float) -> Table:
    rows = tuple(Row(label, (Cell((v,)), Cell((v,)), Cell((-v,)))) for label, v in psnr.items())
    return Table("t", ("PSNR", "SSIM", "L1"), rows)


def test_claims_are_decided_by_the_numbers() -> None:
    table = _table(a=3.0, b=2.0, c=math.nan)
    for column in table.columns:
        assert better(table, column, "a", "b")[0]
        assert better(table, column, "a", "c")[0]
        assert not better(table, column, "b", "a")[0]
        assert not better(table, column, "c", "c")[0]
    assert superior("t", "s", table, "a", ("b", "c"), ("PSNR", "L1")).confirmed
    assert not superior("t", "s", table, "b", ("a", "c"), ("PSNR",)).confirmed
    settling = Table(
        "t",
        SETTLING,
        (
            Row("still", tuple(Cell((v,)) for v in (99.5, 20.0, 0.5, 0.0, 0.0))),
            Row("round", tuple(Cell((v,)) for v in (20.0, 90.0, 45.0, 15.0, 20.0))),
        ),
    )
    assert fixed_point("t", "s", settling, "still").confirmed
    assert not fixed_point("t", "s", settling, "round").confirmed
    assert cycles("t", "s", settling, "round").confirmed
    assert not cycles("t", "s", settling, "round", two=True).confirmed
    assert not cycles("t", "s", settling, "still").confirmed


# The files.


@pytest.mark.parametrize(
    ("experiment", "channels", "init"),
    [
        ("cban-omniglot", [1, 128, 256, 256], 0.01),
        ("cban-threshold", [1, 128, 256, 256], 0.01),
        ("cban-order", [1, 128, 256, 256], 0.01),
        ("cban-cifar", [3, 40, 120, 440], 0.0001),
        ("cban-superres", [3, 300, 300, 300], 0.001),
    ],
)
def test_paper_scale_is_the_papers(experiment: str, channels: list[int], init: float) -> None:
    rows = load_rows(experiment, "paper")
    superres = experiment == "cban-superres"
    networks = [row for row in rows if row.model["kind"] == "CBAN"]
    assert len(networks) >= len(rows) - 1
    for row in networks:
        assert row.differs == ""
        assert row.model["channels"] == channels
        assert row.model["init"] == init
        assert row.model["kernel_size"] == (5 if superres else 3)
        assert row.model["pools"] == ([1, 1, 1] if superres else [1, 2, 2])
        assert row.training["lr"] == (5e-5 if superres else 5e-4)
        assert row.model["max_steps"] == 100
        assert row.model["theta"] == (1.0 if row.label == "1.0" else 0.01)
        assert "train" not in row.data
        assert "test" not in row.data
        # Where the learning rate falls.
        epochs = row.training["epochs"]
        falls = [round(at * epochs) for at in row.training["milestones"]]
        expected = {"cban-superres": [10, 20], "cban-cifar": [150, 170, 190]}
        assert falls == expected.get(experiment, [100, 120, 140])


def test_bytes_are_asked_for() -> None:
    assert on_tanh_range(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [-1.0, 1.0]
    with pytest.raises(TypeError, match="images: expected bytes"):
        on_tanh_range(torch.zeros(1, 1, 2, 2))
