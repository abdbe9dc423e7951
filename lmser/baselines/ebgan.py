"""Energy-based generative adversarial networks with the reconstruction error of an inverted network (003 Sect. 4).

Zhao, Mathieu and LeCun, "Energy-based generative adversarial network", arXiv:1609.03126 (ZML16 in 003), take the
reconstruction error of an autoencoder for the energy `D(x)`. 003 plans to "replace this autoencoder using our proposed
method": `D(x) = R(x)`, with `R` that of a network sent back through its own transpose, "and only one-half the
parameters will be needed". Both are here; what neither paper settles had to be chosen:

    detail                              from      here
    losses with a margin                ZML16     its Eqs. (1) and (2)
    pulling-away term, weight 0.1       ZML16     its Eq. (4), on what the encoder returns
    energy                              003       `R` as a mean over pixels, images on [0, 1], or by the cosine
    encoder                             chosen    `SmallCNN` with as many outputs as the code has units
    decoder of the autoencoder          chosen    the encoder's layers transposed, with weights of their own
    generator                           chosen    three transposed convolutions: 7x7, 14x14, 28x28 positions
    batch normalisation                 both      in the generator (ZML16); not in `D` (003 App. A.2 excludes it)
    order of the two updates            chosen    generator first, so that one batch of images serves both
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.baselines.topologies import SmallCNN
from lmser.inversion import inverted, reconstruction_error
from lmser.inversion.invert import METHODS
from lmser.training import Objective
from lmser_kernels.nn import ConvTranspose2dAddAct

__all__ = ["EBGAN", "ENERGIES", "Generator", "pulling_away"]

ENERGIES = ("inverse", "autoencoder")
MEASURES = ("mean_squared", "cosine")
SIDE = 28


def pulling_away(codes: Tensor) -> Tensor:
    """`1 / (N (N - 1)) Σ_i Σ_{j≠i} cos²(s_i, s_j)` of codes `s` ``(N, D)``, a 0-d tensor (ZML16 Eq. 4).

    0 where all are orthogonal, 1 where all are parallel. ValueError for fewer than two codes.
    """
    count = len(codes)
    if codes.dim() != 2 or count < 2:
        raise ValueError(f"codes: expected shape (N, D) with N of at least 2, got {tuple(codes.shape)}")
    directions = F.normalize(codes, dim=1)
    squares = (directions @ directions.T).square()
    return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))


class Generator(nn.Sequential):
    """Images `(N, 1, 28, 28)` on [0, 1] of noise `(N, noise, 1, 1)`: transposed convolutions to `2 width` channels at
    7x7 positions, `width` at 14x14, and the image; batch normalisation and relu behind the first two, a sigmoid behind
    the last. Normal weights of standard deviation 0.02 (Radford et al. 2016, as ZML16's are)."""

    def __init__(self, noise: int, width: int) -> None:
        layers = (
            ConvTranspose2dAddAct(noise, 2 * width, 7, bias=False),
            ConvTranspose2dAddAct(2 * width, width, 4, 2, 1, bias=False),
            ConvTranspose2dAddAct(width, 1, 4, 2, 1, activation="sigmoid"),
        )
        super().__init__(
            layers[0], nn.BatchNorm2d(2 * width), nn.ReLU(),
            layers[1], nn.BatchNorm2d(width), nn.ReLU(), layers[2],
        )  # fmt: skip
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)


class EBGAN(nn.Module):
    """A generator against an energy that is a reconstruction error:

        L_D = D(x) + [m - D(G(z))]₊          L_G = D(G(z)) + w PT
        D(x) = ‖(df/dx)ᵀ f(x) - x‖² / 784    with ``energy="inverse"``
        D(x) = ‖g(f(x)) - x‖² / 784          with ``energy="autoencoder"``

    energy:       what `D` is (see above); `g` is a network of its own, with as many weights as `f`
    measure:      of the error: ``"mean_squared"`` as above, or ``"cosine"``, `1 - cos(reconstruction, x)`, which 003
                  names too: a faint image is no cheaper by it
    code:         outputs of `f`, a `SmallCNN`
    pooling:      of `f`: ``"mean"``, ``"max"`` or ``"inhibitor"``; the autoencoder has ``"mean"``
    noise, width: of the `Generator`
    margin:       `m`
    pulling:      `w`, of the `pulling_away` term of the codes `f(G(z))`
    method:       how `f` is inverted (`lmser.invert`)

    ``forward(z)`` makes images `(N, 1, 28, 28)` of noise `(N, noise)`. Raises ValueError naming the argument.
    """

    def __init__(
        self,
        energy: str = "inverse",
        *,
        measure: str = "mean_squared",
        code: int = 64,
        pooling: str = "mean",
        noise: int = 64,
        width: int = 32,
        margin: float = 0.1,
        pulling: float = 0.1,
        method: str = "auto",
    ) -> None:
        super().__init__()
        if energy not in ENERGIES:
            raise ValueError(f"energy: expected one of {', '.join(ENERGIES)}, got {energy!r}")
        if measure not in MEASURES:
            raise ValueError(f"measure: expected one of {', '.join(MEASURES)}, got {measure!r}")
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        if energy == "autoencoder" and pooling != "mean":
            raise ValueError(f"pooling: expected 'mean' with energy='autoencoder', got {pooling!r}")
        for name, count in (("code", code), ("noise", noise), ("width", width)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected a positive int, got {count!r}")
        for name, value, low in (("margin", margin, "above"), ("pulling", pulling, "of at least")):
            if not 0 <= value < float("inf") or (name == "margin" and value == 0):
                raise ValueError(f"{name}: expected a finite number {low} 0, got {value!r}")
        self.measure, self.method = measure, method
        self.noise, self.margin, self.pulling = noise, margin, pulling
        self.generator = Generator(noise, width)
        self.encoder = SmallCNN(1, code, pooling=pooling, size=SIDE)
        self.decoder = _decoder(code) if energy == "autoencoder" else None

    def forward(self, z: Tensor) -> Tensor:
        if z.dim() != 2 or z.shape[1] != self.noise:
            raise ValueError(f"z: expected shape (N, {self.noise}), got {tuple(z.shape)}")
        images: Tensor = self.generator(z[:, :, None, None])
        return images

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Images ``(count, 1, 28, 28)`` of standard normal noise, drawn where the generator is: without one, on the
        network's device."""
        like = next(self.generator.parameters())
        where = like.device if generator is None else generator.device
        images: Tensor = self(torch.randn(count, self.noise, generator=generator, device=where).to(like))
        return images

    def discriminator(self) -> Iterator[nn.Parameter]:
        """The parameters of `D`."""
        yield from self.encoder.parameters()
        if self.decoder is not None:
            yield from self.decoder.parameters()

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `D` reconstructs of images `(N, 1, 28, 28)`, of their shape, and their codes `(N, code)`."""
        if self.decoder is None:
            found = inverted(self.encoder, x, method=self.method)
            return found.reconstructions[0], found.output
        codes = self.encoder(x)
        return self.decoder(codes[:, :, None, None]), codes

    def energy(self, x: Tensor) -> Tensor:
        """`D(x)` of images `(N, 1, 28, 28)`, ``(N,)``, differentiable in the parameters and in `x`."""
        return reconstruction_error(self.reconstruct(x)[0], x, self.measure)

    def generator_loss(self, x: Tensor, *, shared: dict[str, Tensor] | None = None) -> Tensor:
        """`D(G(z)) + w PT` for as many new images as `x` has, a 0-d tensor. Leaves them in `shared`."""
        fake = self.sample(len(x))
        if shared is not None:
            shared["fake"] = fake.detach()
        reconstruction, codes = self.reconstruct(fake)
        loss = reconstruction_error(reconstruction, fake, self.measure).mean()
        return loss + self.pulling * pulling_away(codes) if self.pulling else loss

    def discriminator_loss(self, x: Tensor, *, shared: dict[str, Tensor] | None = None) -> Tensor:
        """`D(x) + [m - D(G(z))]₊`, a 0-d tensor, on the images that `generator_loss` left in `shared`, or on new
        ones where it left none."""
        if shared is not None and "fake" in shared:
            fake = shared["fake"]
        else:
            with torch.no_grad():
                fake = self.sample(len(x))
        real_energy, fake_energy = self.energy(torch.cat((x, fake))).split(len(x))
        return real_energy.mean() + F.relu(self.margin - fake_energy).mean()

    @staticmethod
    def objectives(generator_lr: float | None = None) -> tuple[Objective, ...]:
        """Generator, with a learning rate of its own or the run's, then discriminator with the run's."""
        return (
            Objective("generator", _generator, EBGAN.generator_loss, lr=generator_lr),
            Objective("discriminator", EBGAN.discriminator, EBGAN.discriminator_loss),
        )


def _generator(model: EBGAN) -> Iterator[nn.Parameter]:
    return model.generator.parameters()


def _decoder(code: int) -> nn.Sequential:
    """`SmallCNN`'s layers from the top down, its pools as upsampling: the weights of `SmallCNN`, not tied."""
    layers = (
        ConvTranspose2dAddAct(code, 128, 1, upsample=3, activation="relu"),
        ConvTranspose2dAddAct(128, 64, 3, upsample=2, activation="relu"),
        ConvTranspose2dAddAct(64, 32, 3, upsample=2, activation="relu"),
        ConvTranspose2dAddAct(32, 1, 5),
    )
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
