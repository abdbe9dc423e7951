"""The weight gradient and the backward passes of the tied convolution in Triton, beside the compiled operators."""

from __future__ import annotations

import pytest
import torch
from tied_conv_cases import LAYOUTS, ROUNDOFF, laid_out

pytest.importorskip("triton")
from lmser_kernels.gpu import reduce as reductions
from lmser_kernels.gpu.launch import recording
from lmser_kernels.tied_conv import triton_backward as launchers
from lmser_kernels.tied_conv import triton_weight_grad as kernels
from lmser_kernels.tied_conv.triton_plan import CUDNN, FUSED, Plan

pytestmark = [
    pytest.mark.native,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # infinity times 0
]

# (N, C_in, C_out, (H, W), kernel, stride, padding, pool or upsample)
EDGES = (
    (2, 3, 5, (7, 6), (3, 3), (1, 1), (1, 1), (1, 1)),  # taps and channels counted through
    (2, 32, 17, (6, 7), (3, 3), (2, 2), (1, 1), (1, 1)),  # one tap a tile
    (1, 2, 3, (6, 5), (3, 3), (1, 1), (1, 1), (2, 2)),
    (2, 1, 4, (5, 9), (1, 4), (1, 2), (0, 3), (1, 3)),
    (1, 4, 2, (7, 8), (5, 5), (2, 3), (0, 1), (1, 1)),
    (3, 6, 5, (3, 2), (2, 1), (3, 2), (4, 2), (2, 1)),  # gaps, and more padding than kernel
    (5, 7, 6, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    (0, 2, 3, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
)
ALL = [True] * 4


def draw(shape, layout="channels_last", dtype=torch.float32, seed=0):
    return laid_out(shape, layout, torch.Generator().manual_seed(seed), dtype).detach()


def sizes(edge):
    batch, c_in, c_out, size, kernel, stride, padding, _ = edge
    small = tuple((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    return (batch, c_in, *size), (batch, c_out, *small), (c_out, c_in, *kernel)


def same(got, want, terms=1.0):
    """Of one shape, layout and dtype; values apart by no more than sums of `terms` in another order may be."""
    assert len(got) == len(want)
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype), number
        unit = ROUNDOFF[a.dtype]
        size = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
        torch.testing.assert_close(a, b, rtol=8 * unit, atol=8 * unit * (size + terms), equal_nan=True)


def conv(edge, layouts=("channels_last",) * 4, dtype=torch.float32, activation="leaky_sigmoid", drive=True):
    """Arguments of the convolution's backward pass, but for `needs`."""
    _, _, _, size, _, stride, padding, pool = edge
    _, small, weight = sizes(edge)
    # A row and a column too many, where a pool drops them.
    big = (edge[0], edge[1], *(size[i] * pool[i] + (pool[i] > 1) for i in (0, 1)))
    return (
        draw(small, layouts[0], dtype, 1),
        draw(small, layouts[1], dtype, 2) if drive else None,
        draw(small, layouts[2], dtype, 3),
        draw(big, layouts[3], dtype, 4),
        draw(weight, "contiguous", dtype, 5),
        stride, padding, pool, activation, 0.2,
    )  # fmt: skip


def transposed(
    edge, layouts=("channels_last",) * 4, dtype=torch.float32, activation="leaky_sigmoid", drive=True
):
    """Arguments of the transposed convolution's backward pass on either side of `needs`."""
    _, _, _, size, _, stride, padding, upsample = edge
    _, small, weight = sizes(edge)
    big = (edge[0], edge[1], size[0] * upsample[0], size[1] * upsample[1])
    return (
        draw(big, layouts[0], dtype, 1),
        draw(big, layouts[1], dtype, 2) if drive else None,
        draw(big, layouts[2], dtype, 3),
        draw(small, layouts[3], dtype, 4),
        draw(weight, "contiguous", dtype, 5),
        draw(big, layouts[1], dtype, 6),
        stride, padding, upsample, activation, 0.2,
    ), (0.25 if activation == "leaky_relu" else 0.0, draw(small, layouts[0], dtype, 7), 0.25, True)  # fmt: skip


def check_conv(arguments, needs=ALL):
    name = "conv2d_add_act_backward"
    same(getattr(launchers, name)(*arguments, needs), getattr(torch.ops.lmser, name)(*arguments, needs))


def check_transposed(arguments, gates, needs=ALL):
    name = "conv_transpose2d_add_act_backward"
    arguments = (*arguments, needs, *gates)
    same(getattr(launchers, name)(*arguments), getattr(torch.ops.lmser, name)(*arguments))


@pytest.mark.parametrize("edge", EDGES, ids=str)
class TestGeometry:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_both_directions_in_one_sum(self, edge, dtype):
        big, small, weight = sizes(edge)
        x, grad_u = draw(big, "contiguous", dtype), draw(big, "sliced", dtype, 1)
        grad_y, z = draw(small, "channels_last", dtype, 2), draw(small, "transposed", dtype, 3)
        for second in ((grad_u, z), (None, None)):
            arguments = (x, grad_y, *second, weight[2:], edge[5], edge[6])
            got = launchers.tied_conv2d_weight_grad(*arguments)
            same([got], [torch.ops.lmser.tied_conv2d_weight_grad(*arguments)])

    def test_convolution(self, edge):
        check_conv(conv(edge, dtype=torch.float64))

    def test_transposed(self, edge):
        check_transposed(*transposed(edge, dtype=torch.float64))


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "tanh"])
@pytest.mark.parametrize(
    "needs", [(1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 1, 1)]
)
def test_what_is_asked_for(activation, needs):
    edge, needs = EDGES[2], [bool(need) for need in needs]
    for drive in (False, True):
        check_conv(conv(edge, activation=activation, drive=drive), needs)
        check_transposed(*transposed(edge, activation=activation, drive=drive), needs)


def test_drive_alone():
    """No gradient reaches the output: add and bias get zeros."""
    _, *arguments = conv(EDGES[0], layouts=("contiguous",) * 4)
    check_conv((None, *arguments))
    (_, *arguments), gates = transposed(EDGES[0])
    check_transposed((None, *arguments), gates)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", ["contiguous", "channels_last"])
def test_layouts(layout, other):
    check_conv(conv(EDGES[2], (layout, other, other, layout)))
    check_transposed(*transposed(EDGES[2], (other, layout, layout, other)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Rounded once, from the sums of values rounded once."""
    for edge in (EDGES[0], EDGES[2]):
        for needs in (ALL, [False, True, False, False]):
            arguments = conv(edge, dtype=dtype)
            want = torch.ops.lmser.conv2d_add_act_backward(*arguments, needs)
            same(launchers.conv2d_add_act_backward(*arguments, needs), want)
        check_transposed(*transposed(edge, dtype=dtype))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite(value):
    """One tap a tile: only taps that meet the value are not finite; padding, which meets it too, is no factor."""
    big, small, weight = sizes(EDGES[1])
    x, grad_y = draw(big), draw(small, seed=1)
    grad_y[0, 3, 0, 0] = value
    arguments = (x, grad_y, None, None, weight[2:], (2, 2), (1, 1))
    got = launchers.tied_conv2d_weight_grad(*arguments)
    want = torch.ops.lmser.tied_conv2d_weight_grad(*arguments)
    same([got[:3], got[4:], got[3, :, 1:, 1:]], [want[:3], want[4:], want[3, :, 1:, 1:]])
    assert not bool(got[3, :, 1:, 1:].isfinite().any())
    assert bool(got[3, :, 0].isfinite().all())
    assert bool(got[3, :, :, 0].isfinite().all())


def test_many_splits(monkeypatch):
    """The result does not depend on how many programs share the sum, nor its bits on when they end."""
    monkeypatch.setattr(kernels, "_LEAST_STEPS", 1)
    x, grad_y = (draw((2, c, 9, 11), dtype=torch.float64, seed=c) for c in (2, 3))
    arguments = (x, grad_y, None, None, (3, 3), (1, 1), (1, 1))
    want = torch.ops.lmser.tied_conv2d_weight_grad(*arguments)
    results = []
    for most in (1, 2):
        monkeypatch.setattr(kernels, "multiprocessors", lambda tensor, most=most: most)
        results.append(launchers.tied_conv2d_weight_grad(*arguments))
        same([results[-1]], [want])
    assert torch.equal(results[-1], launchers.tied_conv2d_weight_grad(*arguments))


def test_many_products_are_cudnn_s(monkeypatch):
    """Where the plan says so and cuDNN is there; its place is taken by the CPU's convolution here."""
    for number, wanted in enumerate((CUDNN, FUSED)):
        with recording(90) as made, torch.device("meta"):
            c = (256, 32)[number]
            x = torch.empty(64, c, 56, 56, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
            kernels.weight_grad(x, x, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
        assert made.launches[0].plan.kernel == wanted
    monkeypatch.setattr(kernels, "runs_here", lambda tensor: True)
    monkeypatch.setattr(kernels, "plan_weight_grad", lambda *arguments: Plan(CUDNN, "asked for", False))
    for edge in (EDGES[1], EDGES[5], EDGES[7]):
        check_conv(conv(edge, drive=False, activation="identity"), [False, True, False, False])


def test_partial_sums_in_blocks(monkeypatch):
    monkeypatch.setattr(reductions, "_MOST_ROWS", 4)
    partial = torch.randn(13, 2 * 3 * 5, dtype=torch.float64)
    out = torch.empty(2, 5, 3)
    reductions.reduce(partial, out, taps=3, inner=5)
    torch.testing.assert_close(out, partial.sum(0).view(2, 3, 5).mT.float())


def test_errors():
    x, grad_y = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="grad_u and z must be given together"):
        launchers.tied_conv2d_weight_grad(x, grad_y, x, None, (1, 1), (1, 1), (0, 0))
    with pytest.raises(ValueError, match="grad or grad_drive must be given"):
        launchers.conv2d_add_act_backward(
            None, None, grad_y, x, x, (1, 1), (0, 0), (1, 1), "relu", 0.0, [True] * 4
        )
