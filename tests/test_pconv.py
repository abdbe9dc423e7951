"""PConv: the partial convolution against a loop over windows, its network, and its loss against numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lmser.baselines import InpaintingLoss, PConvUNet
from lmser.baselines.inpainting_loss import composite
from lmser.baselines.pconv import PartialConv2d
from lmser.features import VGG16Features


def by_loop(layer, x, valid):
    """Liu et al. Eqs. (1) and (2), window by window; outside the image everything is missing."""
    k, stride, pad = layer.weight.shape[2], layer.stride, layer.padding
    x, full = F.pad(x, [pad] * 4), F.pad(valid.repeat_interleave(torch.tensor(layer.sources), 1), [pad] * 4)
    height, width = (x.shape[2] - k) // stride + 1, (x.shape[3] - k) // stride + 1
    out = torch.zeros(len(x), len(layer.weight), height, width, dtype=x.dtype)
    mask = torch.zeros(len(x), 1, height, width, dtype=torch.bool)
    for n in range(len(x)):
        for i in range(height):
            for j in range(width):
                window = (
                    n,
                    slice(None),
                    slice(i * stride, i * stride + k),
                    slice(j * stride, j * stride + k),
                )
                m = full[window]
                if m.any():
                    drive = (layer.weight * torch.where(m, x[window], 0)).sum((1, 2, 3))
                    out[n, :, i, j] = drive * m.numel() / m.sum()
                    if layer.bias is not None:
                        out[n, :, i, j] += layer.bias
                    mask[n, 0, i, j] = True
    return out, mask


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sources", [(3,), (2, 3)])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("missing", [0.0, 0.5, 0.9, 1.0])
def test_against_a_loop(sources, kernel_size, stride, missing, bias):
    layer = PartialConv2d(sources, 4, kernel_size, stride, bias=bias, dtype=torch.float64)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, sum(sources), 7, 6, dtype=torch.float64)
    valid = torch.rand(2, len(sources), 7, 6) >= missing
    out, mask = layer(x, valid)
    expected, expected_mask = by_loop(layer, x, valid)
    torch.testing.assert_close(out, expected)
    assert torch.equal(mask, expected_mask)


def test_without_holes_it_is_a_convolution_inside_and_renormalised_at_the_border():
    layer = PartialConv2d((3,), 4, 3, dtype=torch.float64)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    out, mask = layer(x, torch.ones(1, 1, 6, 6, dtype=torch.bool))
    plain = F.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(out[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1])
    torch.testing.assert_close(out[..., 0, 1:-1], plain[..., 0, 1:-1] * 9 / 6)
    torch.testing.assert_close(out[..., 0, 0], plain[..., 0, 0] * 9 / 4)
    assert mask.all()


def test_a_hole_closes_from_its_rim():
    layer = PartialConv2d((1,), 1, 3)
    valid = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    valid[0, 0, 4, 4] = True
    for radius in (1, 2, 3, 4):
        _, valid = layer(torch.zeros(1, 1, 9, 9), valid)
        expected = torch.zeros(9, 9, dtype=torch.bool)
        expected[4 - radius : 5 + radius, 4 - radius : 5 + radius] = True
        assert torch.equal(valid[0, 0], expected)


def test_gradient_flows_from_valid_values_only():
    layer = PartialConv2d((1, 2), 3, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 2, 5, 5) > 0.4
    layer(x, valid)[0].square().sum().backward()
    reached = valid.repeat_interleave(torch.tensor([1, 2]), 1)
    assert torch.equal(x.grad != 0, reached)
    assert torch.autograd.gradcheck(lambda x, w: with_weight(layer, x, valid, w), (x, layer.weight))


def with_weight(layer, x, valid, weight):
    return torch.func.functional_call(layer, {"weight": weight}, (x, valid))[0]


def test_half_precision_counts_exactly():
    layer = PartialConv2d((512, 512), 1, 3, bias=False, dtype=torch.bfloat16)
    torch.nn.init.constant_(layer.weight, 1 / 9216)
    valid = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    valid[0, 1, 1, 1] = False
    out, _ = layer(torch.ones(1, 1024, 3, 3, dtype=torch.bfloat16), valid)
    assert out[0, 0, 1, 1].item() == pytest.approx(1, rel=1e-2)
    assert layer._valid_share(valid)[0, 0, 1, 1].item() == pytest.approx((9216 - 512) / 9216, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()._valid_share(valid).dtype is torch.float32


# ---------------------------------------------------------------------------------------------- the network


def small(**kwargs):
    return PConvUNet(**{"depth": 3, "width": 0.05, **kwargs})


def holes(*shape, missing=0.3):
    return torch.rand(shape) < missing


@pytest.mark.parametrize(("channels", "size"), [(3, (8, 8)), (1, (9, 13)), (3, (5, 7))])
def test_sizes_whatever_the_parity(channels, size):
    image = torch.rand(2, channels, *size)
    assert small(channels=channels)(image, holes(2, 1, *size)).shape == image.shape


def test_the_papers_layers():
    """Liu et al.'s table for 512x512: channels, kernels, what has a normalisation and what an activation."""
    with torch.device("meta"):
        network = PConvUNet(depth=8)
    encoder = [(layer.conv.weight.shape[0], layer.conv.weight.shape[2]) for layer in network.encoder]
    assert encoder == [(64, 7), (128, 5), (256, 3), *[(512, 3)] * 5]
    decoder = [(layer.conv.sources, layer.conv.weight.shape[0]) for layer in reversed(network.decoder)]
    assert decoder == [
        *[((512, 512), 512)] * 4,
        ((512, 256), 256),
        ((256, 128), 128),
        ((128, 64), 64),
        ((64, 3), 3),
    ]
    assert [layer.norm is None for layer in network.encoder] == [True] + [False] * 7
    assert [layer.norm is None for layer in reversed(network.decoder)] == [False] * 7 + [True]
    assert {layer.leak for layer in network.encoder} == {0}
    assert [layer.leak for layer in reversed(network.decoder)] == [0.2] * 7 + [1]
    assert {layer.conv.stride for layer in network.encoder} == {2}
    assert {layer.conv.stride for layer in network.decoder} == {1}


def test_equation():
    network = small(channels=1, depth=2, width=0.05).double().eval()
    image, mask = torch.rand(2, 1, 6, 5, dtype=torch.float64), holes(2, 1, 6, 5, missing=0.7)
    (up1, up2), (down0, down1) = network.encoder, network.decoder
    h1, m1 = by_loop(up1.conv, image, ~mask)
    h1 = F.relu(h1)
    h2, m2 = by_loop(up2.conv, h1, m1)
    h2 = F.relu(up2.norm(h2))
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])  # 2x2 to 3x3, the nearest below
    d1 = torch.cat((h2[:, :, rows][..., columns], h1), 1)
    d1, k1 = by_loop(down1.conv, d1, torch.cat((m2[:, :, rows][..., columns], m1), 1))
    d1 = F.leaky_relu(down1.norm(d1), 0.2)
    rows, columns = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 2])
    d0 = torch.cat((d1[:, :, rows][..., columns], image), 1)
    d0, _ = by_loop(down0.conv, d0, torch.cat((k1[:, :, rows][..., columns], ~mask), 1))
    torch.testing.assert_close(network(image, mask), d0)


def test_what_stands_in_a_hole_has_no_influence():
    network, mask = small(), holes(2, 1, 9, 9)
    image = torch.rand(2, 3, 9, 9)
    other = torch.where(mask, torch.full_like(image, math.nan), image)
    assert torch.equal(network(image, mask), network(other, mask))
    other.requires_grad_()
    InpaintingLoss(None)(network(other, mask), image, mask).backward()
    assert other.grad.isfinite().all()
    assert not (other.grad * mask).any()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_every_parameter_is_used():
    network, image, mask = small(width=0.1), torch.rand(4, 3, 12, 12), holes(4, 1, 12, 12)
    InpaintingLoss(None)(network(image, mask), image, mask).backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in network.parameters())


def test_frozen_encoder_norms():
    network = small(freeze_encoder_norms=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image, mask = torch.rand(4, 3, 12, 12), holes(4, 1, 12, 12)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network.eval()
    network.train()
    InpaintingLoss(None)(network(image, mask), image, mask).backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {name for name in before if name.startswith("encoder") and ".norm." in name}
    assert frozen
    assert changed == set(before) - frozen
    small().load_state_dict(network.state_dict())


def test_learns():
    network = small(width=0.25)
    image = F.interpolate(torch.rand(4, 3, 4, 4), 16, mode="bilinear")
    mask, loss = holes(4, 1, 16, 16), InpaintingLoss(None)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    before = loss(network(image, mask), image, mask).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(network(image, mask), image, mask).backward()
        optimizer.step()
    assert loss(network(image, mask), image, mask).item() < 0.2 * before


# ------------------------------------------------------------------------------------------------- the loss


def test_pixel_terms_by_hand():
    image = torch.zeros(1, 1, 2, 2)
    made = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).reshape(1, 1, 2, 2)
    mask = torch.tensor([[True, False], [False, True]]).reshape(1, 1, 2, 2)
    terms = InpaintingLoss(None).terms(made, image, mask)
    assert (terms.valid.item(), terms.hole.item()) == ((2 + 4) / 4, (1 + 8) / 4)
    assert torch.equal(composite(image, made, mask)[0, 0], torch.tensor([[1.0, 0.0], [0.0, 8.0]]))
    # comp is [[1, 0], [0, 8]], and every pixel is within one of the hole
    assert terms.tv.item() == (1 + 8 + 1 + 8) / 4
    assert (terms.perceptual, terms.style_out, terms.style_comp) == (0, 0, 0)
    total = InpaintingLoss(None)(made, image, mask).item()
    assert total == pytest.approx(6 / 4 + 6 * 9 / 4 + 0.1 * 18 / 4)


def test_total_variation_stays_within_a_pixel_of_the_hole():
    image = torch.arange(6.0).square().expand(1, 1, 1, 6).contiguous()  # differences 1 3 5 7 9
    mask = torch.tensor([False, True, False, False, False, False]).reshape(1, 1, 1, 6)
    terms = InpaintingLoss(None).terms(image, image, mask)
    assert terms.tv.item() == pytest.approx((1 + 3) / 6)  # between pixels 0, 1 and 2
    nothing = InpaintingLoss(None).terms(image, image, torch.zeros_like(mask))
    assert nothing.tv.item() == 0


def test_feature_terms_are_the_papers_sums():
    network = VGG16Features().double()
    image, made = torch.rand(2, 2, 3, 9, 8, dtype=torch.float64)
    mask = holes(2, 1, 9, 8)
    whole = torch.where(mask, made, image)
    perceptual = style_out = style_comp = 0.0
    for real, fake, mixed in zip(network(image), network(made), network(whole), strict=True):
        n, c, h, w = real.shape
        perceptual += ((fake - real).abs().sum() + (mixed - real).abs().sum()) / (n * c * h * w)
        for sample in range(n):

            def gram(x, sample=sample, c=c, h=h, w=w):
                columns = x[sample].reshape(c, h * w)
                return torch.einsum("ik,jk->ij", columns, columns) / (c * h * w)

            style_out += (gram(fake) - gram(real)).abs().sum() / (c * c) / n
            style_comp += (gram(mixed) - gram(real)).abs().sum() / (c * c) / n
    loss = InpaintingLoss(network)
    terms = loss.terms(made, image, mask)
    torch.testing.assert_close(terms.perceptual, perceptual)
    torch.testing.assert_close(terms.style_out, style_out)
    torch.testing.assert_close(terms.style_comp, style_comp)
    torch.testing.assert_close(
        loss(made, image, mask),
        terms.valid + 6 * terms.hole + 0.05 * perceptual + 120 * (style_out + style_comp) + 0.1 * terms.tv,
    )
    assert loss(image, image, mask) == pytest.approx(0.1 * loss.terms(image, image, mask).tv.item())
    made.requires_grad_()
    loss(made, image, mask).backward()
    assert made.grad.abs().min() > 0


def test_grey_images_and_the_name():
    loss = InpaintingLoss(VGG16Features(seed=3))
    image, made, mask = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), holes(2, 1, 8, 8)
    in_colour = loss(made.expand(-1, 3, -1, -1), image.expand(-1, 3, -1, -1), mask)
    torch.testing.assert_close(loss(made, image, mask), in_colour)
    assert loss.name == "the loss of Liu et al. with VGG-16, random weights (seed 3)"
    assert InpaintingLoss(None).name == "L_valid + 6 L_hole + 0.1 L_tv, no perceptual and style terms"


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PartialConv2d((), 3, 3), "sources: expected at least one"),
        (lambda: PartialConv2d((3, 0), 3, 3), "sources: expected at least 1, got 0"),
        (lambda: PartialConv2d((3,), 3, 4), "kernel_size: expected an odd number, got 4"),
        (lambda: PConvUNet(0), "channels: expected at least 1"),
        (lambda: PConvUNet(depth=1), "depth: expected at least 2, got 1"),
        (lambda: PConvUNet(width=0), "width: expected a number above 0, got 0"),
        (lambda: PConvUNet(width="1"), "width: expected a number above 0, got '1'"),
    ],
)
def test_refuses_bad_arguments(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_refuses_bad_input():
    network, image, mask = small(), torch.rand(2, 3, 8, 8), holes(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"image: expected shape \(N, 3, H, W\), got \(2, 1, 8, 8\)"):
        network(image[:, :1], mask)
    with pytest.raises(ValueError, match="need at least 5 pixels each way, got 4x8"):
        network(image[:, :, :4], mask[:, :, :4])
    loss = InpaintingLoss(None)
    for call in (lambda mask: network(image, mask), lambda mask: loss(image, image, mask)):
        with pytest.raises(TypeError, match="mask: expected bool, True where a pixel is missing, got"):
            call(mask.float())
        with pytest.raises(ValueError, match=r"mask: expected shape \(2, 1, 8, 8\), got \(2, 3, 8, 8\)"):
            call(mask.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match=r"reconstruction: expected the image's shape"):
        loss(image[:1], image, mask)
    with pytest.raises(ValueError, match=r"image: expected shape \(N, 1 or 3, H, W\)"):
        loss(image[:, :2], image[:, :2], mask)
    layer = PartialConv2d((1, 2), 3, 3)
    with pytest.raises(ValueError, match=r"valid: expected a bool tensor \(2, 2, 8, 8\), got \(2, 1, 8, 8\)"):
        layer(image, mask)
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 3, H, W\)"):
        layer(image[:, :2], mask)
