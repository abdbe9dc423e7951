"""How well clusters without names agree with classes.

Both take int64 tensors ``(N,)`` of one length, on any device: the class and the cluster of each sample, numbered from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmser._extras import require

__all__ = ["cluster_accuracy", "normalised_mutual_information", "used_clusters"]


def cluster_accuracy(labels: Tensor, clusters: Tensor) -> float:
    """Share of samples, 0 to 1, whose cluster is that of their class, under the matching of clusters and classes, one
    to one, that makes it largest (`scipy.optimize.linear_sum_assignment`, the Hungarian method).

    With more clusters than classes some clusters match none, and their samples count as wrong; so with too few. All
    samples in one cluster give the share of the largest class.

    Errors: TypeError or ValueError for what is not two int64 tensors ``(N,)`` of one length above 0 with numbers from 0;
    ImportError naming the extra if scipy, which scikit-learn brings, is not installed.
    """
    count = contingency("cluster_accuracy", labels, clusters)
    assign = require("scipy.optimize").linear_sum_assignment
    rows, columns = assign(count.numpy(), maximize=True)
    return float(count[rows, columns].sum()) / len(labels)


def normalised_mutual_information(labels: Tensor, clusters: Tensor) -> float:
    """`2 I(labels; clusters) / (H(labels) + H(clusters))`, 0 for independent ones and 1 for the same partition
    (`sklearn.metrics.normalized_mutual_info_score`; 0 for all samples in one cluster).

    Errors: as `cluster_accuracy`.
    """
    contingency("normalised_mutual_information", labels, clusters)
    score = require("sklearn.metrics").normalized_mutual_info_score
    return float(score(labels.cpu().numpy(), clusters.cpu().numpy()))


def used_clusters(clusters: Tensor, share: float = 0.01) -> int:
    """How many clusters hold at least `share` of the samples: 1 where a network has collapsed."""
    contingency("used_clusters", clusters, clusters)
    return int((clusters.bincount() >= share * len(clusters)).sum())


def contingency(function: str, labels: Tensor, clusters: Tensor) -> Tensor:
    """How many samples of each class are in each cluster, int64 ``(classes, clusters)``, on the CPU."""
    for name, value in (("labels", labels), ("clusters", clusters)):
        if not isinstance(value, Tensor) or value.dtype is not torch.int64:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{function}: {name} must be an int64 tensor, got {found}")
        if value.dim() != 1 or len(value) == 0:
            raise ValueError(f"{function}: {name} must have shape (N,), N above 0, got {tuple(value.shape)}")
        if int(value.min()) < 0:
            raise ValueError(f"{function}: {name} must be numbered from 0, got {int(value.min())}")
    if len(labels) != len(clusters):
        raise ValueError(
            f"{function}: labels and clusters must have one length, got {len(labels)} and {len(clusters)}"
        )
    labels, clusters = labels.cpu(), clusters.cpu()
    shape = int(labels.max()) + 1, int(clusters.max()) + 1
    return (labels * shape[1] + clusters).bincount(minlength=shape[0] * shape[1]).reshape(shape)
