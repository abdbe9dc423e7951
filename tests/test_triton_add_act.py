"""`add_act` in Triton: values, sums and layouts of the compiled CPU operator, for every way through memory."""

from __future__ import annotations

import pytest
import torch
from tied_conv_cases import DTYPES, LAYOUTS, ROUNDOFF, SMALLEST_STEP, laid_out, wide

from lmser_kernels import activation as activations
from lmser_kernels import reference

pytest.importorskip("triton")
from lmser_kernels.add_act import triton as launchers
from lmser_kernels.gpu import pull_back as passes
from lmser_kernels.gpu.extents import extents

pytestmark = pytest.mark.native

# (N, C, H, W): vectors fit, vectors do not fit, one channel, one pixel, more than one block, nothing.
SHAPES = ((2, 8, 4, 6), (2, 3, 5, 3), (3, 1, 2, 3), (5, 6, 1, 1), (3, 40, 13, 11), (0, 3, 2, 2), (2, 3, 0, 2))


def draw(shape, layout, dtype, seed=0):
    return laid_out(shape, layout, torch.Generator().manual_seed(seed), dtype).detach()


def close(got, want, dtype, scale=None):
    """Equal up to one rounding of the result and a few of float32 sums on the way."""
    scale = want.abs() if scale is None else scale
    # Triton's interpreter cuts bfloat16 off, where a GPU rounds.
    unit = ROUNDOFF[dtype] * (2 if dtype == torch.bfloat16 else 1)
    allowed = unit * want.abs() + 16 * max(ROUNDOFF[torch.float64], min(unit, 2.0**-24)) * (
        scale + want.abs()
    )
    error = (got.double() - want).abs()
    assert bool((error <= allowed + SMALLEST_STEP[dtype]).all()), (
        f"off by {(error - allowed).max().item():.3g}"
    )


def check(y, u, bias, activation="leaky_sigmoid", slope=0.2):
    h = launchers.add_act(y, u, bias, activation, slope)
    like = torch.ops.lmser.add_act(y, u, bias, activation, slope)
    assert (h.shape, h.stride(), h.dtype) == (like.shape, like.stride(), like.dtype)
    used = slope if activation in activations.DEFAULT_SLOPES else None
    want = reference.add_act(wide(y), wide(u), wide(bias), activation=activation, slope=used)
    size = sum(
        (t if t.dim() == 4 else t.view(1, -1, 1, 1)).abs() for t in map(wide, (y, u, bias)) if t is not None
    )
    close(h, want, y.dtype, size + 1)


def check_backward(grad, h, activation="leaky_sigmoid", slope=0.2, needs_bias=True):
    got = launchers.add_act_backward(grad, h, activation, slope, needs_bias)
    like = torch.ops.lmser.add_act_backward(grad, h, activation, slope, needs_bias)
    for a, b in zip(got, like, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    pre = activations.pull_back(wide(grad), wide(h), activation, slope)
    close(got[0], pre, h.dtype, wide(grad).abs())
    if needs_bias:
        close(got[1], pre.sum((0, 2, 3)), h.dtype, wide(grad).abs().sum((0, 2, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_layout(shape, layout, dtype):
    y, u = (draw(shape, layout, dtype, seed) for seed in (0, 1))
    check(y, u, draw((2 * shape[1], 1, 1, 1), "contiguous", dtype).flatten()[::2])
    check(y, None, None)
    check_backward(y, u)
    check_backward(y, u, needs_bias=False)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1]])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", LAYOUTS)
def test_mixed_layouts(shape, layout, other):
    y, u = draw(shape, layout, torch.float32), draw(shape, other, torch.float32, 1)
    check(y, u, torch.randn(shape[1]))
    check_backward(y, u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", activations.ACTIVATIONS)
def test_activations(activation, dtype):
    y, u = (3 * draw((2, 4, 3, 3), "channels_last", dtype, seed) for seed in (0, 1))
    slope = 0.3 if activation in activations.DEFAULT_SLOPES else 0.0
    check(y, u, None, activation, slope)
    h = torch.ops.lmser.add_act(u, None, None, activation, slope)
    check_backward(y, h, activation, slope)
    check_backward(y, h, activation, slope, needs_bias=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", activations.ACTIVATIONS)
def test_not_finite(activation, value):
    y, u, grad = (draw((2, 3, 3, 3), "channels_last", torch.float32, seed) for seed in (0, 1, 2))
    bias = torch.randn(3)
    y[0, 0, 0, 0] = u[1, 1, 1, 1] = bias[2] = grad[1, 0, 2, 2] = value
    got = launchers.add_act(y, u, bias, activation, 0.2)
    want = torch.ops.lmser.add_act(y, u, bias, activation, 0.2)
    torch.testing.assert_close(got, want, equal_nan=True)
    for a, b in zip(
        launchers.add_act_backward(grad, want, activation, 0.2, True),
        torch.ops.lmser.add_act_backward(grad, want, activation, 0.2, True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("gate_slope", [0.0, 0.3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gate_and_drive(layout, gate_slope, dtype):
    shape = (2, 5, 4, 3)
    grad, h, gate, plus = (draw(shape, layout, dtype, seed) for seed in range(4))
    pre, total, bias = torch.empty_like(h), torch.empty(shape, dtype=dtype), torch.empty(5, dtype=dtype)
    keywords = {"gate": gate, "gate_slope": gate_slope}
    passes.pull_back(grad, h, "tanh", 0.0, plus=plus, pre=pre, total=total, bias=bias, **keywords)
    want = wide(grad) * (1 - wide(h) ** 2) * torch.where(gate > 0, 1.0, gate_slope + 0 * wide(gate))
    size = wide(grad).abs() * (1 + wide(h) ** 2)
    close(pre, want, dtype, size)
    close(total, want + wide(plus), dtype, size + wide(plus).abs())
    close(bias, want.sum((0, 2, 3)), dtype, size.sum((0, 2, 3)))
    alone = torch.empty_like(pre)
    passes.pull_back(grad, h, "tanh", 0.0, pre=alone, **keywords)
    assert torch.equal(alone, pre)


def test_sums_of_many_blocks(monkeypatch):
    """Every program walks over several tiles, and their sums are many rows."""
    monkeypatch.setattr(passes, "multiprocessors", lambda tensor: 1)
    monkeypatch.setattr(passes, "_MOST_ALONE", 0)
    for layout in ("contiguous", "channels_last"):
        check_backward(*(draw((9, 3, 40, 41), layout, torch.float32, seed) for seed in (0, 1)))


def test_images_are_one_row_only_while_32_bits_count_their_pixels():
    for images, merged in ((3, 1), (40_000, 40_000)):
        y = torch.empty(images, 1, 256, 256, device="meta")
        assert extents(y, {"y": y}).images == merged
