"""Where classifiers are wrong, and what the networks of few labels have in common there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lmser.experiments.class_errors import ClassErrors, class_errors
from lmser.experiments.few_label_errors import DrawErrors, errors_table


class Given(nn.Module):
    """Gives the logits that are its input, whatever their shape as pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)


def logits(*rows: tuple[float, ...]) -> Tensor:
    """Pictures (N, 1, 1, C) whose softmax is each row."""
    return torch.tensor(rows).log()[:, None, None]


def test_errors_of_a_classifier() -> None:
    images = logits((0.8, 0.1, 0.1), (0.1, 0.7, 0.2), (0.2, 0.2, 0.6), (0.1, 0.5, 0.4), (0.6, 0.3, 0.1))
    found = class_errors(Given(), images, torch.tensor([0, 2, 2, 2, 1]))
    assert found.accuracy == pytest.approx(40)
    assert found.right == pytest.approx((100, 0, 100 / 3))
    assert (found.worst, found.taken_for) == (1, 0)
    assert found.one_kind == pytest.approx(100 / 3)
    assert found.certainty == pytest.approx((0.7 + 0.5 + 0.6) / 3)


def test_errors_where_nothing_is_wrong_and_a_class_has_no_image() -> None:
    found = class_errors(Given(), logits((0.8, 0.1, 0.1), (0.1, 0.7, 0.2)), torch.tensor([0, 1]))
    assert found.accuracy == 100
    assert found.right[:2] == (100, 100)
    assert math.isnan(found.right[2])
    assert (found.worst, found.taken_for) == (0, 1)
    assert math.isnan(found.one_kind)
    assert math.isnan(found.certainty)


def errors(accuracy: float, right: float, certainty: float = 0.99, one_kind: float = 80.0) -> ClassErrors:
    return ClassErrors(accuracy, (98.0, right), 1, 0, one_kind, certainty)


def draw(seed: int, test: ClassErrors, known: float = 100.0, alone: float | None = 41.0) -> DrawErrors:
    beside = None if alone is None else ClassErrors(70.0, (90.0, alone), 0, 1, 20.0, 0.7)
    return DrawErrors("SmallCNNmean", seed, test, errors(known, 100.0), beside)


def test_what_merged_classes_have_in_common() -> None:
    table = errors_table(
        [draw(0, errors(87.0, 20.0)), draw(1, errors(97.5, 95.0)), draw(2, errors(97.0, 94.0))]
    )
    assert [row.label for row in table.rows] == [
        f"labels drawn by seed {seed}: 1 taken for 0" for seed in range(3)
    ]
    assert [cell.mean for cell in table.rows[0].cells] == [87.0, 20.0, 41.0, 80.0, 0.99, 100.0]
    first, second, third, fourth = table.notes
    assert "Of 3 networks 1 have a class of which less than half is right: 87.00 % of all images" in first
    assert first.endswith("97.25 % in the other 2.")
    assert "80 % of the errors" in second
    assert "0.99, and 100.0 % of the labelled images are right" in second
    assert "neither the entropy nor the cross-entropy" in third
    assert fourth == "By the labels alone the same network has 41 % of that class right."


@pytest.mark.parametrize(("certainty", "known"), [(0.8, 100.0), (0.99, 98.0)])
def test_what_the_numbers_do_not_say_is_not_said(certainty: float, known: float) -> None:
    table = errors_table([draw(0, errors(87.0, 20.0, certainty), known, alone=None)])
    assert len(table.notes) == 2
    assert "in the other" not in table.notes[0]
    assert table.rows[0].cells[2].mean is None


def test_no_class_is_merged() -> None:
    table = errors_table([draw(0, errors(97.0, 94.0)), draw(1, errors(96.0, 50.0))])
    assert table.notes == ("No class of these 2 networks is right in less than half of its images.",)
