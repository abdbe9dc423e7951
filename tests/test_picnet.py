"""PICNet: its distributions, its attention, what each path is trained by, and how a completion is chosen."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import distributions

from lmser.baselines import PICNet
from lmser.baselines.adversarial import least_squares_discriminator_loss, least_squares_generator_loss
from lmser.baselines.completion import visible_halved
from lmser.baselines.picnet_layers import ResidualBlock, SelfAttention, ShortLongAttention
from lmser.baselines.picnet_networks import Gaussian, kl_divergence, reflected
from lmser.training import TrainConfig, train

NARROW = 0.0625


def _hole(count: int, size: int, side: int, at: int) -> torch.Tensor:
    mask = torch.zeros(count, 1, size, size, dtype=torch.bool)
    mask[:, :, at : at + side, at : at + side] = True
    return mask


def _batch(size: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 3, size, size), torch.rand(count, 1, size, size) < 0.3


def _network(size: int = 32) -> PICNet:
    """In evaluation mode, where spectral normalisation stands still, on [-1, 1], in float64."""
    return PICNet(size=size, width=NARROW, image_range=(-1, 1)).double().eval()


def _signed(size: int = 32, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    image, mask = _batch(size, count)
    return 2 * image.double() - 1, mask


@pytest.mark.parametrize(
    ("size", "depth", "scales"), [(32, 3, 3), ((64, 80), 4, 4), (128, 5, 4), (256, 5, 4)], ids=str
)
def test_shapes(size, depth, scales):
    network = PICNet(size=size, width=NARROW)
    image = torch.rand(1, 3, *network.size)
    mask = torch.rand(1, 1, *network.size) < 0.3
    height, width = network.size
    assert (network.depth, network.scales) == (depth, scales)
    with torch.no_grad():
        assert network(image, mask).shape == image.shape
        *gaussians, reconstructed, generated = network._both_paths(image, mask)
        assert all(part.shape[2:] == (height >> depth, width >> depth) for g in gaussians for part in g)
        expected = [(1, 3, height >> level, width >> level) for level in reversed(range(scales))]
        assert [tuple(x.shape) for x in reconstructed] == expected
        assert [tuple(x.shape) for x in generated] == expected


def test_published_size():
    """The paper counts 6M parameters without the discriminators."""
    network = PICNet()
    parts = network.representation, network.generator
    assert sum(p.numel() for part in parts for p in part.parameters()) == pytest.approx(6e6, rel=0.01)
    assert [len(block.second.weight) for block in network.representation.blocks] == [32, 64, 128, 128, 128]
    assert [block.second.weight.shape[1] for block in network.generator.blocks] == [128, 128, 128, 64, 32]


def test_divergence_is_the_closed_form():
    one = kl_divergence(
        Gaussian(torch.tensor([1.0]), torch.tensor([2.0])), Gaussian(torch.zeros(1), torch.ones(1))
    )
    assert one.item() == pytest.approx(math.log(1 / 2) + (4 + 1) / 2 - 0.5)
    q, p = (Gaussian(torch.randn(50).double(), torch.rand(50).double() + 0.1) for _ in range(2))
    expected = distributions.kl_divergence(distributions.Normal(*q), distributions.Normal(*p))
    torch.testing.assert_close(kl_divergence(q, p), expected)
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros(50).double())


def test_draws_have_the_mean_and_the_deviation():
    gaussian = Gaussian(torch.full((20_000,), 3.0), torch.full((20_000,), 0.5))
    drawn = gaussian.draw(torch.Generator().manual_seed(1))
    assert drawn.mean().item() == pytest.approx(3, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(drawn, gaussian.draw(torch.Generator().manual_seed(1)))


def test_unconditional_prior_widens_with_the_hole():
    masks = torch.stack([_hole(1, 10, side, 0)[0] for side in (0, 4, 10)])
    posterior = Gaussian(torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4))
    prior = PICNet._unconditional(posterior, masks)
    assert torch.equal(prior.mean, torch.zeros(3, 2, 4, 4))
    assert (prior.std.flatten(1).amax(1) == prior.std.flatten(1).amin(1)).all()
    expected = [1 / (1 + math.exp(8 * (visible - 0.8))) for visible in (1, 0.84, 0)]
    torch.testing.assert_close(prior.std[:, 0, 0, 0], torch.tensor(expected))
    assert expected == sorted(expected)


def test_visible_halved_takes_visible_pixels_only():
    x = torch.tensor([[[[1.0, 3, 8, 8], [5, 7, 8, torch.nan]]]])
    missing = torch.tensor([[[[False, False, True, True], [True, False, True, True]]]])
    mean, share = visible_halved(x, missing, 1)
    torch.testing.assert_close(mean, torch.tensor([[[[(1 + 3 + 7) / 3, 0]]]]))
    assert share.tolist() == [[[[0.75, 0]]]]
    same, all_of_it = visible_halved(x, missing, 0)
    assert torch.equal(same, x.masked_fill(missing, 0))
    assert torch.equal(all_of_it, (~missing).float())


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("resample", ["", "start", "down", "up"])
def test_residual_block_is_its_equation(resample, norm):
    block = ResidualBlock(3, 5, resample=resample, norm=norm, inner=4).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases, scales and shifts that show
    x = torch.randn(2, 3, 6, 8).double()

    def f(v):
        return torch.where(v > 0, v, 0.1 * v)

    def normed(index, v):
        if not norm:
            return v
        layer = block.norms[index]
        mean, variance = v.mean((2, 3), keepdim=True), v.var((2, 3), keepdim=True, correction=0)
        scale, shift = (part.reshape(1, -1, 1, 1) for part in (layer.weight, layer.bias))
        return (v - mean) / (variance + 1e-5).sqrt() * scale + shift

    def pooled(v):
        return (v[:, :, ::2, ::2] + v[:, :, 1::2, ::2] + v[:, :, ::2, 1::2] + v[:, :, 1::2, 1::2]) / 4

    first, second, short = (
        (layer.weight, layer.bias) for layer in (block.first, block.second, block.shortcut)
    )
    inner = f(normed(1, F.conv2d(x if resample == "start" else f(normed(0, x)), *first, padding=1)))
    if resample == "up":
        expected = F.conv_transpose2d(inner, *second, 2, 1, 1) + F.conv_transpose2d(x, *short, 2, 1, 1)
    else:
        path, shortcut = F.conv2d(inner, *second, padding=1), F.conv2d(x, *short)
        expected = {
            "": path + shortcut,
            "down": pooled(path + shortcut),
            "start": pooled(path) + F.conv2d(pooled(x), *short),
        }[resample]
    torch.testing.assert_close(block(x), expected)


def test_every_convolution_is_spectrally_normalised():
    network = PICNet(size=32, width=0.25).eval()
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(layers) > 50
    for layer in layers:
        weight = layer.weight.transpose(0, 1) if isinstance(layer, torch.nn.ConvTranspose2d) else layer.weight
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_attention_is_its_equations():
    layer = ShortLongAttention(4, 3).double().eval()
    f_d, f_e = torch.randn(2, 4, 2, 3).double(), torch.randn(2, 3, 2, 3).double()
    visible = torch.rand(2, 1, 2, 3).double()
    joined = layer(f_d, f_e, visible)
    torch.testing.assert_close(joined, layer.block(torch.cat((f_d, visible * f_e), 1)), msg="starts from 0")
    with torch.no_grad():
        layer.short.gamma.fill_(0.7)
        layer.gamma.fill_(-1.3)
    query = layer.short.query(f_d)
    y_d, y_e = f_d.clone(), visible * f_e
    places = [(r, c) for r in range(2) for c in range(3)]
    for n in range(2):
        for r, c in places:
            scores = torch.stack([query[n, :, v, u] @ query[n, :, r, c] for v, u in places])
            for share, (v, u) in zip(scores.softmax(0), places, strict=True):
                y_d[n, :, r, c] += 0.7 * share * f_d[n, :, v, u]
                y_e[n, :, r, c] += -1.3 * (1 - visible[n, :, r, c]) * share * f_e[n, :, v, u]
    torch.testing.assert_close(layer.short(f_d)[0], y_d)
    torch.testing.assert_close(layer(f_d, f_e, visible), layer.block(torch.cat((y_d, y_e), 1)))


def test_reflection():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(reflected(x), F.pad(x, (1, 1, 1, 1), "reflect"))


def test_attention_sums_to_one():
    _, attention = SelfAttention(6)(torch.randn(2, 6, 3, 4))
    torch.testing.assert_close(attention.sum(2), torch.ones(2, 12))


def test_least_squares_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert least_squares_discriminator_loss(real, fake).item() == pytest.approx(
        0.5 * ((1 + 0.25) / 2 + (9 + 1) / 2)
    )
    assert least_squares_generator_loss(fake).item() == pytest.approx((16 + 0) / 2)


def test_losses_by_hand():
    network = _network()
    image, mask = _signed()
    torch.manual_seed(7)
    posterior, prior, reconstructed, generated = network._both_paths(image, mask)
    torch.manual_seed(7)
    shared: dict[str, torch.Tensor] = {}
    terms = network.terms(image, mask, shared=shared)
    visible = (~mask).double()
    s = 1 / (1 + torch.exp(8 * (visible.mean((1, 2, 3)) - 0.8))).reshape(2, 1, 1, 1)
    q, p = distributions.Normal(*posterior), distributions.Normal(*prior)
    zero = distributions.Normal(torch.zeros_like(posterior.mean), s.expand_as(posterior.std))
    torch.testing.assert_close(terms.kl_r, distributions.kl_divergence(q, zero).mean())
    torch.testing.assert_close(terms.kl_g, distributions.kl_divergence(q, p).mean())

    appearance_r = appearance_g = 0.0
    for level, (rec, gen) in enumerate(zip(reconstructed[::-1], generated[::-1], strict=True)):
        side, block = 32 >> level, 1 << level
        blocks = image.reshape(2, 3, side, block, side, block)
        seen = visible.reshape(2, 1, side, block, side, block)
        appearance_r = appearance_r + (rec - blocks.mean((3, 5))).abs().mean()
        target = (blocks * seen).sum((3, 5)) / seen.sum((3, 5)).clamp(min=1)
        appearance_g = appearance_g + (seen.mean((3, 5)) * (gen - target).abs()).mean()
    torch.testing.assert_close(terms.appearance_r, appearance_r)
    torch.testing.assert_close(terms.appearance_g, appearance_g)

    d_r, d_g = network.reconstructive_discriminator, network.generative_discriminator
    torch.testing.assert_close(terms.adversarial_r, (d_r(reconstructed[-1]) - d_r(image)).square().mean())
    torch.testing.assert_close(terms.adversarial_g, (d_g(generated[-1]) - 1).square().mean())
    torch.manual_seed(7)
    expected = (
        20 * 3 * (terms.kl_r + terms.kl_g)
        + 20 * (appearance_r + appearance_g)
        + terms.adversarial_r
        + terms.adversarial_g
    )
    torch.testing.assert_close(network.generator_loss(image, mask), expected)

    both = (d_r(image) - 1).square().mean() + d_r(reconstructed[-1]).square().mean()
    both = both + (d_g(image) - 1).square().mean() + d_g(generated[-1]).square().mean()
    assert not any(value.requires_grad for value in shared.values())
    torch.testing.assert_close(network.discriminator_loss(image, mask, shared=shared), both / 2)
    torch.manual_seed(7)
    torch.testing.assert_close(network.discriminator_loss(image, mask), both / 2)


def test_generative_path_never_sees_the_missing_part():
    network = _network()
    image, mask = _signed()
    other = torch.where(mask, -image, image)
    terms = []
    for one in (image, other):
        torch.manual_seed(3)
        terms.append(network.terms(one, mask))
    first, second = terms
    assert torch.equal(first.appearance_g, second.appearance_g)
    assert torch.equal(first.adversarial_g, second.adversarial_g)
    assert not torch.equal(first.appearance_r, second.appearance_r)
    assert not torch.equal(first.kl_r, second.kl_r)


def test_conditional_prior_is_drawn_to_the_posterior_and_not_the_reverse():
    network = _network()
    representation = network.representation
    network.terms(*_signed()).kl_g.backward()
    assert all(p.grad is None for p in representation.posterior_head.parameters())
    assert all(p.grad is not None for p in representation.prior_head.parameters())


def test_every_parameter_is_used():
    network = PICNet(size=32, width=NARROW)
    with torch.no_grad():  # attention starts switched off
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    image, mask = _batch(32)
    shared: dict[str, torch.Tensor] = {}
    network.generator_loss(image, mask, shared=shared).backward()
    parts = network.representation, network.generator
    unused = [n for part in parts for n, p in part.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    network.zero_grad()
    network.discriminator_loss(image, mask, shared=shared).backward()
    assert all(p.grad is None for part in parts for p in part.parameters())
    parts = network.reconstructive_discriminator, network.generative_discriminator
    unused = [n for part in parts for n, p in part.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_samples_come_from_the_generator():
    network = PICNet(size=32, width=NARROW).eval()
    image, mask = _batch(32)

    def sampled(seed, **kwargs):
        return network(image, mask, generator=torch.Generator().manual_seed(seed), **kwargs)

    before = torch.get_rng_state()
    assert torch.equal(sampled(1), sampled(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(sampled(1), sampled(2))
    torch.manual_seed(1)
    assert torch.equal(network(image, mask), sampled(1))


def test_best_of_several_samples():
    network = PICNet(size=32, width=NARROW).eval()
    image, mask = _batch(32, count=3)
    with torch.no_grad():
        completions = network.completions(image, mask, 5, generator=torch.Generator().manual_seed(1))
        best = network(image, mask, samples=5, generator=torch.Generator().manual_seed(1))
        first = network(image, mask, generator=torch.Generator().manual_seed(1))
        scores = [network.generative_discriminator(2 * x - 1).mean((1, 2, 3)) for x in completions.images]
    assert completions.images.shape == (5, 3, 3, 32, 32)
    torch.testing.assert_close(completions.scores, torch.stack(scores), atol=1e-5, rtol=1e-4)
    for sample in completions.images:
        assert torch.equal(sample.masked_select(~mask), image.masked_select(~mask))
    torch.testing.assert_close(completions.images[0], torch.where(mask, first, image))
    chosen = completions.scores.argmax(0)
    assert len(set(chosen.tolist())) > 1, "a seed under which the images disagree"
    expected = torch.stack([completions.images[s, n] for n, s in enumerate(chosen)])
    torch.testing.assert_close(torch.where(mask, best, image), expected)


def test_what_stands_in_holes_has_no_influence():
    network = PICNet(size=32, width=NARROW).eval()
    image, mask = _batch(32)

    def completed(image, mask):
        return network(image, mask, samples=2, generator=torch.Generator().manual_seed(1))

    expected = completed(image, mask)
    assert torch.equal(completed(image.masked_fill(mask, torch.nan), mask), expected)
    assert torch.equal(completed(image, mask.float()), expected)
    assert not torch.equal(completed(image.masked_fill(~mask, 0), mask), expected)


def test_learns_one_image():
    network = PICNet(size=32, width=NARROW)
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    image, mask = torch.stack((y, x, 0.5 * (x + y)))[None], _hole(1, 32, 8, 12)
    before = network.terms(image, mask)
    config = TrainConfig(steps=30, batch_size=1, lr=4e-3)
    train(network, None, (image, mask), config, objectives=network.objectives(), progress=False)
    after = network.terms(image, mask)
    assert after.appearance_r.item() < 0.5 * before.appearance_r.item()
    assert after.appearance_g.item() < 0.5 * before.appearance_g.item()
    assert after.kl_r.item() < before.kl_r.item()


def test_objectives_share_the_parameters_out():
    network = PICNet(size=32, width=NARROW)
    first, second = network.objectives()
    assert (first.name, second.name, first.betas) == ("generator", "discriminator", (0.0, 0.999))
    parts = [{id(p) for p in objective.parameters(network)} for objective in (first, second)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {id(p) for p in network.parameters()}


def test_same_seed_same_bits():
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        network = PICNet(size=32, width=NARROW)
        image, mask = _batch(32)
        config = TrainConfig(steps=2, batch_size=2, lr=1e-3)
        train(network, None, (image, mask), config, objectives=network.objectives(), progress=False)
        outputs.append(network.eval()(image, mask, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 16}, "size: expected at least 32 pixels each way, got 16x16"),
        ({"size": 132}, "size: 5 halvings need multiples of 32, got 132x132"),
        ({"width": -1.0}, "width: expected a number above 0, got -1.0"),
        ({"image_range": (0,)}, r"image_range: expected \(low, high\) with low < high"),
    ],
)
def test_refuses_bad_arguments(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PICNet(**kwargs)


@pytest.mark.parametrize(
    ("image", "mask", "samples", "message"),
    [
        (torch.rand(3, 32, 32), torch.zeros(1, 1, 32, 32), 1, r"image: expected shape \(N, 3, H, W\)"),
        (
            torch.rand(1, 3, 32, 36),
            torch.zeros(1, 1, 32, 36),
            1,
            "image: expected sides that are multiples of 8",
        ),
        (torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32), 1, r"mask: expected shape \(1, 1, 32, 32\)"),
        (torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32), 0, "samples: expected at least 1, got 0"),
        (torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32), 2.0, "samples: expected an int, got 2.0"),
    ],
)
def test_refuses_bad_input(image, mask, samples, message):
    network = PICNet(size=32, width=NARROW)
    with pytest.raises((TypeError, ValueError), match=message):
        network(image, mask, samples=samples)
