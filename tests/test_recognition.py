"""Attacks against their equations, and the recognition experiment at a tiny scale."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmser.baselines import CNN
from lmser.experiments import Request, attacks, recognition
from lmser.experiments.campaign import Trained
from lmser.experiments.figures_accuracy import accuracy_panels
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.training_job import JobResult
from lmser.models import CLmser

pytest.importorskip("art")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")


def networks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [CNN(1, (4, 6), (1, 2), 5), CLmser(1, (4, 6), (1, 2), num_classes=5)]


def images_and_labels(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    return images, torch.arange(count) % 5


def gradient_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the cross-entropy alone: the reconstruction error has no part in it."""
    x = images.clone().requires_grad_()
    output = network(x)
    nn.functional.cross_entropy(getattr(output, "logits", output), labels).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("eps", [0.05, 0.3])
@pytest.mark.parametrize("which", [0, 1])
def test_fgsm_is_one_clipped_step_along_the_sign(which: int, eps: float) -> None:
    network = networks()[which].train()
    images, labels = images_and_labels()
    with torch.no_grad():  # as the evaluations of a training are called
        found = attacks.fgsm(network, images, labels, eps)
    wanted = (images + eps * gradient_of(network, images, labels).sign()).clamp(0, 1)
    torch.testing.assert_close(found, wanted)
    assert ((found == 0) | (found == 1)).any(), "nothing was clipped: the test shows nothing of it"
    assert network.training, "the attack changed the network's mode"
    network.zero_grad()
    attacks.fgsm(network, images, labels, eps)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
@pytest.mark.parametrize("which", [0, 1])
def test_pgd_stays_in_the_ball_and_beats_one_step(which: int, loss: str) -> None:
    network, (images, labels) = networks()[which], images_and_labels(40)
    labels = attacks.logits_of(network, images).argmax(1)
    eps = 0.05

    def rise(examples: Tensor) -> float:
        logits = attacks.logits_of(network, examples)
        if loss == "cross-entropy":
            return float(nn.functional.cross_entropy(logits, labels))
        right = logits.gather(1, labels[:, None])[:, 0]
        return float((logits.scatter(1, labels[:, None], -torch.inf).amax(1) - right).mean())

    state, drawn = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr]
    found = attacks.pgd(network, images, labels, eps, loss=loss, steps=20)
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert float((found - images).abs().max()) <= eps + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert rise(found) >= rise(attacks.fgsm(network, images, labels, eps)) > rise(images)
    torch.testing.assert_close(attacks.pgd(network, images, labels, eps, loss=loss, steps=20), found)
    other = attacks.pgd(network, images, labels, eps, loss=loss, steps=1, seed=1)
    assert not torch.equal(other, attacks.pgd(network, images, labels, eps, loss=loss, steps=1, seed=2))


def test_zero_gradients_are_those_of_saturated_images() -> None:
    network = CNN(1, (5,), (1,), 5, kernel_size=1)
    images = torch.full((3, 1, 4, 4), 0.5)
    with torch.no_grad():
        layer = dict(network.named_parameters())
        for parameter in layer.values():
            parameter.zero_()
        weight = next(value for value in layer.values() if value.dim() == 4)
        weight[0] = 1000.0  # logit 0 is 500, the others 0: their share of the softmax underflows
    found = attacks.zero_gradients(network, images, torch.tensor([0, 1, 0]))
    assert found.tolist() == [True, False, True]
    margin = attacks.pgd(network, images, torch.tensor([0, 1, 0]), 0.1, loss="margin", steps=2)
    assert not torch.equal(margin[0], images[0]), "the margin's gradient does not saturate"


def test_bad_arguments_are_named() -> None:
    network, (images, labels) = networks()[0], images_and_labels()
    with pytest.raises(ValueError, match="eps: expected 0 < eps <= 1, got 0"):
        attacks.fgsm(network, images, labels, 0)
    with pytest.raises(ValueError, match="pixels in"):
        attacks.fgsm(network, images * 2, labels, 0.1)
    with pytest.raises(ValueError, match="loss: expected one of 'cross-entropy', 'margin'"):
        attacks.pgd(network, images, labels, 0.1, loss="hinge")
    with pytest.raises(ValueError, match="restarts: expected at least 1, got 0"):
        attacks.pgd(network, images, labels, 0.1, restarts=0)
    with pytest.raises(ValueError, match="no panel"):
        accuracy_panels("x", {}, x_label="size")


# The experiment.


def tiny_rows() -> list[RowConfig]:
    return [
        dataclasses.replace(
            row,
            model={**row.model, **({"sizes": [784, 12, 10]} if "sizes" in row.model else _TINY_LAYERS)},
            training={**row.training, "batch_size": 5, "steps": 4, "log_every": 1},
            evaluation={
                **row.evaluation, "images": 20, "attacked": 10, "sizes": [0.1, 0.3], "pgd_steps": 2
            },
        )
        for row in load_rows("recognition", "quick")
    ]  # fmt: skip


_TINY_LAYERS = {"channels": [3, 12], "strides": [2, 2]}


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return made_up_data.digits(tmp_path / "data", "mnist", train=30)


def test_runs_and_continues_to_the_same_bits(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows()

    def request(out: str, *, resume: bool = False) -> Request:
        return Request(mnist, "cpu", "quick", (0,), tmp_path / out, resume=resume, progress=False)

    results = recognition.run(request("whole"), rows)
    attacked, sizes = results.tables
    assert [row.label for row in attacked.rows] == ["FCN", "Lmser(sup)", "CNN", "CNN-Lmser(sup)"]
    assert attacked.rows[0].cells[1].paper == 2.68
    assert [row.cells[0].paper for row in attacked.rows] == [None, None, 99.48, None]
    assert sizes.columns == ("0", "0.1", "0.3")
    assert all(len(cell.ours) == 1 for table in results.tables for row in table.rows for cell in row.cells)
    assert len(attacked.notes) == 4
    assert len(results.claims) == 6
    for figure in results.figures:
        xml.etree.ElementTree.parse(tmp_path / "whole" / figure.file)

    measure, calls = recognition._measure, []

    def stopping(*arguments: object, **further: object) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return measure(*arguments, **further)  # type: ignore[arg-type]

    monkeypatch.setattr(recognition, "_measure", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        recognition.run(request("parts"), rows)
    again = recognition.run(request("parts", resume=True), rows)
    assert len(calls) == 3 + 2, "a finished network was attacked again"
    assert again.tables == results.tables
    assert again.claims == results.claims
    for figure in results.figures:
        assert (tmp_path / "whole" / figure.file).read_bytes() == (
            tmp_path / "parts" / figure.file
        ).read_bytes()


def test_a_row_without_the_papers_size_is_refused_before_anything_is_written(
    mnist: Path, tmp_path: Path
) -> None:
    row = tiny_rows()[0]
    row = dataclasses.replace(row, evaluation={**row.evaluation, "sizes": [0.1]})
    with pytest.raises(ValueError, match=r"calibrated/FCN: evaluation.sizes: expected 0.3 among them"):
        recognition.run(Request(mnist, "cpu", "quick", (0,), tmp_path / "out", progress=False), [row])
    assert not (tmp_path / "out").exists()


def _trained(clean: float = 99.0, **fast: tuple[float, float]) -> Trained:
    """Rows of `tiny_rows` with PGD accuracies of 1 % and the FGSM ones given, for two seeds."""
    trained: Trained = {}
    for tiny, label in zip(tiny_rows(), fast, strict=False):
        row = dataclasses.replace(tiny, evaluation={**tiny.evaluation, "images": 10000, "attacked": 1000})
        results = []
        for value in fast[label]:
            metrics = {"clean": clean, "FGSM": value, "zero": 0.0}
            metrics |= {f"{attack} {size}": 1.0 for attack in ("FGSM", "PGD") for size in (0, 0.1, 0.3)}
            metrics["FGSM 0.3"] = value
            results.append(JobResult({4: metrics}, [], {}, 0.0, None, None))
        trained[row] = results
    return trained


def test_a_claim_needs_every_seed_and_more_than_a_point() -> None:
    for second, confirmed in (((31.0, 20.0), True), ((31.0, 3.9), False), ((3.0, 31.0), False)):
        claims = recognition._claims("calibrated", _trained(fcn=(3.0, 3.0), lmser=second))
        assert [claim.confirmed for claim in claims] == [confirmed, False, False], second
    assert "Lmser(sup) 3.00, 31.00, FCN 3.00, 3.00 % by seed" in claims[0].evidence


def test_a_network_that_has_not_learned_is_not_robust() -> None:
    claims = recognition._claims("calibrated", _trained(clean=11.4, fcn=(3.0, 3.0), lmser=(11.4, 11.4)))
    assert not any(claim.confirmed for claim in claims)
    assert "Lmser(sup) has not learned, it reads 11.40, 11.40 % of clean images" in claims[0].evidence


def test_few_images_show_little() -> None:
    assert recognition._exceeds(5.0, 2.0, 1000)
    assert not recognition._exceeds(5.0, 2.0, 100), "two standard errors of the difference are 5.2 points"
    assert not recognition._exceeds(2.9, 2.0, 10**6), "less than a point"
    assert not recognition._exceeds(float("nan"), 2.0, 1000)
    assert not recognition._exceeds(5.0, float("nan"), 1000)


def test_signs_of_masked_gradients_are_told() -> None:
    trained = _trained(fcn=(1.0, 1.0), lmser=(40.0, 20.0))
    first, second = recognition._signs(trained, dict.fromkeys(trained, (5.0, 5.0)))
    assert first.endswith("FCN: none.")
    assert "FGSM leaves more at size 0.3 (30.0 %) than at 0.1 (1.0 %)" in second
    assert "examples made on the other network leave less (5.0 %) than its own" in second


def test_paper_scale_is_the_papers() -> None:
    rows = load_rows("recognition", "paper")
    labels = ["FCN", "Lmser(sup)", "CNN", "CNN-Lmser(sup)"]
    for table, lr in (("as-printed", 0.01), ("calibrated", 0.001)):
        found = [row for row in rows if row.table == table]
        assert [row.label for row in found if row.objective["loss"] != "mean"] == labels
        assert all(row.training["lr"] == lr for row in found)
    for row in rows:
        assert (row.steps(60000), row.training["batch_size"], row.evaluation["images"]) == (20000, 50, 10000)
        others = [row.label for row in rows if row.table == rows[0].table]
        assert row.evaluation["beside"] in others


def test_the_averaged_error_is_compared_with_the_same_network() -> None:
    rows = {row.path: row for row in load_rows("recognition", "paper")}
    for name, other in (("Lmser-sup", "FCN"), ("CNN-Lmser-sup", "CNN")):
        summed, averaged = rows[f"calibrated/{name}"], rows[f"calibrated/{name}-averaged"]
        assert averaged.model == summed.model
        assert averaged.training == summed.training
        assert averaged.evaluation == summed.evaluation
        assert averaged.evaluation["beside"] == other
        assert (summed.objective, averaged.objective) == ({"loss": "sum"}, {"loss": "mean"})
