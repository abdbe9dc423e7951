"""Agreement of clusters and classes: by hand, against every matching, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch

from lmser import _extras, cluster_metrics
from lmser.cluster_metrics import cluster_accuracy, normalised_mutual_information, used_clusters

pytest.importorskip("scipy")
pytest.importorskip("sklearn")

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])


def test_names_do_not_matter() -> None:
    renamed = torch.tensor([7, 2, 4])[LABELS]
    assert cluster_accuracy(LABELS, LABELS) == cluster_accuracy(LABELS, renamed) == 1
    assert normalised_mutual_information(LABELS, renamed) == pytest.approx(1)


def test_one_cluster_is_the_largest_class() -> None:
    collapsed = torch.zeros_like(LABELS)
    assert cluster_accuracy(LABELS, collapsed) == pytest.approx(4 / 9)
    assert normalised_mutual_information(LABELS, collapsed) == 0
    assert used_clusters(collapsed) == 1


def test_a_class_that_is_split_counts_once() -> None:
    split = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3])
    assert cluster_accuracy(LABELS, split) == pytest.approx(7 / 9)
    assert cluster_accuracy(split, LABELS) == pytest.approx(7 / 9)


def test_against_every_matching_and_the_definition() -> None:
    labels, clusters = torch.randint(4, (60,)), torch.randint(4, (60,))
    best = max(
        float((torch.tensor(matching)[clusters] == labels).float().mean())
        for matching in itertools.permutations(range(4))
    )
    assert cluster_accuracy(labels, clusters) == pytest.approx(best)
    joint = torch.zeros(4, 4, dtype=torch.float64)
    for pair in zip(labels.tolist(), clusters.tolist(), strict=True):
        joint[pair] += 1 / 60
    entropies = [float(torch.special.entr(part).sum()) for part in (joint.sum(0), joint.sum(1), joint)]
    shared = entropies[0] + entropies[1] - entropies[2]
    expected = 2 * shared / (entropies[0] + entropies[1])
    assert normalised_mutual_information(labels, clusters) == pytest.approx(expected)


def test_used_clusters() -> None:
    clusters = torch.cat([torch.zeros(500), torch.ones(490), torch.full((10,), 5)]).long()
    assert used_clusters(clusters) == 3
    assert used_clusters(clusters, 0.011) == 2


def test_arguments() -> None:
    for function in (cluster_accuracy, normalised_mutual_information):
        name = function.__name__
        with pytest.raises(TypeError, match=rf"{name}: clusters must be an int64 tensor, got torch.float32"):
            function(LABELS, LABELS.float())
        with pytest.raises(
            ValueError, match=rf"{name}: labels must have shape \(N,\), N above 0, got \(3, 3\)"
        ):
            function(LABELS.reshape(3, 3), LABELS)
        with pytest.raises(ValueError, match=rf"{name}: labels must be numbered from 0, got -1"):
            function(LABELS - 1, LABELS)
        with pytest.raises(
            ValueError, match=rf"{name}: labels and clusters must have one length, got 9 and 8"
        ):
            function(LABELS, LABELS[1:])


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module.split(".")[0])

    monkeypatch.setattr(_extras.importlib, "import_module", missing)
    for function in (cluster_metrics.cluster_accuracy, cluster_metrics.normalised_mutual_information):
        with pytest.raises(ImportError, match=r"pip install 'lmser\[experiments\]'"):
            function(LABELS, LABELS)
