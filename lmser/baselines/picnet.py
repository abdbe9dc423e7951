"""PICNet: pluralistic image completion (Zheng et al. 2019; 001 Tables 5 and 6).

Zheng, Cham and Cai, "Pluralistic image completion", CVPR 2019, arXiv:1903.04227. 001 ran the authors'
implementation with its settings, training on from their published weights (001 Appendix A; there are none
here). So what the paper leaves open ("printed": it does not) is set as in that implementation ("authors");
what neither settles, or what is different here, had to be chosen:

    detail                              from      here
    two paths, shared weights           printed   posterior from I_c, conditional prior and features from I_m
    prior N(0, s²(n)), growing with n   printed   s = 1 / (1 + exp(8 (v - 0.8))), v the visible share (authors)
    KL(q_ψ ‖ prior), KL(q_ψ ‖ p_φ)      printed   the same (the authors' first one has its sides exchanged);
                                                  in the second q_ψ is a constant (authors)
    appearance: L1, in the generative   printed   a mean per scale, summed; the targets are means of blocks, in
    path of visible pixels only                   the generative path of the block's visible pixels, weighted
                                                  by their share
    adversarial: |f_D(rec) - f_D(x)|²   printed   mean square of the differences of the scores; one
    and (D(gen) - 1)²                             discriminator per path, both trained by least squares
    weights 20, 20, 1                   printed   the same; KL times the number of scales (supplement D)
    KL per image                        authors   mean over the latent variables
    short+long term attention           printed   at 32x32 of 256x256; M the visible share of a block
    spectral normalisation everywhere   printed   also the attention's query, which the authors leave out
    orthogonal initialisation           printed   gain 1 (which spectral normalisation cancels)
    residual blocks, five halvings      printed   32, 64, 128, 128, 128 channels
    latent variable                     authors   128 channels at 8x8; one block to q_ψ, seven to p_φ
    four scales                         printed   each prediction is concatenated to what is upsampled next
    instance normalisation              authors   in the generator's upsampling blocks
    Adam, betas 0 and 0.999             printed   the same; learning rate 1e-4
    sampling                            printed   z from p_φ; the paper draws 50 and ranks them by D
    deviations of q_ψ and p_φ           authors   softplus; here plus 1e-6
    order of the two updates            chosen    network first, so that one pass serves both
    depth for images below 128          chosen    as many halvings as leave 4 positions (64: 4, 32: 3), and no
                                                  more scales than that

The paper's M is 1 where a pixel is visible; masks here are True where one is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.baselines.adversarial import (
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    real_and_fake,
)
from lmser.baselines.completion import CompletionNetwork, halved, visible_halved
from lmser.baselines.picnet_networks import (
    Gaussian,
    Generator,
    RepresentationNetwork,
    ResidualDiscriminator,
    kl_divergence,
)
from lmser.models.reflection import Pair, whole
from lmser.training import Objective


class PICNetTerms(NamedTuple):
    """The terms of `PICNet.generator_loss` before they are weighted, 0-d tensors: r of the reconstructive, g
    of the generative path."""

    kl_r: Tensor
    kl_g: Tensor
    appearance_r: Tensor
    appearance_g: Tensor
    adversarial_r: Tensor
    adversarial_g: Tensor


class PICNetCompletions(NamedTuple):
    """Several completions of each image.

    images: ``(samples, N, 3, H, W)``: the visible pixels of the image, the missing ones as generated
    scores: ``(samples, N)``: mean of the generative path's discriminator over the patches; higher is better
    """

    images: Tensor
    scores: Tensor


class PICNet(CompletionNetwork):
    """Pluralistic image completion: two paths, two discriminators (Zheng et al. 2019).

        f_m, f_c = E(I_m), E(I_c)                   visible and missing part, the rest being 0
        q_ψ(z | I_c) = N(m(f_c), s²(f_c))           reconstructive path, in training only
        p_φ(z | I_m) = N(m(f_m), s²(f_m))           generative path
        image = G(z, f_m)                           at several scales

    trained with, S being the number of scales and x the image,

        20 S (KL(q_ψ ‖ N(0, s²(n))) + KL(q_ψ ‖ p_φ)) + 20 (Σ_s |rec_s - x_s| + Σ_s |M_s (gen_s - x_s)|)
            + |D_r(rec) - D_r(x)|² + (D_g(gen) - 1)²
        ½ ((D_r(x) - 1)² + D_r(rec)² + (D_g(x) - 1)² + D_g(gen)²)           the discriminators'

    (Zheng et al. Eqs. 5-10), all means on [-1, 1], n the missing pixels. The module's docstring says where
    each detail is from.

    size:        height and width of the images (an int is both), at least 32; there are the published five
                 halvings, or fewer where less than 4 positions would be left along the shorter side.
                 `forward` takes other sizes divisible by 2^depth as well
    width:       factor on all channels, 1 being the published 32 ... 128; for short runs
    image_range: darkest and brightest value of a pixel; the network converts to and from [-1, 1]

    ``forward(image, mask, samples=1, generator=None)``: image ``(N, 3, H, W)``; mask ``(N, 1, H, W)``, bool or
    0 and 1 in floating point, **True where a pixel is missing**. Draws z from p_φ, in training and evaluation
    mode alike, `samples` times, and returns for each image the result whose completion D_g scores highest:
    every pixel as the network makes it, missing or not, shaped like the image. The draws come from
    `generator`, on the image's device, or torch's global one; the first of many is that of ``samples=1``.
    What stands in missing pixels has no influence. Raises TypeError or ValueError naming the argument.
    """

    kl_weight, appearance_weight, adversarial_weight = 20.0, 20.0, 1.0

    def __init__(
        self,
        *,
        size: int | Pair = 256,
        width: float = 1.0,
        image_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(size, width, image_range, depth=5, smallest=32)
        base = max(1, round(32 * width))
        self.scales = min(4, self.depth)
        self.representation = RepresentationNetwork(base, self.depth)
        self.generator = Generator(base, self.depth, self.scales)
        self.reconstructive_discriminator = ResidualDiscriminator(base, self.depth)
        self.generative_discriminator = ResidualDiscriminator(base, self.depth)

    def forward(
        self,
        image: Tensor,
        mask: Tensor,
        *,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if samples == 1:
            return self._give(self._generate(*self._take(image, mask), samples, generator)[0])
        generated, _, scores = self._scored(image, mask, samples, generator)
        best = scores.argmax(0)
        return self._give(generated[best, torch.arange(len(image), device=best.device)])

    def completions(
        self, image: Tensor, mask: Tensor, samples: int, *, generator: torch.Generator | None = None
    ) -> PICNetCompletions:
        """`samples` completions of each image and their scores; arguments as in `forward`."""
        _, completed, scores = self._scored(image, mask, samples, generator)
        missing = self._take(image, mask)[1]
        return PICNetCompletions(torch.where(missing, self._give(completed), image), scores)

    def _scored(
        self, image: Tensor, mask: Tensor, samples: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Generated and completed images ``(samples, N, 3, H, W)`` on [-1, 1], and scores of the latter."""
        signed, missing = self._take(image, mask)
        generated = self._generate(signed, missing, samples, generator)
        completed = torch.where(missing, generated, signed)
        scores = [self.generative_discriminator(one).flatten(1).mean(1) for one in completed]
        return generated, completed, torch.stack(scores)

    def _generate(
        self, signed: Tensor, missing: Tensor, samples: int, generator: torch.Generator | None
    ) -> Tensor:
        whole("samples", samples)
        features = self.representation.features(signed.masked_fill(missing, 0))
        prior, share = self.representation.prior(features[-1]), (~missing).to(signed.dtype)
        return torch.stack(
            [self.generator(prior.draw(generator), features, share)[-1] for _ in range(samples)]
        )

    def terms(self, image: Tensor, mask: Tensor, *, shared: dict[str, Tensor] | None = None) -> PICNetTerms:
        """The terms of `generator_loss`. Leaves the images of both paths in `shared` for
        `discriminator_loss`."""
        signed, missing = self._take(image, mask)
        posterior, prior, reconstructed, generated = self._both_paths(signed, missing)
        if shared is not None:
            shared["reconstructed"] = reconstructed[-1].detach()
            shared["generated"] = generated[-1].detach()
        appearance_r, appearance_g = [], []
        for level, (rec, gen) in enumerate(zip(reversed(reconstructed), reversed(generated), strict=True)):
            appearance_r.append(F.l1_loss(rec, halved(signed, level)))
            target, share = visible_halved(signed, missing, level)
            appearance_g.append((share * (gen - target)).abs().mean())
        real, fake = real_and_fake(self.reconstructive_discriminator, signed, reconstructed[-1])
        return PICNetTerms(
            kl_r=kl_divergence(posterior, self._unconditional(posterior, missing)).mean(),
            kl_g=kl_divergence(posterior.detach(), prior).mean(),
            appearance_r=torch.stack(appearance_r).sum(),
            appearance_g=torch.stack(appearance_g).sum(),
            adversarial_r=F.mse_loss(fake, real.detach()),
            adversarial_g=least_squares_generator_loss(self.generative_discriminator(generated[-1])),
        )

    def _both_paths(
        self, signed: Tensor, missing: Tensor
    ) -> tuple[Gaussian, Gaussian, list[Tensor], list[Tensor]]:
        """Posterior, conditional prior, and the images of the reconstructive and the generative path."""
        count = len(signed)
        parts = torch.cat((signed.masked_fill(missing, 0), signed.masked_fill(~missing, 0)))
        features = self.representation.features(parts)
        posterior = self.representation.posterior(features[-1][count:])
        prior = self.representation.prior(features[-1][:count])
        images = self.generator(
            torch.cat((posterior.draw(), prior.draw())),
            [feature[:count].repeat(2, 1, 1, 1) for feature in features],
            (~missing).to(signed.dtype).repeat(2, 1, 1, 1),
        )
        return posterior, prior, [image[:count] for image in images], [image[count:] for image in images]

    @staticmethod
    def _unconditional(posterior: Gaussian, missing: Tensor) -> Gaussian:
        """The prior of the missing part: N(0, s²(n)), with s growing with the number n of missing pixels."""
        visible = (~missing).to(posterior.std.dtype).mean((1, 2, 3)).reshape(-1, 1, 1, 1)
        std = torch.sigmoid(8 * (0.8 - visible))
        return Gaussian(torch.zeros_like(posterior.mean), std.expand_as(posterior.std))

    def generator_loss(
        self, image: Tensor, mask: Tensor, *, shared: dict[str, Tensor] | None = None
    ) -> Tensor:
        """What representation network and generator descend, a 0-d tensor (see the class); `image` is
        complete here. Draws from torch's global generator."""
        terms = self.terms(image, mask, shared=shared)
        return (
            self.kl_weight * self.scales * (terms.kl_r + terms.kl_g)
            + self.appearance_weight * (terms.appearance_r + terms.appearance_g)
            + self.adversarial_weight * (terms.adversarial_r + terms.adversarial_g)
        )

    def discriminator_loss(
        self, image: Tensor, mask: Tensor, *, shared: dict[str, Tensor] | None = None
    ) -> Tensor:
        """What the discriminators descend, a 0-d tensor, on the images that `terms` left in `shared`, or on
        new ones where it left none."""
        signed, missing = self._take(image, mask)
        if shared is not None and "generated" in shared:
            reconstructed, generated = shared["reconstructed"], shared["generated"]
        else:
            with torch.no_grad():
                _, _, *images = self._both_paths(signed, missing)
            reconstructed, generated = (scales[-1] for scales in images)
        r = real_and_fake(self.reconstructive_discriminator, signed, reconstructed)
        g = real_and_fake(self.generative_discriminator, signed, generated)
        return least_squares_discriminator_loss(*r) + least_squares_discriminator_loss(*g)

    @staticmethod
    def objectives() -> tuple[Objective, ...]:
        """Both networks of the paths, then both discriminators; all with the run's learning rate and betas 0
        and 0.999."""
        return (
            Objective("generator", _paths, PICNet.generator_loss, betas=(0.0, 0.999)),
            Objective("discriminator", _discriminators, PICNet.discriminator_loss, betas=(0.0, 0.999)),
        )


def _paths(model: PICNet) -> Iterator[nn.Parameter]:
    yield from model.representation.parameters()
    yield from model.generator.parameters()


def _discriminators(model: PICNet) -> Iterator[nn.Parameter]:
    yield from model.reconstructive_discriminator.parameters()
    yield from model.generative_discriminator.parameters()
