"""PEN-Net: attention transfer against loops, where holes are filled from, and what it is trained by."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lmser.baselines import PENNet
from lmser.baselines.adversarial import hinge_discriminator_loss, hinge_generator_loss
from lmser.baselines.attention_transfer import AttentionTransfer, attention_transfer, missing_above
from lmser.baselines.completion import masked_l1
from lmser.training import TrainConfig, train


def _hole(*shape: int, side: int, at: int = 0) -> torch.Tensor:
    """A mask ``(N, 1, H, W)`` with a square hole whose corner is at (`at`, `at`)."""
    mask = torch.zeros(shape[0], 1, *shape[1:], dtype=torch.bool)
    mask[:, :, at : at + side, at : at + side] = True
    return mask


def _batch(size: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 3, size, size), torch.rand(count, 1, size, size) < 0.3


def _transfer_by_loops(high, low, missing, patch, scale):
    """The equations of `attention_transfer`, one position after the other, for one image without batch."""
    _, height, width = high.shape
    reach = patch // 2
    padded = F.pad(high, (reach,) * 4)
    patches = {
        (y, x): padded[:, y : y + patch, x : x + patch].flatten() for y in range(height) for x in range(width)
    }

    def window(y, x):
        rows = range(2 * y - reach, 2 * y - reach + patch + 1)
        columns = range(2 * x - reach, 2 * x - reach + patch + 1)
        return [(r, c) for r in rows for c in columns]

    def inside(r, c):
        return 0 <= r < 2 * height and 0 <= c < 2 * width

    def is_source(y, x):
        behind = [
            (2 * v + r, 2 * u + c)
            for v in range(y - reach, y + reach + 1)
            for u in range(x - reach, x + reach + 1)
            for r in (0, 1)
            for c in (0, 1)
        ]
        return not any(missing[0, r, c] for r, c in behind if inside(r, c))

    sources = [place for place in patches if is_source(*place)]
    out = low.clone()
    if not sources:
        return out
    value = {place: torch.zeros(len(low), dtype=low.dtype) for place in _places(missing)}
    weight = dict.fromkeys(value, 0.0)
    for y, x in patches:
        target = patches[y, x]
        cosines = [F.cosine_similarity(target, patches[source], dim=0) for source in sources]
        shares = torch.softmax(scale * torch.stack(cosines), 0)
        for share, source in zip(shares, sources, strict=True):
            for place, origin in zip(window(y, x), window(*source), strict=True):
                if place in value and inside(*origin):
                    value[place] = value[place] + share * low[:, origin[0], origin[1]]
                    weight[place] = weight[place] + share
    for r, c in value:
        out[:, r, c] = value[r, c] / weight[r, c]
    return out


def _places(missing):
    return [(int(r), int(c)) for _, r, c in missing.nonzero()]


@pytest.mark.parametrize("patch", [1, 3])
def test_attention_transfer_is_the_equations(patch):
    high = torch.randn(4, 3, 5, 4, dtype=torch.float64)
    low = torch.randn(4, 2, 10, 8, dtype=torch.float64)
    missing = torch.zeros(4, 1, 10, 8, dtype=torch.bool)
    missing[0, :, 4:7, 3:5] = True
    missing[1, :, 0, 0] = missing[1, :, 9, 7] = True
    missing[2] = True  # nothing to fill from; image 3 has nothing to fill
    filled = attention_transfer(high, low, missing, patch=patch, softmax_scale=3.0)
    for index in range(4):
        expected = _transfer_by_loops(high[index], low[index], missing[index], patch, 3.0)
        torch.testing.assert_close(filled[index], expected)
    assert (filled[:2] - low[:2]).abs().max() > 0.1
    assert torch.equal(filled[2:], low[2:])


def test_holes_are_filled_from_outside_only():
    high = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    low = torch.randn(1, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    missing = _hole(1, 12, 12, side=4, at=5)
    filled = attention_transfer(high, low, missing)
    assert torch.equal(filled.masked_select(~missing), low.masked_select(~missing))
    (reached,) = torch.autograd.grad(filled.masked_select(missing).square().sum(), low)
    assert float(reached.masked_select(missing).abs().max()) == 0
    assert float(reached.masked_select(~missing).abs().max()) > 0
    flat = torch.where(missing, 7.0, torch.full_like(low, 0.25))
    torch.testing.assert_close(attention_transfer(high, flat, missing), torch.full_like(low, 0.25))


def test_a_sharp_softmax_copies_the_most_similar_place():
    """The map repeats with period 4, so what is lost is found again one period away."""
    high = torch.randn(1, 3, 4, 4).repeat(1, 1, 2, 3)
    low = torch.randn(1, 2, 8, 8).repeat(1, 1, 2, 3)
    missing = torch.zeros(1, 1, 16, 24, dtype=torch.bool)
    missing[:, :, 7:9, 11:13] = True
    spoiled = low.masked_fill(missing, 100)
    filled = attention_transfer(high, spoiled, missing, softmax_scale=1000.0)
    torch.testing.assert_close(filled, low)


def test_positions_above_are_missing_where_any_below_is():
    missing = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    missing[0, 0, 3, 0] = missing[0, 0, 0, 5] = True
    assert missing_above(missing).tolist() == [[[[False, False, True], [True, False, False]]]]


def test_refinement_is_four_dilated_convolutions():
    layer = AttentionTransfer(8).double()
    high, low = torch.randn(1, 5, 4, 4).double(), torch.randn(1, 8, 8, 8).double()
    missing = _hole(1, 8, 8, side=2, at=3)
    filled = attention_transfer(high, low, missing)
    parts = [
        F.relu(F.conv2d(filled, group.weight, group.bias, padding=dilation, dilation=dilation))
        for group, dilation in zip(layer.groups, (1, 2, 4, 8), strict=True)
    ]
    assert [len(group.weight) for group in layer.groups] == [2, 2, 2, 2]
    torch.testing.assert_close(layer(high, low, missing), torch.cat(parts, 1))


@pytest.mark.parametrize(("size", "depth"), [(16, 2), (64, 4), ((32, 48), 3), (128, 5), (256, 6)], ids=str)
def test_shapes(size, depth):
    network = PENNet(size=size, width=0.125)
    height, width = network.size
    image, mask = torch.rand(1, 3, height, width), torch.rand(1, 1, height, width) < 0.3
    assert network.depth == depth
    with torch.no_grad():
        pyramid = network.pyramid(image, mask)
        assert [tuple(x.shape) for x in pyramid] == [
            (1, 3, height >> level, width >> level) for level in range(depth)
        ]
        assert torch.equal(network(image, mask), pyramid[0])
        assert network.discriminator(image).shape == (1, 1, math.ceil(height / 8), math.ceil(width / 8))


def test_published_channels():
    network = PENNet()
    assert [len(layer.weight) for layer in network.generator.encoder] == [32, 64, 128, 256, 512, 512]
    assert [len(layer.weight) for layer in network.generator.decoder] == [32, 64, 128, 256, 512]
    assert [len(layer.bias) for layer in network.generator.transfers[0].groups] == [8] * 4
    assert [len(layer.weight) for layer in network.discriminator.layers] == [64, 128, 256, 512]


def test_what_stands_in_holes_has_no_influence():
    network = PENNet(size=32, width=0.125)
    image, mask = _batch(32)
    expected = network(image, mask)
    assert torch.equal(network(image.masked_fill(mask, torch.nan), mask), expected)
    assert torch.equal(network(image, mask.float()), expected)
    assert not torch.equal(network(image.masked_fill(~mask, 0), mask), expected)


def test_image_range_changes_nothing_else():
    network = PENNet(size=16, width=0.125, image_range=(-1, 1)).double()
    image, mask = _batch(16)
    other = PENNet(size=16, width=0.125, image_range=(0, 255)).double()
    other.load_state_dict(network.state_dict())
    signed = 2 * image.double() - 1
    expected = network(signed, mask)
    torch.testing.assert_close(other(255 * image.double(), mask), 127.5 * (expected + 1))
    torch.testing.assert_close(network.terms(signed, mask), other.terms(255 * image.double(), mask))


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 3 / 3))
    assert hinge_generator_loss(fake).item() == pytest.approx(2 / 3)


def test_masked_l1():
    x, target = torch.zeros(1, 2, 1, 3), torch.tensor([[[[1.0, -2, 4]], [[3, 5, 7]]]])
    where = torch.tensor([[[[True, False, True]]]])
    assert masked_l1(x, target, where).item() == (1 + 4 + 3 + 7) / 4
    assert masked_l1(x, target, torch.zeros_like(where)).item() == 0


def test_losses_by_hand():
    network = PENNet(size=16, width=0.125, image_range=(-1, 1)).double().eval()
    image, mask = 2 * torch.rand(2, 3, 16, 16).double() - 1, _hole(2, 16, 16, side=6, at=4)
    full, half = network.pyramid(image, mask)
    error = (full - image).abs()
    hole = (error * mask).sum() / (2 * 3 * 36)
    visible = (error * ~mask).sum() / (2 * 3 * (256 - 36))
    coarse = image.reshape(2, 3, 8, 2, 8, 2).mean((3, 5))
    completed = full * mask + image * ~mask
    score = network.discriminator(completed)
    terms = network.terms(image, mask)
    torch.testing.assert_close(terms.hole, hole)
    torch.testing.assert_close(terms.visible, visible)
    torch.testing.assert_close(terms.pyramid, (half - coarse).abs().mean())
    torch.testing.assert_close(terms.adversarial, -score.mean())
    loss = 6 * hole + visible + 0.5 * (half - coarse).abs().mean() - 0.1 * score.mean()
    torch.testing.assert_close(network.generator_loss(image, mask), loss)
    real = network.discriminator(image)
    expected = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + score).mean())
    shared: dict[str, torch.Tensor] = {}
    network.generator_loss(image, mask, shared=shared)
    assert not shared["completed"].requires_grad
    torch.testing.assert_close(network.discriminator_loss(image, mask, shared=shared), expected)
    torch.testing.assert_close(network.discriminator_loss(image, mask), expected)


def test_discriminator_is_spectrally_normalised():
    network = PENNet(size=16, width=0.125)
    image, mask = _batch(16)
    for _ in range(50):  # a power iteration each
        network.discriminator_loss(image, mask)
    for layer in network.discriminator.layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def _train(network, batch, steps, lr):
    config = TrainConfig(steps=steps, batch_size=len(batch[0]), lr=lr)
    return train(network, None, batch, config, objectives=network.objectives(), progress=False)


def test_objectives_share_the_parameters_out():
    network = PENNet(size=32, width=0.125)
    first, second = network.objectives()
    assert (first.name, second.name) == ("generator", "discriminator")
    parts = [{id(p) for p in objective.parameters(network)} for objective in (first, second)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {id(p) for p in network.parameters()}


def test_every_parameter_is_used():
    network = PENNet(size=32, width=0.125)
    image, mask = torch.rand(2, 3, 32, 32), _hole(2, 32, 32, side=6, at=3)
    shared: dict[str, torch.Tensor] = {}
    network.generator_loss(image, mask, shared=shared).backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in network.generator.parameters())
    network.zero_grad()
    network.discriminator_loss(image, mask, shared=shared).backward()
    assert all(p.grad is None for p in network.generator.parameters())
    # Constant scores: the bias's gradients for real and completed images cancel, as the hinge is not reached.
    reached = {name for name, p in network.discriminator.named_parameters() if float(p.grad.abs().max()) > 0}
    assert reached >= {name for name, _ in network.discriminator.named_parameters() if name != "score.bias"}


def test_learns_one_image():
    network = PENNet(size=32, width=0.25)
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    image, mask = torch.stack((y, x, 0.5 * (x + y)))[None], _hole(1, 32, 32, side=8, at=12)
    before = network.terms(image, mask)
    scores = network.discriminator_loss(image, mask).item()
    _train(network, (image, mask), 40, 3e-3)
    after = network.terms(image, mask)
    assert after.visible.item() < 0.5 * before.visible.item()
    assert after.hole.item() < 0.5 * before.hole.item()
    assert after.pyramid.item() < 0.5 * before.pyramid.item()
    assert network.discriminator_loss(image, mask).item() < scores


def test_same_seed_same_bits():
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        network = PENNet(size=16, width=0.125)
        batch = _batch(16)
        _train(network, batch, 2, 1e-3)
        outputs.append(network(*batch))
    assert torch.equal(*outputs)
    restored = PENNet(size=16, width=0.125)
    restored.load_state_dict(network.state_dict())
    assert torch.equal(restored.eval().discriminator(batch[0]), network.eval().discriminator(batch[0]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 8}, "size: expected at least 16 pixels each way, got 8x8"),
        ({"size": (64, 72)}, "size: 4 halvings need multiples of 16, got 64x72"),
        ({"size": 64.0}, "size: expected an int or a pair of ints"),
        ({"width": 0}, "width: expected a number above 0, got 0"),
        ({"width": "1"}, "width: expected a number above 0, got '1'"),
        ({"image_range": (1, 0)}, r"image_range: expected \(low, high\) with low < high"),
    ],
)
def test_refuses_bad_arguments(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PENNet(**kwargs)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (torch.rand(1, 1, 16, 16), torch.zeros(1, 1, 16, 16), r"image: expected shape \(N, 3, H, W\)"),
        (torch.rand(0, 3, 16, 16), torch.zeros(0, 1, 16, 16), r"image: expected shape \(N, 3, H, W\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 1, 16, 16), "image: expected floating"),
        (
            torch.rand(1, 3, 16, 18),
            torch.zeros(1, 1, 16, 18),
            "image: expected sides that are multiples of 4",
        ),
        (torch.rand(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), r"mask: expected shape \(1, 1, 16, 16\)"),
        (torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16).int(), "mask: expected bool or floating point"),
        (
            torch.rand(1, 3, 16, 16),
            torch.full((1, 1, 16, 16), 0.5),
            "mask: expected 1 where a pixel is missing",
        ),
    ],
)
def test_refuses_bad_input(image, mask, message):
    network = PENNet(size=16, width=0.125)
    with pytest.raises((TypeError, ValueError), match=message):
        network(image, mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 2}, "patch: expected an odd number, got 2"),
        ({"low": torch.rand(1, 4, 6, 8)}, r"low: expected shape \(1, C', 8, 8\), got \(1, 4, 6, 8\)"),
        ({"missing": torch.zeros(1, 1, 8, 8)}, "missing: expected a bool tensor"),
    ],
)
def test_attention_transfer_refuses_bad_input(change, message):
    arguments = {
        "high": torch.rand(1, 3, 4, 4),
        "low": torch.rand(1, 4, 8, 8),
        "missing": torch.zeros(1, 1, 8, 8, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=message):
        attention_transfer(**(arguments | change))


def test_channels_come_in_quarters():
    with pytest.raises(ValueError, match="channels: expected a multiple of 4, got 6"):
        AttentionTransfer(6)
