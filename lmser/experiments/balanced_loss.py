"""003's loss with a further term, not in the paper, that keeps the classes of what has no label equally frequent.

    loss - balance · H(mean over the unlabelled samples of the prediction)

E draws each prediction to one class and R nothing between classes: nothing else in Eq. (10) keeps E from drawing two
classes into one. A row asks for it by ``balance`` in its ``[objective]``.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from lmser.inversion import SemiSupervised

__all__ = ["BALANCE", "balanced_loss"]

BALANCE = "balance"
"""The key of a row's ``[objective]``."""


def balanced_loss(model: nn.Module, images: Tensor, labels: Tensor, *, balance: float) -> Tensor:
    """`SemiSupervised.loss`, less `balance` times the entropy of the batch's mean prediction for what has no label."""
    assert isinstance(model, SemiSupervised)
    unlabelled = labels < 0
    if not balance or not unlabelled.any():
        return model.loss(images, labels)
    weights = model.weights()
    terms = model.terms(images, labels, reconstruct=weights[2] != 0)
    if model.training:
        model.step += 1
    logits = terms.logits[unlabelled]
    # The mean of the probabilities by their logarithms, which stay finite where a class is empty.
    log_mean = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))
    return terms.weighted(weights) + balance * (log_mean.exp() * log_mean).sum()
