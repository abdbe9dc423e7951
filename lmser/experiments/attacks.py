"""Attacks within an L-infinity ball on a classifier of images in [0, 1], made by the Adversarial Robustness
Toolbox (ART, extra ``experiments``).

FGSM (Goodfellow, Shlens, Szegedy 2015):  x' = clip(x + eps sign(∂J/∂x), 0, 1),  J the cross-entropy of the
true label. PGD (Madry et al. 2018): the same with small steps from a random point of the ball, projected back
onto it after each.

The gradient is that of the network as it is: an attack goes through every layer that the logits depend on. A
reflection network reads its logits at the end of the last bottom-up pass; with one reflection that is the
first, so that its decoder, and the reconstruction error, have no part in the gradient of an attack.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmser._extras import require

__all__ = ["fgsm", "logits_of", "pgd", "recognised", "zero_gradients"]

_BATCH = 500


class _Logits(nn.Module):
    """A network that gives its logits, or a `Reflected` with them, as the function from images to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output = self.network(x)
        logits: Tensor = getattr(output, "logits", output)
        return logits


class _Margin(nn.Module):
    """Best wrong logit minus the right one, mean over the batch (Carlini, Wagner 2017, f_6 without its floor).

    Unlike the cross-entropy's, its gradient does not fade where the network is sure of itself.
    """

    def forward(self, logits: Tensor, wanted: Tensor) -> Tensor:
        right = (logits * wanted).sum(1)
        wrong = logits.masked_fill(wanted > 0, -torch.inf).amax(1)
        return (wrong - right).mean()


_LOSSES = {"cross-entropy": nn.CrossEntropyLoss, "margin": _Margin}


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Logits ``(N, classes)`` of `images` ``(N, C, H, W)``, on the CPU."""
    device = next(network.parameters()).device
    function = _Logits(network)
    return torch.cat([function(part.to(device)).cpu() for part in images.split(_BATCH)])


def recognised(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``(N,)`` bool: whether the largest logit is that of the label."""
    return logits_of(network, images).argmax(1) == labels


def fgsm(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """FGSM examples of `images` ``(N, C, H, W)`` on [0, 1], float32 on the CPU; `labels` ``(N,)`` are the true
    ones, `eps` is a share of the range from black to white.

    The network is left as it is. Raises ValueError for images outside [0, 1] and for an `eps` outside (0, 1],
    ImportError naming the extra where ART is not installed.
    """
    _check(images, eps)
    attacks = require("art.attacks.evasion")
    with _classifier(network, images, "cross-entropy") as classifier:
        attack = attacks.FastGradientMethod(classifier, eps=eps, batch_size=_BATCH)
        return torch.from_numpy(attack.generate(images.numpy(), _one_hot(classifier, labels)))


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    loss: str = "cross-entropy",
    steps: int = 40,
    restarts: int = 1,
    seed: int = 0,
) -> Tensor:
    """PGD examples, as `fgsm`: `steps` steps of ``eps / 10`` from each of `restarts` random points.

    loss: ``"cross-entropy"`` or ``"margin"``, the best wrong logit minus the right one. seed: of the starts.
    Raises what `fgsm` raises, and ValueError for another loss.
    """
    _check(images, eps)
    if loss not in _LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(map(repr, _LOSSES))}, got {loss!r}")
    for name, value in (("steps", steps), ("restarts", restarts)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    attacks = require("art.attacks.evasion")
    with _classifier(network, images, loss) as classifier, _numpy_seeded(seed):
        attack = attacks.ProjectedGradientDescent(
            classifier,
            eps=eps,
            eps_step=eps / 10,
            max_iter=steps,
            num_random_init=restarts,
            batch_size=_BATCH,
            verbose=False,
        )
        return torch.from_numpy(attack.generate(images.numpy(), _one_hot(classifier, labels)))


def zero_gradients(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``(N,)`` bool: whether the cross-entropy's gradient is exactly zero at every pixel of an image, so that
    FGSM does nothing to it."""
    found = []
    with _classifier(network, images, "cross-entropy") as classifier:
        wanted = _one_hot(classifier, labels)
        for start in range(0, len(images), _BATCH):
            part = slice(start, start + _BATCH)
            gradient = classifier.loss_gradient(images[part].numpy(), wanted[part])
            found.append(torch.from_numpy(gradient == 0).flatten(1).all(1))
    return torch.cat(found)


def _check(images: Tensor, eps: float) -> None:
    if not 0 < eps <= 1:
        raise ValueError(f"eps: expected 0 < eps <= 1, got {eps}")
    if len(images) == 0 or not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError("images: expected at least one, with pixels in [0, 1]")


@contextlib.contextmanager
def _classifier(network: nn.Module, images: Tensor, loss: str) -> Iterator[Any]:
    """ART's view of a copy of `network`: it switches the mode and writes into the gradients of what it is given.
    ART's data loaders draw from torch's global generator, which is put back."""
    estimators = require("art.estimators.classification")
    device = next(network.parameters()).device
    function = _Logits(copy.deepcopy(network)).requires_grad_(False)
    classes = logits_of(network, images[:1]).shape[1]
    # ART knows CUDA's current device and the CPU; a network on any other is attacked on the CPU.
    on = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on, torch.random.fork_rng(devices=[]), torch.enable_grad():
        yield estimators.PyTorchClassifier(
            model=function,
            loss=_LOSSES[loss](),
            input_shape=tuple(images.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if device.type == "cuda" else "cpu",
        )


def _one_hot(classifier: Any, labels: Tensor) -> Any:
    return nn.functional.one_hot(labels, classifier.nb_classes).float().numpy()


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """ART draws its starts from NumPy's global generator: seeded for the attack, put back after it."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
