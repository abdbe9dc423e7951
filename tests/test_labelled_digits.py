"""Digits with label units: where everything is in the 812 units, and reading it back."""

from __future__ import annotations

import pytest
import torch

from lmser.data import perlin_masks
from lmser.experiments.labelled_digits import (
    HIGHEST,
    digits_of,
    label_sums,
    observed_units,
    read_classes,
    visible_pictures,
    visible_targets,
)


def images(count: int = 10) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_targets_by_hand() -> None:
    pictures = images(2)
    pictures[0, 0, 0, 0], pictures[0, 0, 0, 1], pictures[0, 0, 27, 27] = 0, 1, 0.75
    visible = visible_targets(pictures, torch.tensor([3, 9]))
    assert visible.shape == (2, 812)
    assert visible.dtype == torch.float32
    torch.testing.assert_close(visible[0, [0, 1, 783]], torch.tensor([-0.999, 0.999, 0.4995]))
    white = [[unit for unit in range(28) if float(row[784 + unit]) > 0] for row in visible]
    assert white == [[6, 7], [18, 19]]
    assert visible[:, 784:].abs().unique().tolist() == [pytest.approx(HIGHEST)]
    assert float(visible.abs().max()) <= torch.tensor(0.999).item()
    assert bool(torch.atanh(visible).isfinite().all())
    assert visible_targets(pictures.double(), torch.tensor([0, 1])).dtype == torch.float64


def test_there_and_back() -> None:
    pictures, labels = images(), torch.arange(10).flip(0)
    visible = visible_targets(pictures, labels)
    assert read_classes(visible).tolist() == labels.tolist()
    assert read_classes(visible[:, :, None, None]).tolist() == labels.tolist()
    torch.testing.assert_close(digits_of(visible), pictures)
    panels = visible_pictures(visible)
    assert panels.shape == (10, 1, 29, 28)
    torch.testing.assert_close(panels[:, :, :28], pictures)
    assert [row.nonzero().flatten().tolist() for row in panels[:, 0, 28]] == [
        [2 * c, 2 * c + 1] for c in labels.tolist()
    ]


def test_the_larger_sum_decides() -> None:
    visible = torch.full((3, 812), -0.999)
    visible[0, 784 + 4], visible[0, 784 + 6], visible[0, 784 + 7] = 0.9, 0.1, 0.1  # -0.1 against 0.2
    visible[1, 804:] = 0.999  # the last 8 units are no class
    visible[1, 784 + 13] = -0.5
    visible[2, :784] = 0.999  # nor are pixels
    assert read_classes(visible).tolist() == [3, 6, 0]
    sums = label_sums(visible)
    assert sums.shape == (3, 10)
    assert sums[0, [2, 3]].tolist() == pytest.approx([-0.099, 0.2], abs=1e-6)


def test_no_label_is_evidence() -> None:
    missing = perlin_masks(4, 28, 1 / 3, torch.Generator().manual_seed(0))
    observed = observed_units(missing)
    assert observed.shape == (4, 812)
    assert observed.dtype == torch.bool
    assert observed.sum(dim=1).tolist() == [784 - 261] * 4
    assert not observed[:, 784:].any()
    assert torch.equal(observed[:, :784].reshape(missing.shape), ~missing)
    assert observed_units(torch.zeros_like(missing)).sum(dim=1).tolist() == [784] * 4


def test_arguments() -> None:
    labels = torch.arange(10)
    for wrong in (images().flatten(1), images()[:, 0], images().mul(255).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"images must be floating of shape \(N, 1, 28, 28\), got"):
            visible_targets(wrong, labels)
    for other in (labels[:9], labels.int()):
        with pytest.raises(ValueError, match=r"labels must be int64 of shape \(10,\), got"):
            visible_targets(images(), other)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9, got 1\.\.10"):
        visible_targets(images(), labels + 1)
    for mask in (torch.zeros(2, 1, 28, 28), torch.zeros(2, 784, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"missing must be bool of shape \(N, 1, 28, 28\), got"):
            observed_units(mask)
    for function in (label_sums, read_classes, digits_of, visible_pictures):
        with pytest.raises(ValueError, match=r": visible must have shape \(N, 812\), got \(2, 784\)"):
            function(torch.zeros(2, 784))
