"""PEN-Net: inpainting by a pyramid-context encoder (Zeng et al. 2019; 001 Tables 5 and 6).

Zeng, Fu, Chao and Guo, "Learning pyramid-context encoder network for high-quality image inpainting", CVPR
2019, arXiv:1904.07475. 001 ran the authors' implementation with its settings (001 Appendix A). So what the
paper leaves open ("printed": it does not) is set as in that implementation ("authors"); what neither settles,
or what is different here, had to be chosen:

    detail                              from      here
    U-Net with attention at each skip   printed   deepest to shallowest, each reads the filled level above
    affinity, softmax, pasting          printed   `attention_transfer`: cosine of 3x3 patches, 4x4 pasted
    scale 10 inside the softmax         authors   the same
    1x1 patches at the deepest level    authors   the same, without refinement; 2x2 pasted in place of 4x4, of
                                                  which beside a hole none would be left
    dilated convolutions 1, 2, 4, 8     printed   the same, in four groups of channels
    strides, channels, activations      authors   six 3x3 convolutions of stride 2: 32, 64, 128, 256, 512, 512
    a prediction at every scale         printed   1x1 convolution and tanh at all but the full scale
    pyramid L1 loss                     printed   mean per scale, summed; targets are means of blocks
    L1 at full scale                    authors   weight 6 over the holes, 1 over the rest, each a mean
    weights of the other losses         authors   pyramid 0.5, adversarial 0.1
    spectrally normalised PatchGAN      printed   64, 128, 256, 512 channels, 5x5 (authors); padding 2, not 1,
                                                  so that small images keep a patch
    hinge loss on the completed image   printed   the same
    Adam, betas 0.5 and 0.999           authors   the same; learning rate 1e-4, batches of 16
    weights drawn from N(0, 0.02²)      authors   0.02 / sqrt(width), the same at width 1
    holes in the input                  authors   1 (white), with the mask as fourth channel
    what counts as a hole below         chosen    any missing pixel in its block; the authors sample the mask.
                                                  Patches with one are no sources
    what is filled                      printed   the holes alone; the authors replace the whole level
    an image without sources            chosen    is not filled; the authors fill it with (almost) zeros
    order of the two updates            chosen    network first, so that one completion serves both
    depth for images below 256          chosen    as many halvings as leave 4 positions (128: 5, 64: 4)
    upsampling                          authors   bilinear; here with corners not aligned
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.baselines.adversarial import (
    PatchDiscriminator,
    hinge_discriminator_loss,
    hinge_generator_loss,
    initialised,
    real_and_fake,
)
from lmser.baselines.attention_transfer import AttentionTransfer, missing_above
from lmser.baselines.completion import CompletionNetwork, halved, masked_l1
from lmser.models.reflection import Pair
from lmser.training import Objective


class PENNetTerms(NamedTuple):
    """The terms of `PENNet.generator_loss` before they are weighted, 0-d tensors."""

    hole: Tensor
    visible: Tensor
    pyramid: Tensor
    adversarial: Tensor


class PENNetGenerator(nn.Module):
    """The network of `PENNet` without its discriminator, on [-1, 1].

    channels: of the levels 1 ... L, multiples of 4; std: of the weights' normal initialisation.
    ``forward(image, missing)``: predictions of levels 0 (full scale) ... L-1, ``(N, 3, H/2^l, W/2^l)``.
    """

    def __init__(self, channels: Sequence[int], std: float) -> None:
        super().__init__()
        levels = list(pairwise((4, *channels)))
        self.encoder = nn.ModuleList(nn.Conv2d(below, above, 3, 2, 1) for below, above in levels)
        inner = channels[:-1]  # levels 1 ... L-1, the ones with a skip
        self.transfers = nn.ModuleList(
            AttentionTransfer(width, patch=3, refine=True)
            if level < len(inner)
            else AttentionTransfer(width, patch=1, refine=False)
            for level, width in enumerate(inner, start=1)
        )
        rising = (
            *(2 * width for width in inner[1:]),
            channels[-1],
        )  # channels of what is upsampled to level l
        self.decoder = nn.ModuleList(
            nn.Conv2d(below, width, 3, 1, 1) for below, width in zip(rising, inner, strict=True)
        )
        self.predictions = nn.ModuleList(nn.Conv2d(2 * width, 3, 1) for width in inner)
        self.last = nn.Conv2d(2 * inner[0], inner[0], 3, 1, 1)
        self.prediction = nn.Conv2d(inner[0], 3, 3, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialised(module, std)

    def forward(self, image: Tensor, missing: Tensor) -> list[Tensor]:
        state = torch.cat((image.masked_fill(missing, 1), missing.to(image.dtype)), dim=1)
        states, holes = [], [missing]
        for level, layer in enumerate(self.encoder, start=1):
            state = layer(state)
            state = F.relu(state) if level == len(self.encoder) else F.leaky_relu(state, 0.2)
            states.append(state)
            holes.append(missing_above(holes[-1]))
        code = filled = state
        predictions = []
        rising = code
        for level in range(len(self.encoder) - 1, 0, -1):
            filled = self.transfers[level - 1](filled, states[level - 1], holes[level])
            rising = torch.cat((F.relu(self.decoder[level - 1](_doubled(rising))), filled), dim=1)
            predictions.append(torch.tanh(self.predictions[level - 1](rising)))
        full = self.prediction(F.relu(self.last(_doubled(rising))))
        return [torch.tanh(full), *reversed(predictions)]


class PENNet(CompletionNetwork):
    """Pyramid-context encoder network and its discriminator (Zeng et al. 2019).

        up      φ_l = leaky_relu(conv(φ_{l-1})), stride 2                   l = 1 ... L, φ_0 image and mask
        skips   ψ_l = AttentionTransfer(ψ_{l+1}, φ_l)                       l = L-1 ... 1, ψ_L = φ_L
        down    u_l = relu(conv(upsample(u_{l+1} ⊕ ψ_{l+1}))),              l = L-1 ... 1, from φ_L
                x_l = tanh(conv(u_l ⊕ ψ_l))                                 the prediction at 2^-l of the size
        output  x_0 = tanh(conv(relu(conv(upsample(u_1 ⊕ ψ_1)))))

    trained with, z = x_0 in the holes and the image elsewhere,

        6 |x_0 - x| over the holes + |x_0 - x| over the rest + 0.5 Σ_l |x_l - x at 2^-l| - 0.1 E D(z)
        ½ (E max(0, 1 - D(x)) + E max(0, 1 + D(z)))                         the discriminator's

    where each |·| is a mean on [-1, 1]. The module's docstring says where each detail is from.

    size:        height and width of the images (an int is both), at least 16; L is the published 6, or less
                 where fewer than 4 positions would be left along the shorter side. `forward` takes other
                 sizes divisible by 2^L as well
    width:       factor on all channels, 1 being the published 32 ... 512; for short runs. Channels are
                 rounded to multiples of 4
    image_range: darkest and brightest value of a pixel; the network converts to and from [-1, 1]

    ``forward(image, mask)``: image ``(N, 3, H, W)``; mask ``(N, 1, H, W)``, bool or 0 and 1 in floating point,
    **True where a pixel is missing**. Returns every pixel as the network makes it, missing or not, shaped like
    the image; what stands in missing pixels has no influence. Raises TypeError or ValueError naming the
    argument.
    """

    hole_weight, visible_weight, pyramid_weight, adversarial_weight = 6.0, 1.0, 0.5, 0.1

    def __init__(
        self,
        *,
        size: int | Pair = 256,
        width: float = 1.0,
        image_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(size, width, image_range, depth=6, smallest=16)
        channels = [_rounded(width * min(32 * 2**level, 512)) for level in range(self.depth)]
        std = 0.02 / width**0.5
        self.generator = PENNetGenerator(channels, std)
        patches = (_rounded(64 * width), _rounded(128 * width), _rounded(256 * width), _rounded(512 * width))
        self.discriminator = PatchDiscriminator(patches, std)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        signed, missing = self._take(image, mask)
        return self._give(self.generator(signed, missing)[0])

    def pyramid(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        """The predictions at 1, 1/2, 1/4, ... of the size, the first being what `forward` returns."""
        signed, missing = self._take(image, mask)
        return [self._give(prediction) for prediction in self.generator(signed, missing)]

    def terms(self, image: Tensor, mask: Tensor, *, shared: dict[str, Tensor] | None = None) -> PENNetTerms:
        """The terms of `generator_loss`. Leaves the completed images in `shared` for `discriminator_loss`."""
        signed, missing = self._take(image, mask)
        output, *coarser = self.generator(signed, missing)
        completed = torch.where(missing, output, signed)
        if shared is not None:
            shared["completed"] = completed.detach()
        pyramid = torch.stack(
            [
                F.l1_loss(prediction, halved(signed, level))
                for level, prediction in enumerate(coarser, start=1)
            ]
        )
        return PENNetTerms(
            hole=masked_l1(output, signed, missing),
            visible=masked_l1(output, signed, ~missing),
            pyramid=pyramid.sum(),
            adversarial=hinge_generator_loss(self.discriminator(completed)),
        )

    def generator_loss(
        self, image: Tensor, mask: Tensor, *, shared: dict[str, Tensor] | None = None
    ) -> Tensor:
        """What the generator descends, a 0-d tensor (see the class); `image` is complete here."""
        terms = self.terms(image, mask, shared=shared)
        return (
            self.hole_weight * terms.hole
            + self.visible_weight * terms.visible
            + self.pyramid_weight * terms.pyramid
            + self.adversarial_weight * terms.adversarial
        )

    def discriminator_loss(
        self, image: Tensor, mask: Tensor, *, shared: dict[str, Tensor] | None = None
    ) -> Tensor:
        """What the discriminator descends, a 0-d tensor, on the completed images that `terms` left in
        `shared`, or on new ones where it left none."""
        signed, missing = self._take(image, mask)
        if shared is not None and "completed" in shared:
            completed = shared["completed"]
        else:
            with torch.no_grad():
                completed = torch.where(missing, self.generator(signed, missing)[0], signed)
        return hinge_discriminator_loss(*real_and_fake(self.discriminator, signed, completed))

    @staticmethod
    def objectives() -> tuple[Objective, ...]:
        """Generator, then discriminator; both with the run's learning rate and betas 0.5 and 0.999."""
        return (
            Objective("generator", _generator, PENNet.generator_loss, betas=(0.5, 0.999)),
            Objective("discriminator", _discriminator, PENNet.discriminator_loss, betas=(0.5, 0.999)),
        )


def _generator(model: PENNet) -> Iterator[nn.Parameter]:
    return model.generator.parameters()


def _discriminator(model: PENNet) -> Iterator[nn.Parameter]:
    return model.discriminator.parameters()


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _rounded(channels: float) -> int:
    """To a multiple of 4: the dilated convolutions have a quarter of the channels each."""
    return 4 * max(1, round(channels / 4))
