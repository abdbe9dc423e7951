"""The denoising VAE: the bound it is trained by, what it sees, what it refuses."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from lmser.baselines import DenoisingVAE


def batch(size: int = 28, channels: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = 2 * torch.rand(4, channels, size, size, generator=generator) - 1
    return images, torch.rand(4, 1, size, size, generator=generator) < 0.7


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (2, 17)])
def test_the_output_has_the_images_shape_and_range(channels: int, size: int) -> None:
    torch.manual_seed(0)
    network = DenoisingVAE(channels, size, channels=(4, 8, 8), code=5)
    images, observed = batch(size, channels)
    found = network(images, observed)
    assert found.shape == images.shape
    assert float(found.detach().abs().max()) < 1


def test_the_loss_is_the_bound() -> None:
    """Against torch's distributions, with the same noise."""
    torch.manual_seed(1)
    network = DenoisingVAE(1, 28, channels=(4, 8), code=5).double()
    images, observed = (t.double() if t.is_floating_point() else t for t in batch())
    torch.manual_seed(7)
    found = network.loss(images, observed)
    mean, log_variance = network.encode(images, observed)
    code = Normal(mean, (0.5 * log_variance).exp())
    torch.manual_seed(7)
    drawn = mean + code.stddev * torch.randn_like(mean)
    # 004's images are not binary: the Bernoulli's "log-likelihood" of a grey value is the cross-entropy.
    likelihood = Bernoulli(logits=network.decode(drawn), validate_args=False).log_prob((images + 1) / 2)
    expected = -likelihood.sum() + kl_divergence(code, Normal(torch.zeros_like(mean), 1.0)).sum()
    assert float(found.detach()) == pytest.approx(float(expected.detach()) / 4, rel=1e-10)


def test_a_plain_pytorch_network_of_the_same_weights_gives_the_same() -> None:
    torch.manual_seed(2)
    network = DenoisingVAE(1, 28, channels=(4, 8, 8), code=5).double().eval()
    images, observed = batch()
    images = images.double()
    h = torch.where(observed, images, 0.0)
    for layer in network.encoder:
        h = F.relu(F.conv2d(h, layer.weight, layer.bias, 2, 1))
    h = F.relu(network.expand(network.mean(h.flatten(1)))).reshape(4, 8, 3, 3)
    for index, layer in enumerate(network.decoder):
        h = F.conv_transpose2d(h, layer.weight, layer.bias, 2, 1, output_padding=1 if index == 0 else 0)
        h = F.relu(h) if index < 2 else h
    assert torch.allclose(network(images, observed), 2 * h.sigmoid() - 1, atol=1e-12)


def test_what_is_not_observed_is_not_seen_and_noise_is_drawn_in_training_alone() -> None:
    torch.manual_seed(0)
    network = DenoisingVAE(1, 28, channels=(4, 8), code=5)
    images, observed = batch()
    other = torch.where(observed, images, math.nan)
    network.eval()
    assert torch.equal(network(images, observed), network(other, observed))
    assert torch.equal(network(images, observed), network(images, observed))
    network.train()
    assert not torch.equal(network(images, observed), network(images, observed))


def test_it_learns_to_fill_in() -> None:
    torch.manual_seed(0)
    network = DenoisingVAE(1, 8, channels=(8, 16), code=4)
    images = torch.where(torch.rand(2, 1, 8, 8) < 0.5, -0.9, 0.9).repeat(8, 1, 1, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    observed = torch.rand(16, 1, 8, 8) < 0.8
    before = float((network.eval()(images, observed) - images).detach().square().mean())
    network.train()
    for _ in range(60):
        optimizer.zero_grad()
        network.loss(images, observed).backward()
        optimizer.step()
    after = float((network.eval()(images, observed) - images).detach().square().mean())
    assert after < 0.2 * before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 4}, ValueError, "size: expected at least 8 for 3 layers"),
        ({"size": (28, 28, 1)}, ValueError, "size: expected one number or two"),
        ({"channels": ()}, ValueError, "channels: expected at least one layer"),
        ({"code": 0}, ValueError, "code: "),
        ({"hole": math.nan}, ValueError, "hole: expected a finite number"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        DenoisingVAE(**{"in_channels": 1, "size": 28, **arguments})  # type: ignore[arg-type]


def test_wrong_inputs_are_named() -> None:
    network = DenoisingVAE(1, 28)
    images, observed = batch()
    with pytest.raises(ValueError, match=r"evidence: expected shape \(N, 1, 28, 28\)"):
        network(images[..., :27], observed)
    with pytest.raises(TypeError, match="mask: expected bool"):
        network(images, observed.float())
