"""How good generated pictures are, by the logits that a classifier trained apart has for them.

No feature network is downloaded, so these are not the numbers of papers that use Inception: the classifier that judges
is named in every table, and its own test images stand in the first line.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["classes_met", "classifier_score"]


def classifier_score(logits: Tensor) -> float:
    """`exp(E_x KL(p(y|x) ‖ p(y)))` of logits ``(N, classes)``: the Inception score (Salimans et al. 2016, Sect. 4) with
    another classifier. From 1 (no picture tells a class, or all the same one) to the number of classes (each picture
    tells one, all equally often). NaN in, NaN out."""
    _check("classifier_score", logits)
    log_p = logits.detach().double().log_softmax(1)
    log_mean = log_p.logsumexp(0) - torch.tensor(float(len(log_p)), dtype=torch.float64).log()
    return float((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())


def classes_met(logits: Tensor) -> float:
    """`exp` of the entropy of the classes that the largest logits ``(N, classes)`` name: how many classes there are,
    each counted by how often it is met."""
    _check("classes_met", logits)
    share = logits.argmax(1).bincount(minlength=logits.shape[1]).double() / len(logits)
    return float(torch.special.entr(share).sum().exp())


def _check(function: str, logits: Tensor) -> None:
    if logits.dim() != 2 or len(logits) == 0:
        raise ValueError(f"{function}: logits must have shape (N, classes), got {tuple(logits.shape)}")
