"""Convolutions of bfloat16 in the processor's matrix tiles, and in the loops that stand for them elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from tied_conv_cases import FUSED, check_against_oracle, layer, on_threads

from lmser import CLmser, Lmser
from lmser_kernels import (
    _library,
    conv2d_add_act,
    conv_transpose2d_add_act,
    explain,
    reflect,
    tied_conv2d,
)

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True, params=["emulated", "amx"])
def tiles(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        before = _library.module.choose_bfloat16_tiles(request.param)
    except ValueError:
        pytest.skip("this processor has no such tiles")
    if _library.module.cpu_info()["isa"] != "avx512":
        _library.module.choose_bfloat16_tiles(before)
        pytest.skip("tiles belong to the instruction set avx512")
    yield request.param
    _library.module.choose_bfloat16_tiles(before)


# N, C_in, C_out, (H, W), kernel, stride, padding
SHAPES = {
    "image": (3, 3, 16, (13, 11), 3, 2, 1),
    "whole registers under a row": (2, 32, 40, (9, 35), 3, 1, 1),
    "rows in parts of registers": (2, 17, 33, (11, 6), (5, 3), (2, 1), (2, 0)),
    "nothing of the padding": (2, 64, 65, (7, 9), 3, 1, 0),
    "product": (2, 33, 64, (5, 7), 1, 1, 0),
    "one pixel": (37, 70, 30, (1, 1), 1, 1, 0),
    "few channels": (2, 5, 2, (20, 9), 3, 1, 1),
    "stride beyond the kernel": (2, 20, 24, (9, 8), 2, 3, 1),
    "deep": (2, 130, 90, (6, 6), 3, 2, 1),
    "large kernel": (1, 9, 8, (14, 13), (13, 12), 1, 6),
    "rows alone": (2, 18, 20, (17, 5), (3, 1), (2, 1), (1, 0)),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, down, layout):
    operation = conv_transpose2d_add_act if down else conv2d_add_act
    case = layer(down, SHAPES[shape], layout, torch.bfloat16)
    assert "tiles" in explain(operation, case.source, case.weight, **geometry_of(case)).kernel
    check_against_oracle(case, operation, FUSED, threads=2)


# N, C_in, C_out, (H, W), kernel, stride, padding, how x lies: the last pixel of a row and the first of the next, or of
# the next image, are nearer or farther than neighbours of a row.
UNEVEN = {
    "stride beyond the kernel": (32, 32, 8, (6, 5), (2, 1), (1, 2), 0, "dense"),
    "and padding": (32, 28, 8, (8, 6), (2, 1), (1, 2), (1, 0), "dense"),
    "wide stride": (32, 64, 8, (10, 7), (1, 2), (1, 4), 0, "dense"),
    "part of an image": (32, 32, 8, (10, 10), (1, 1), (1, 4), 0, "cut"),
    "one image as many": (16, 20, 8, (6, 5), (1, 1), (3, 1), 0, "images"),
    "one row as many": (32, 28, 8, (3, 5), (1, 3), (1, 1), 0, "rows"),
    "turned": (64, 28, 8, (10, 10), (2, 2), (1, 4), (1, 1), "turned"),
}


@pytest.mark.parametrize("shape", UNEVEN)
def test_pixels_that_are_not_evenly_apart(shape):
    batch, below, above, (height, width), kernel, stride, padding, lies = UNEVEN[shape]
    x = torch.randn(batch, below, height, width).bfloat16().contiguous(memory_format=torch.channels_last)
    if lies == "cut":
        x = torch.nn.functional.pad(x, (1, 2, 1, 3)).contiguous(memory_format=torch.channels_last)
        x = x[:, :, 1 : 1 + height, 1 : 1 + width]
    elif lies == "images":
        x = x[:1].expand(batch, -1, -1, -1)
    elif lies == "rows":
        x = x[:, :, :1].expand(-1, -1, height, -1)
    elif lies == "turned":
        x = x.transpose(2, 3)
    weight = (torch.randn(above, below, *kernel) / 8).bfloat16()
    with on_threads(1):
        found = conv2d_add_act(x, weight, stride=stride, padding=padding)
    wanted = torch.nn.functional.conv2d(x.double(), weight.double(), None, stride, padding)
    assert (found.double() - wanted).abs().max() <= 2**-8 * wanted.abs().max() + 1e-3


def geometry_of(case):
    return {k: v for k, v in case.keywords.items() if k in ("stride", "padding", "output_size")}


def test_sums_are_of_float32():
    # Each product is below half a step of the sum.
    x, weight = (
        torch.ones(1, 4096, 1, 1, dtype=torch.bfloat16),
        torch.full((1, 4096, 1, 1), 2**-12).bfloat16(),
    )
    weight[0, 0] = 1
    assert conv2d_add_act(x, weight).item() == torch.tensor(1 + 4095 * 2**-12).bfloat16().item()


def test_what_is_read_pooled_is_not_rounded(tiles):
    x, weight = torch.randn(2, 8, 12, 12).bfloat16(), torch.randn(16, 8, 3, 3).bfloat16()
    found = conv2d_add_act(x, weight, padding=1, pool=2)
    _library.module.choose_bfloat16_tiles("none")
    wanted = conv2d_add_act(x, weight, padding=1, pool=2)
    _library.module.choose_bfloat16_tiles(tiles)
    assert torch.equal(found, wanted)
    pooled = explain("conv2d_add_act", x, weight, padding=1, pool=2)
    assert "tiles" not in pooled.kernel
    if tiles == "amx":
        assert pooled.peak_gflops < explain("conv2d_add_act", x, weight, padding=1).peak_gflops / 2


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_is_not_finite_reaches_the_pixels_it_should(value, down):
    x, weight = torch.randn(2, 20, 9, 9).bfloat16(), (torch.rand(36, 20, 3, 3) + 0.5).bfloat16()
    if down:
        x = torch.randn(2, 36, 9, 9).bfloat16()
    x[1, 7, 4, 4] = value
    if down:
        found = conv_transpose2d_add_act(x, weight, padding=1, output_size=9)
        wanted = torch.nn.functional.conv_transpose2d(x.float(), weight.float(), padding=1)
    else:
        found = conv2d_add_act(x, weight, padding=1)
        wanted = torch.nn.functional.conv2d(x.float(), weight.float(), padding=1)
    torch.testing.assert_close(found.float(), wanted.bfloat16().float(), rtol=2e-2, atol=2e-1, equal_nan=True)
    assert not found[0].isnan().any()


def test_both_directions_and_their_gradient_are_those_of_float64():
    x, z = torch.randn(3, 12, 10, 10).bfloat16(), torch.randn(3, 20, 5, 5).bfloat16()
    weight = (torch.randn(20, 12, 3, 3) / 10).bfloat16()

    def run(x, z, weight):
        inputs = [t.detach().requires_grad_() for t in (x, z, weight)]
        y, u = tied_conv2d(*inputs, stride=2, padding=1)
        grads = [torch.linspace(-1, 1, t.numel()).reshape(t.shape).to(t.dtype) for t in (y, u)]
        return [y, u, *torch.autograd.grad([y, u], inputs, grads)]

    for ours, exact in zip(run(x, z, weight), run(x.double(), z.double(), weight.double()), strict=True):
        assert (ours.double() - exact).norm() < 4e-3 * exact.norm()


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_the_same_from_run_to_run(threads):
    def run():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(20, 24, 11, 11, generator=generator).bfloat16().requires_grad_()
        weight = torch.randn(40, 24, 3, 3, generator=generator).bfloat16().requires_grad_()
        h = conv2d_add_act(x, weight, padding=1, stride=2, activation="tanh")
        return [h, *torch.autograd.grad(h, (x, weight), torch.ones_like(h))]

    with on_threads(threads):
        first = run()
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_a_weight_that_changes_is_packed_again():
    x, weight = torch.randn(4, 64, 6, 6).bfloat16(), torch.randn(64, 64, 3, 3).bfloat16()
    first = conv2d_add_act(x, weight, padding=1)
    assert torch.equal(conv2d_add_act(x, weight, padding=1), first)
    weight.neg_()
    assert torch.equal(conv2d_add_act(x, weight, padding=1), -first)


def test_nothing_of_an_empty_batch():
    x = torch.randn(0, 20, 6, 6).bfloat16().requires_grad_()
    weight = torch.randn(24, 20, 3, 3).bfloat16().requires_grad_()
    h = conv2d_add_act(x, weight, padding=1)
    of_x, of_weight = torch.autograd.grad(h.sum(), (x, weight))
    assert h.shape == (0, 24, 6, 6)
    assert of_x.shape == x.shape
    assert torch.equal(of_weight, torch.zeros_like(weight))


def test_tiles_that_do_not_exist(tiles):
    with pytest.raises(ValueError, match="tiles are 'large'; expected 'none', 'emulated' or 'amx'"):
        _library.module.choose_bfloat16_tiles("large")
    assert _library.module.cpu_info()["bfloat16_tiles"] == tiles


# Whole networks


def small_network(kind: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "dense":
        return Lmser((30, 20, 10)), torch.rand(50, 30) * 2 - 1
    untied = kind == "decoder weights of its own"
    return CLmser(3, (8, 16, 20), (1, 2, 2), reflections=2, dcw=not untied), torch.rand(13, 3, 10, 11) * 2 - 1


@pytest.mark.parametrize("kind", ["convolutions", "decoder weights of its own", "dense"])
def test_a_network_is_one_operation(kind):
    model, x = small_network(kind)

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        copy = deepcopy(model).to(dtype)
        loss = copy.loss(x.to(dtype))
        loss.backward()
        found = copy(x.to(dtype))
        return [loss.detach(), found.reconstruction.detach(), *(p.grad for p in copy.parameters())]

    exact, ours = run(torch.float64), run(torch.bfloat16)
    _library.module.choose_bfloat16_tiles("none")
    by_layers = run(torch.bfloat16)
    assert [t.dtype for t in ours] == [t.dtype for t in by_layers]
    assert ours[0].dtype == torch.float32
    for a, b, c in zip(ours, by_layers, exact, strict=True):
        allowed = 1.5 * (b.double() - c).norm() + 4e-3 * c.norm()
        assert (a.double() - c).norm() <= allowed


def test_the_gradients_of_passes_are_those_of_layers():
    model, x = small_network("convolutions")
    model, x = model.bfloat16(), x.bfloat16().requires_grad_()
    weights = [p for name, p in model.named_parameters() if "weight" in name]
    biases = [torch.zeros(c).bfloat16().requires_grad_() for c in (3, 8, 16, 20)]

    def run(impl: str) -> list[torch.Tensor]:
        found = reflect(x, weights, biases, stride=[1, 2, 2], activation="tanh", impl=impl)
        total = found.reconstruction.float().square().sum() + found.code.float().sum()
        return [*found, *torch.autograd.grad(total, [x, *weights, *biases])]

    for ours, wanted in zip(run("native"), run("reference"), strict=True):
        assert (ours.float() - wanted.float()).norm() <= 3e-2 * wanted.float().norm() + 1e-3


def test_a_network_is_explained():
    x, weight = torch.randn(2, 3, 6, 6).bfloat16(), torch.randn(8, 3, 3, 3).bfloat16()
    found = explain(reflect, x, [weight], [torch.zeros(c).bfloat16() for c in (3, 8)])
    assert found.kernel.startswith("one operation for all passes: implicit product in tiles of bfloat16")


def test_a_compiled_network_goes_by_layers():
    model, x = small_network("convolutions")
    model, x = model.bfloat16(), x.bfloat16()
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model.loss(x), rtol=1e-2, atol=0)


def test_without_tiles_there_is_no_operation_of_a_whole_network():
    _library.module.choose_bfloat16_tiles("none")
    x, weight = torch.randn(2, 3, 6, 6).bfloat16(), torch.randn(8, 3, 3, 3).bfloat16()
    biases = [torch.zeros(3).bfloat16(), torch.zeros(8).bfloat16()]
    with pytest.raises(
        RuntimeError, match="float64 or, where the processor multiplies it in tiles, bfloat16"
    ):
        torch.ops.lmser.reflect(
            x, [weight], [], biases, None, [1, 1], [1, 1], [0, 0], True, 1, "relu", 0.0, False
        )
