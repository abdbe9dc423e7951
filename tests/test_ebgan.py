"""EBGAN: the energy's gradients with respect to weights and images, its losses, and the experiment at a tiny scale."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import made_up_data
import pytest
import torch

from lmser.baselines import EBGAN
from lmser.baselines.ebgan import pulling_away
from lmser.experiments import Request, ebgan
from lmser.experiments.networks import build_network
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.sample_quality import classes_met, classifier_score
from lmser.experiments.tables import Cell, Row, Table
from lmser.inversion import invert
from lmser.training import TrainConfig, train

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

pytestmark = pytest.mark.usefixtures("light_collections")


def small(energy: str = "inverse", **kwargs: object) -> EBGAN:
    torch.manual_seed(0)
    model = EBGAN(energy, **{"code": 5, "noise": 3, "width": 4, **kwargs})  # type: ignore[arg-type]
    for parameter in model.encoder.parameters():  # biases that matter
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("pooling", ["mean", "max", "inhibitor"])
def test_the_gated_energy_and_its_gradients_are_those_of_autograd(pooling: str) -> None:
    """With respect to the weights of both networks, the second by way of the images."""
    found = []
    for method in ("gated", "autograd"):
        model = small(pooling=pooling, method=method).double()
        z = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        images = model(z)
        energy = model.energy(images)
        assert energy.shape == (2,)
        wanted = [images, *model.generator.parameters(), *model.encoder.parameters()]
        gradients = torch.autograd.grad(energy.sum(), wanted)
        assert all(bool(gradient.any()) for gradient in gradients)
        found.append((energy, *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


def test_the_gradient_of_the_energy_in_the_image_by_differences() -> None:
    """Not a gradient that stops at the gates or at the target alone."""
    model = small().double()
    x = torch.rand(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.energy(x).sum(), x)
    with torch.no_grad():
        for direction in torch.randn(3, *x.shape, dtype=torch.float64):
            step = 1e-7 * direction
            slope = float(model.energy(x + step) - model.energy(x - step)) / 2e-7
            assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_energy_is_the_error_of_the_inverse() -> None:
    model = small()
    x = torch.rand(3, 1, 28, 28)
    faint = small(measure="cosine")
    back = invert(faint.encoder, x).flatten(1)
    expected = 1 - torch.nn.functional.cosine_similarity(back, x.flatten(1))
    torch.testing.assert_close(faint.energy(x), expected)
    expected = (invert(model.encoder, x) - x).square().mean((1, 2, 3))
    torch.testing.assert_close(model.energy(x), expected)
    coded = small("autoencoder")
    assert coded.decoder is not None
    back = coded.decoder(coded.encoder(x)[:, :, None, None])
    assert back.shape == x.shape
    torch.testing.assert_close(coded.energy(x), (back - x).square().mean((1, 2, 3)))


def test_the_inverse_takes_half_the_weights() -> None:
    counts = {
        energy: sum(p.numel() for p in EBGAN(energy).discriminator() if p.dim() > 1)
        for energy in ("inverse", "autoencoder")
    }
    assert counts["autoencoder"] == 2 * counts["inverse"]


@pytest.mark.parametrize("energy", ["inverse", "autoencoder"])
def test_losses_by_hand(energy: str) -> None:
    model = small(energy, margin=0.3, pulling=0.5)
    x = torch.rand(4, 1, 28, 28)
    shared: dict[str, torch.Tensor] = {}
    loss = model.generator_loss(x, shared=shared)
    fake = shared["fake"]
    assert fake.shape == x.shape
    assert not fake.requires_grad
    expected = model.energy(fake).mean() + 0.5 * pulling_away(model.encoder(fake))
    torch.testing.assert_close(loss, expected)
    loss = model.discriminator_loss(x, shared=shared)
    hinge = (0.3 - model.energy(fake)).clamp(min=0).mean()
    torch.testing.assert_close(loss, model.energy(x).mean() + hinge)
    torch.manual_seed(3)
    alone = model.discriminator_loss(x)
    torch.manual_seed(3)
    torch.testing.assert_close(alone, model.discriminator_loss(x, shared={"fake": model.sample(4).detach()}))


def test_pulling_away() -> None:
    assert float(pulling_away(torch.eye(4))) == pytest.approx(0)
    assert float(pulling_away(torch.tensor([[1.0, 2.0], [-2.0, -4.0], [3.0, 6.0]]))) == pytest.approx(1)
    assert float(pulling_away(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))) == pytest.approx(0.5)
    with pytest.raises(
        ValueError, match=r"codes: expected shape \(N, D\) with N of at least 2, got \(1, 3\)"
    ):
        pulling_away(torch.ones(1, 3))


def test_each_objective_trains_its_own_network() -> None:
    model = small(pulling=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(8, 1, 28, 28)
    train(
        model,
        None,
        x,
        TrainConfig(steps=3, batch_size=4, lr=0.01),
        objectives=model.objectives(),
        progress=False,
    )
    changed = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"generator", "encoder"}
    owned = [set(objective.parameters(model)) for objective in model.objectives()]
    assert not owned[0] & owned[1]
    assert owned[0] | owned[1] == set(model.parameters())


def test_arguments() -> None:
    for kwargs, words in (
        ({"energy": "flow"}, "energy: expected one of inverse, autoencoder, got 'flow'"),
        ({"measure": "mae"}, "measure: expected one of mean_squared, cosine, got 'mae'"),
        ({"method": "exact"}, "method: expected one of auto, gated, autograd, got 'exact'"),
        ({"energy": "autoencoder", "pooling": "max"}, "pooling: expected 'mean' with energy='autoencoder'"),
        ({"code": 0}, "code: expected a positive int, got 0"),
        ({"noise": 2.0}, "noise: expected a positive int, got 2.0"),
        ({"margin": 0}, "margin: expected a finite number above 0, got 0"),
        ({"pulling": -1}, "pulling: expected a finite number of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=words):
            EBGAN(**kwargs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"z: expected shape \(N, 3\), got \(2, 4\)"):
        small()(torch.ones(2, 4))


# Measures of samples.


def test_scores_of_certain_and_uncertain_classifiers() -> None:
    certain = 50 * torch.eye(10)
    assert classifier_score(certain.repeat(3, 1)) == pytest.approx(10)
    assert classifier_score(certain[:1].repeat(7, 1)) == pytest.approx(1)
    assert classifier_score(torch.zeros(5, 10)) == pytest.approx(1)
    assert classifier_score(certain[[0, 1]]) == pytest.approx(2)
    uneven = certain[[0, 0, 0, 1]]
    expected = 2 ** (0.75 * torch.tensor(4 / 3).log2() + 0.25 * 2).item()
    assert classifier_score(uneven) == pytest.approx(expected)
    assert classes_met(uneven) == pytest.approx(expected)
    assert classes_met(torch.eye(10) * 1e-3) == pytest.approx(10)
    with pytest.raises(
        ValueError, match=r"classifier_score: logits must have shape \(N, classes\), got \(3,\)"
    ):
        classifier_score(torch.ones(3))


# The experiment.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return made_up_data.digits(tmp_path / "data", "mnist", test=40)


def tiny_rows() -> list[RowConfig]:
    rows = []
    for row in load_rows("ebgan", "quick"):
        model = dict(row.model)
        model |= (
            {"channels": [3, 4], "strides": [2, 2]} if row.table == "classifier" else {"code": 4, "width": 3}
        )
        training = {**row.training, "steps": 3, "batch_size": 20, "log_every": 1}
        rows.append(dataclasses.replace(row, model=model, training=training, evaluation={"images": 30}))
    return rows


def test_runs_and_continues_to_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request(out: str, *, resume: bool = False) -> Request:
        return Request(data, "cpu", "quick", (0,), tmp_path / out, resume=resume, progress=False)

    rows = tiny_rows()
    results = ebgan.run(request("whole"), rows)
    samples, judges = results.tables
    assert [row.label for row in samples.rows[:2]] == ["test images", "generators that have learned nothing"]
    assert [len(cell.ours) for cell in samples.rows[0].cells] == [1, 1, 1, 0, 0, 0]
    assert len(samples.rows) == 2 + sum(row.table == "samples" for row in rows)
    for row in samples.rows[2:]:
        assert all(len(cell.ours) == 1 and all(map(math.isfinite, cell.ours)) for cell in row.cells)
    assert len(judges.rows) == 1
    assert len(results.claims) == 4
    assert len(results.figures) == 2 * (len(samples.rows) - 2)
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    loaded, calls = ebgan.load_trained, []

    def stopping(*arguments: Any) -> torch.nn.Module:
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return loaded(*arguments)

    monkeypatch.setattr(ebgan, "load_trained", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        ebgan.run(request("cut"), rows)
    monkeypatch.setattr(ebgan, "load_trained", loaded)
    again = ebgan.run(request("cut", resume=True), rows)
    assert again.tables == results.tables
    assert again.claims == results.claims
    for figure in results.figures:
        assert (tmp_path / "cut" / figure.file).read_bytes() == (
            tmp_path / "whole" / figure.file
        ).read_bytes()


def test_claims_follow_the_numbers() -> None:
    def table(real: float, fake: float, score: float, other: float) -> Table:
        def row(label: str, *values: float) -> Row:
            return Row(label, tuple(Cell((value,)) for value in values), group="by the cosine")

        return Table(
            "t",
            ebgan.COLUMNS,
            (
                Row("test images", tuple(Cell(()) for _ in ebgan.COLUMNS)),
                row("R, mean pools", score, 1, 1, real, fake, 50.0),
                row("R, max pools", score, 1, 1, real, real + 0.1, 50.0),
                row("autoencoder", other, 1, 1, 1, 0, 100.0),
            ),
        )

    assert [claim.confirmed for claim in ebgan._claims(table(0.1, 0.2, 5, 4))] == [True, True, True]
    assert [claim.confirmed for claim in ebgan._claims(table(0.2, 0.1, 5, 6))] == [False, True, False]


def test_a_run_that_diverges_is_a_line_of_the_table(data: Path, tmp_path: Path) -> None:
    judge, first, *_ = tiny_rows()
    lost = dataclasses.replace(first, training={**first.training, "lr": 1e30})
    results = ebgan.run(Request(data, "cpu", "quick", (0,), tmp_path / "out", progress=False), [judge, lost])
    cells = dict(zip(ebgan.COLUMNS, results.tables[0].rows[-1].cells, strict=True))
    assert cells[ebgan.SCORE].ours_text() == "diverged"
    assert cells[ebgan.SIZE].ours[0] > 0
    assert not any(claim.confirmed for claim in results.claims)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_rows_differ_in_the_energy_alone(scale: str) -> None:
    judge, *rows = load_rows("ebgan", scale)
    what = ("energy", "pooling")
    assert judge.table == "classifier"
    for row in rows:
        assert row.training == rows[0].training
        own = {key: value for key, value in row.model.items() if key not in what}
        same = next(other for other in rows if other.group == row.group)
        assert own == {key: value for key, value in same.model.items() if key not in what}
        build_network(row.model)
