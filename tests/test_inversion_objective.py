"""The ``[objective]`` of rows trained by 003's Eq. (10): the weights it gives at every step, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lmser.experiments.inversion_objective import build_semi_supervised
from lmser.experiments.rows import RowConfig, load_rows


def row(**objective: Any) -> RowConfig:
    first = load_rows("semisup-mnist", "paper")[0]
    return dataclasses.replace(
        first, objective={"alpha": 0.6, "beta": 0.2, **objective}, training={"steps": 8}
    )


def test_weights_that_stay() -> None:
    model = build_semi_supervised(row())
    assert (model.alpha, model.beta, model.reconstruction) == (0.6, 0.2, "mean_squared")
    assert model.not_capturable is None
    assert build_semi_supervised(row(reconstruction="squared")).reconstruction == "squared"


def test_beta_goes_along_a_line_and_stays() -> None:
    model = build_semi_supervised(row(beta_first=1.0, ramp=0.5))
    found = []
    for step in range(8):
        model.step.fill_(step)
        cross_entropy, entropy, error = model.weights()
        assert cross_entropy == 0.6
        assert entropy + error == pytest.approx(0.4)
        found.append(error / 0.4)
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2])
    assert model.not_capturable is not None


def test_a_step_of_training_moves_it() -> None:
    torch.manual_seed(0)
    model = build_semi_supervised(row(beta_first=0.8, ramp=1.0))
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([1, 2, -1, -1])
    for step in range(3):
        terms = model.terms(x, y)
        beta = 0.8 - 0.6 * step / 8
        wanted = 0.6 * terms.cross_entropy + 0.4 * (
            beta * terms.reconstruction[0] + (1 - beta) * terms.entropy
        )
        torch.testing.assert_close(model.loss(x, y), wanted)


@pytest.mark.parametrize(
    ("objective", "training", "said"),
    [
        ({"gamma": 1.0}, {}, r"objective\.gamma is not known, expected alpha, beta, reconstruction"),
        ({"alpha": 2.0}, {}, r"alpha: expected a number in \[0, 1\], got 2\.0"),
        ({"ramp": 0.5}, {}, "objective: expected beta_first and ramp together"),
        ({"beta_first": 0.5}, {}, "objective: expected beta_first and ramp together"),
        ({"beta_first": 1.5, "ramp": 0.5}, {}, r"objective\.beta_first: expected a number in \[0, 1\], got 1\.5"),
        ({"beta_first": 0.5, "ramp": 0.0}, {}, r"objective\.ramp: expected a share of the steps in \(0, 1\], got 0"),
        ({"beta_first": 0.5, "ramp": 1.5}, {}, r"objective\.ramp: expected a share .*, got 1\.5"),
        ({"beta_first": 0.5, "ramp": 0.5}, {"epochs": 3}, r"objective\.ramp: expected training\.steps"),
    ],
)  # fmt: skip
def test_what_is_refused(objective: dict[str, Any], training: dict[str, Any], said: str) -> None:
    given = row(**objective)
    if training:
        given = dataclasses.replace(given, training=training)
    with pytest.raises(ValueError, match=said) as error:
        build_semi_supervised(given)
    assert str(error.value).startswith("alpha" if "alpha" in objective else given.path)


def test_what_is_missing() -> None:
    given = dataclasses.replace(row(), objective={"alpha": 0.5})
    with pytest.raises(ValueError, match=r"objective\.beta is missing"):
        build_semi_supervised(given)
