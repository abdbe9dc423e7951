"""The loss that PConv is trained by (Liu et al. 2018, Sec. 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser.baselines.pconv import check_mask
from lmser.features import VGG16Features


class InpaintingTerms(NamedTuple):
    """The terms of `InpaintingLoss`, 0-d tensors without their weights. They sum over windows, channels and
    layers as Liu et al. do, and are means over the batch.

    valid:      ``|(1 - mask) (out - gt)|``, the mean over all values of the image, missing or not
    hole:       ``|mask (out - gt)|``, likewise
    perceptual: ``|Ψ_p(out) - Ψ_p(gt)| + |Ψ_p(comp) - Ψ_p(gt)|``, means over the values of Ψ_p, summed over
                the pools p
    style_out:  ``|G_p(out) - G_p(gt)|``, means over the entries of the Gram matrix ``G_p = Ψ_pᵀΨ_p / (C_p H_p
                W_p)``, summed over p
    style_comp: the same of comp
    tv:         absolute differences of neighbours in comp, both of which lie in the missing region widened by
                one pixel (in eight directions), over the number of values of the image
    """

    valid: Tensor
    hole: Tensor
    perceptual: Tensor
    style_out: Tensor
    style_comp: Tensor
    tv: Tensor


# Liu et al. Sec. 3.3, found there by a search on 100 validation images.
WEIGHTS = InpaintingTerms(1, 6, 0.05, 120, 120, 0.1)  # type: ignore[arg-type]


def composite(image: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
    """`reconstruction` where `mask` is True (missing), `image` elsewhere: Liu et al.'s I_comp."""
    check_mask(image, mask)
    return torch.where(mask, reconstruction, image)


class InpaintingLoss:
    """``L_valid + 6 L_hole + 0.05 L_perceptual + 120 (L_style_out + L_style_comp) + 0.1 L_tv`` (Liu et al.
    Sec. 3.3), with `InpaintingTerms` for its terms and the outputs of VGG-16's pools for Ψ.

    features: the feature network, or None to leave perceptual and style terms out (they cost several times
              the network itself). Liu et al. have ImageNet weights in it

    ``name`` says which of these it is and belongs beside every result. Images are on [0, 1] (Liu et al. do
    not say theirs; the feature network normalises them itself), with one or three channels.

        loss = InpaintingLoss(VGG16Features(data))
        loss(network(image, mask), image, mask)
    """

    def __init__(self, features: VGG16Features | None) -> None:
        self._features = features
        if features is None:
            self.name = "L_valid + 6 L_hole + 0.1 L_tv, no perceptual and style terms"
        else:
            self.name = f"the loss of Liu et al. with {features.name}"

    def __call__(self, reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """The weighted sum of `terms`, a 0-d tensor."""
        terms = zip(WEIGHTS, self.terms(reconstruction, image, mask), strict=True)
        return torch.stack([weight * term for weight, term in terms]).sum()

    def terms(self, reconstruction: Tensor, image: Tensor, mask: Tensor) -> InpaintingTerms:
        """The terms for `reconstruction` of `image`, both ``(N, C, H, W)``, and `mask` ``(N, 1, H, W)`` bool,
        True where a pixel was missing.

        `image` is the whole one. Raises TypeError or ValueError naming the argument.
        """
        if image.dim() != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"image: expected shape (N, 1 or 3, H, W), got {tuple(image.shape)}")
        if reconstruction.shape != image.shape:
            raise ValueError(
                f"reconstruction: expected the image's shape {tuple(image.shape)}, "
                f"got {tuple(reconstruction.shape)}"
            )
        whole = composite(image, reconstruction, mask)
        distance = (reconstruction - image).abs()
        hole, valid = (distance * mask).mean(), (distance * ~mask).mean()
        zero = distance.new_zeros(())
        perceptual = style_out = style_comp = zero
        if self._features is not None:
            perceptual, style_out, style_comp = _feature_terms(self._features, reconstruction, whole, image)
        return InpaintingTerms(valid, hole, perceptual, style_out, style_comp, _total_variation(whole, mask))


def _feature_terms(
    network: VGG16Features, reconstruction: Tensor, whole: Tensor, image: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Perceptual term, style term of the reconstruction, style term of the composite."""
    made = network(torch.cat((reconstruction, whole)).expand(-1, 3, -1, -1))
    with torch.no_grad():
        wanted = network(image.expand(-1, 3, -1, -1))
    perceptual, styles = [], []
    for made_p, wanted_p in zip(made, wanted, strict=True):
        twice = torch.cat((wanted_p, wanted_p))
        perceptual.append(2 * F.l1_loss(made_p, twice))
        styles.append((_gram(made_p) - _gram(twice)).abs().unflatten(0, (2, -1)).mean((1, 2, 3)))
    style = torch.stack(styles).sum(0)
    return torch.stack(perceptual).sum(), style[0], style[1]


def _gram(features: Tensor) -> Tensor:
    """``(N, C, C)`` inner products of the channels of ``(N, C, H, W)``, over C H W."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / features[0].numel()


def _total_variation(whole: Tensor, mask: Tensor) -> Tensor:
    near = F.max_pool2d(mask.to(whole.dtype), 3, 1, 1)
    down = (whole[:, :, 1:] - whole[:, :, :-1]).abs() * (near[:, :, 1:] * near[:, :, :-1])
    across = (whole[..., 1:] - whole[..., :-1]).abs() * (near[..., 1:] * near[..., :-1])
    return (down.sum() + across.sum()) / whole.numel()
