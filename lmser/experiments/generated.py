"""Pictures that a trained reflection network makes of codes nobody took from an image, and their measures.

A code can be sent down in two ways, and 000 does not say which of them it shows:

- without a drive from below, `h_l = f(u_l + b_l)`: there is no image;
- with the drives `y_l` of some image held, `h_l = f(y_l + u_l + b_l)`: the reflection of that image with
  another code.

Without paired neurons the two are one. A unit of a convolutional code is a channel: its value stands at all
positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmser.experiments.codes import Codes, codes_of
from lmser.models import CLmser, ReflectionNetwork

__all__ = [
    "class_from_style",
    "class_pictures",
    "decoded",
    "diversity",
    "predicted",
    "step_evenness",
    "traverse",
]

_CHUNK = 500


@torch.no_grad()
def decoded(network: ReflectionNetwork, codes: Tensor, images: Tensor, *, held: bool) -> Tensor:
    """Pictures of `codes`, shaped like `images` ``(N, C, H, W)`` and clipped to [0, 1], on the CPU.

    held: the drives of `images` are held while the codes come down; otherwise only the shape of `images`
    counts and there is no drive from below.
    """
    device = next(network.parameters()).device
    made = []
    for code, image in zip(codes.split(_CHUNK), images.split(_CHUNK), strict=True):
        if held:
            pictures = network.decode(code.to(device), image=image.to(device))  # type: ignore[operator]
        elif isinstance(network, CLmser):
            pictures = network.decode(code.to(device), (image.shape[2], image.shape[3]))
        else:
            pictures = network.decode(code.to(device))  # type: ignore[operator]
        made.append(pictures.reshape(image.shape).cpu())
    return torch.cat(made).clamp(0, 1)


def traverse(
    network: ReflectionNetwork, images: Tensor, units: Sequence[int], values: Tensor, *, held: bool
) -> Tensor:
    """Pictures along single units, ``(N, U, V, C, H, W)``: the code of each of the N `images` with unit
    ``units[u]`` set to ``values[u, v]`` and all others as the image gave them.

    values: ``(U, V)``.  held: as in `decoded`, the drives being those of the image itself.
    """
    codes = codes_of(network, images, torch.zeros(len(images), dtype=torch.int64)).values
    count, rest = len(images), codes.shape[1:]
    changed = codes[:, None, None].repeat(1, *values.shape, *[1] * len(rest))
    for index, unit in enumerate(units):
        changed[:, index, :, unit] = values[index].reshape(-1, *[1] * (len(rest) - 1))
    sources = images[:, None, None].expand(count, *values.shape, *images.shape[1:])
    pictures = decoded(network, changed.flatten(0, 2), sources.flatten(0, 2), held=held)
    return pictures.reshape(sources.shape)


def class_pictures(
    network: ReflectionNetwork, codes: Codes, label: int, styles: Tensor, images: Tensor, *, held: bool
) -> Tensor:
    """Pictures ``(N, C, H, W)`` of one class in the N `styles` ``(N, style_units)`` (000 Fig. 4).

    The category units are those that the images of class `label` in `codes` have on average; the style
    units are given. `images` ``(N, C, H, W)`` and `held`: as in `decoded`. For `Lmser`, whose code is flat.
    """
    mean = codes.values[codes.labels == label].mean(0)
    asked = mean.repeat(len(styles), 1)
    asked[:, -styles.shape[1] :] = styles
    return decoded(network, asked, images, held=held)


def class_from_style(style_units: int, known: Codes, tested: Codes) -> float:
    """How far the style units give the class away: percent of `tested` whose style is nearest to the mean
    style of their class in `known`, units scaled to their standard deviation. Chance is 100 / classes."""
    values = known.values[:, -style_units:]
    scale = values.std(0).clamp_min(1e-12)
    classes = known.labels.unique()
    means = torch.stack([values[known.labels == label].mean(0) for label in classes]) / scale
    nearest = torch.cdist(tested.values[:, -style_units:] / scale, means).argmin(1)
    return 100 * float((classes[nearest] == tested.labels).float().mean())


def diversity(pictures: Tensor) -> float:
    """Root of the variance over the N pictures ``(N, C, H, W)``, averaged over the pixels.

    0 where all pictures are the same; of images on [0, 1], at most 1/2.
    """
    return float(pictures.double().var(0, correction=0).mean().sqrt())


def step_evenness(pictures: Tensor, least: float) -> tuple[Tensor, float | None]:
    """How much and how evenly the pictures of `traverse` change along each unit.

    Returns ``(change, largest_step)``. `change` ``(U,)`` is the root mean square difference per pixel
    between the first and the last picture, averaged over the images. `largest_step` is the largest root
    mean square difference between neighbours over the mean one, averaged over all pairs of image and unit
    that change by at least `least`: 1 for a change in even steps, V - 1 for one jump; None where no pair
    changes so much.
    """
    flat = pictures.flatten(3).double()
    change = (flat[:, :, -1] - flat[:, :, 0]).square().mean(-1).sqrt()
    steps = flat.diff(dim=2).square().mean(-1).sqrt()
    acting = steps[change >= least]
    largest = float((acting.amax(-1) / acting.mean(-1)).mean()) if len(acting) else None
    return change.mean(0), largest


@torch.no_grad()
def predicted(classifier: nn.Module, pictures: Tensor) -> Tensor:
    """Logits ``(N, classes)`` of a classifier for pictures ``(N, C, H, W)``, on the CPU."""
    device = next(classifier.parameters()).device
    return torch.cat([classifier(part.to(device)).cpu() for part in pictures.split(_CHUNK)])
