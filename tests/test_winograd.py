"""3x3 and 5x5 kernels by minimal filtering: where it is chosen, how exact it is, what it never touches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmser_kernels import _library, conv2d_add_act, conv_transpose2d_add_act, explain

pytestmark = pytest.mark.native

SETS = _library.module.cpu_info()["runs_here"] if _library.module else ["none"]
FILTER = {3: "F(4x4, 3x3)", 5: "F(2x2, 5x5)"}  # by the taps of an axis
# (batch, C_in, C_out, height, width, padding): whole tiles and parts of them, channels that fill no register, units
# of several images, of a part of an image, and of a part of the output channels.
SHAPES = [
    (1, 64, 64, 8, 8, 1),
    (9, 40, 33, 7, 7, 1),
    (2, 37, 50, 14, 15, 0),
    (3, 24, 120, 16, 16, 2),
    (2, 16, 64, 61, 58, 1),
    (2, 300, 130, 9, 12, 1),
]


def drives(transposed: bool, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, None, 1, padding)


def operands(
    shape: tuple[int, ...], transposed: bool, last: bool, taps: int = 3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, c_in, c_out, height, width, padding = shape
    draw = torch.Generator().manual_seed(1)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(batch, c_in, height, width, generator=draw).contiguous(memory_format=layout)
    sides = (c_in, c_out) if transposed else (c_out, c_in)
    weight = torch.randn(*sides, taps, taps, generator=draw) / (taps * c_in**0.5)
    drive = drives(transposed, x, weight, padding)
    add = torch.randn(drive.shape, generator=draw).contiguous(memory_format=layout)
    return x, weight, add, torch.randn(c_out, generator=draw)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("taps", FILTER)
def test_error_is_below_one_in_a_hundred_thousand(instruction_set, taps, shape, transposed, threads, last):
    operation, padding = (conv_transpose2d_add_act if transposed else conv2d_add_act), shape[-1]
    x, weight, add, bias = operands(shape, transposed, last, taps)
    drive = drives(transposed, x.double(), weight.double(), padding)
    want = torch.relu(drive + add.double() + bias.double().view(1, -1, 1, 1))
    call = {"stride": 1, "padding": padding, "activation": "relu"}
    assert FILTER[taps] in explain(operation, x, weight, add, bias, **call).kernel
    torch.set_num_threads(threads)
    h, y = operation(x, weight, add, bias, return_drive=True, **call)
    for got, exact in ((h, want), (y, drive)):
        assert (got.double() - exact).abs().max() <= 1e-5 * exact.abs().max()


# A weight beyond the second-level cache: units of several images, the last of them smaller; units of rows of tiles and
# more than one round. Two threads have tiles enough for rounds of their own, five have them of the largest shape alone.
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "shape", [(17, 100, 96, 8, 8, 1), (3, 160, 200, 29, 23, 1), (17, 100, 96, 7, 6, 1)], ids=str
)
class TestRounds:
    def test_error_and_bits_of_any_number_of_threads(self, instruction_set, shape, transposed):
        operation = conv_transpose2d_add_act if transposed else conv2d_add_act
        x, weight, add, bias = operands(shape, transposed, last=transposed)
        drive = drives(transposed, x.double(), weight.double(), 1)
        want = torch.tanh(drive + add.double() + bias.double().view(1, -1, 1, 1))
        call = {"stride": 1, "padding": 1, "activation": "tanh"}
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            own = threads < 5 or shape[0] == 3
            how = "each thread multiplies many tiles by it" if own else "threads share its points"
            reason = explain(operation, x, weight, add, bias, **call).reason
            assert how in reason
            assert "units a round" in reason
            found.append(operation(x, weight, add, bias, return_drive=True, **call))
        for got, exact in zip(found[0], (want, drive), strict=True):
            assert (got.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
        for others in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))

    def test_what_is_not_finite_stays_where_it_is(self, instruction_set, shape, transposed):
        operation = conv_transpose2d_add_act if transposed else conv2d_add_act
        x, weight, _, _ = operands(shape, transposed, last=True)
        x[1, 3, 4, 5], x[-1, 0, 0, 0] = torch.inf, torch.nan
        got = operation(x, weight, padding=1)
        want = drives(transposed, x, weight, 1)
        assert torch.equal(got.isfinite(), want.isfinite())
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.fixture
def filtered_wherever_possible() -> Iterator[None]:
    assert _library.module is not None
    _library.module.choose_filtering("where possible")
    yield
    _library.module.choose_filtering("where faster")


@pytest.mark.usefixtures("filtered_wherever_possible")
class TestLastTiles:
    """Tiles of which 1 to 3 outputs a side are needed have products at fewer points."""

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("height", range(1, 10))
    def test_every_size(self, instruction_set, height, transposed):
        operation = conv_transpose2d_add_act if transposed else conv2d_add_act
        for width in (*range(1, 9), 14):
            for padding in (1, 2) if not transposed else (0, 1):
                x, weight, add, bias = operands(
                    (3, 24, 27, height, width, padding), transposed, width % 2 == 0
                )
                drive = drives(transposed, x.double(), weight.double(), padding)
                want = drive + add.double() + bias.double().view(1, -1, 1, 1)
                got = operation(x, weight, add, bias, stride=1, padding=padding)
                assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max()

    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("height", range(1, 10))
    def test_weight_gradient_of_every_size(self, instruction_set, height, threads):
        torch.set_num_threads(threads)
        for width in (*range(1, 9), 14):
            x, weight, _, _ = operands((5, 24, 27, height, width, 1), False, True)
            weight.requires_grad_()
            y = conv2d_add_act(x, weight, stride=1, padding=1)
            grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
            (got,) = torch.autograd.grad(y, weight, grad)
            wide = weight.detach().double().requires_grad_()
            (want,) = torch.autograd.grad(F.conv2d(x.double(), wide, None, 1, 1), wide, grad.double())
            assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max()

    # 4 images a unit and rows of one image a unit; blocks of channels of one point, and all points of one block.
    @pytest.mark.parametrize(
        "shape", [(9, 64, 40, 7, 14, 1), (1, 64, 40, 46, 45, 1), (6, 40, 130, 6, 9, 1)], ids=str
    )
    def test_bits_of_any_threads_and_of_parts(self, instruction_set, shape):
        x, weight, add, bias = operands(shape, False, True)
        whole = conv2d_add_act(x, weight, add, bias, padding=1)
        exact = F.conv2d(x.double(), weight.double(), None, 1, 1) + add + bias.view(1, -1, 1, 1)
        assert (whole.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for n in range(1, shape[0] + 1):
                part = conv2d_add_act(x[:n], weight, add[:n], bias, padding=1)
                assert torch.equal(part, whole[:n])

    # Products of an image: 6 points for a tile, 5 for 3 outputs, 4 for fewer; of 9 a pixel.
    @pytest.mark.parametrize(
        ("size", "points"), {8: 12, 7: 11, 6: 10, 5: 10, 14: 22, 15: 23, 28: 42, 3: 5}.items(), ids=str
    )
    def test_products(self, size, points):
        x, weight = torch.zeros(2, 32, size, size), torch.zeros(32, 32, 3, 3)
        (plan,) = explain(conv2d_add_act, x, weight, padding=1).plans.values()
        assert plan["products_of_direct"] == pytest.approx(points**2 / (9 * size**2))

    def test_what_is_not_finite_stays_where_it_is(self, instruction_set):
        for at in ((0, 0), (6, 6), (6, 2), (4, 13), (3, 12)):
            x, weight, _, _ = operands((2, 40, 33, 7, 14, 1), False, last=True)
            x[1, 3, at[0], at[1]] = torch.inf
            got, want = conv2d_add_act(x, weight, padding=1), drives(False, x, weight, 1)
            assert torch.equal(got.isfinite(), want.isfinite())


# Sums of its own for every thread, and one sum whose bands they share.
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "shape", [(6, 40, 33, 17, 18, 1), (2, 64, 72, 30, 29, 0), (9, 200, 210, 14, 14, 1)], ids=str
)
@pytest.mark.parametrize("taps", FILTER)
def test_weight_gradient(instruction_set, taps, shape, threads):
    padding = shape[-1]
    x, weight, _, _ = operands(shape, False, True, taps)
    weight.requires_grad_(), x.requires_grad_()
    torch.set_num_threads(threads)
    y = conv2d_add_act(x, weight, stride=1, padding=padding)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    got = torch.autograd.grad(y, (x, weight), grad)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    want = torch.autograd.grad(drives(False, *wide, padding), wide, grad.double())
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).abs().max() <= 1e-5 * b.abs().max()


def test_weight_gradient_of_what_is_not_finite(instruction_set):
    x, weight, _, _ = operands((6, 40, 64, 16, 16, 1), False, True)
    weight.requires_grad_()
    grad = torch.randn(6, 64, 16, 16, generator=torch.Generator().manual_seed(3))
    grad[2, 7, 0, 5] = torch.inf
    (got,) = torch.autograd.grad(conv2d_add_act(x, weight, stride=1, padding=1), weight, grad)
    assert not got[7, :, 1:].isfinite().any()
    others = torch.arange(64) != 7
    (want,) = torch.autograd.grad(drives(False, x, weight, 1), weight, grad)
    torch.testing.assert_close(got[others], want[others], rtol=1e-4, atol=1e-3)


class TestChoice:
    @pytest.mark.parametrize(
        ("shape", "filtered"),
        {
            (16, 40, 128, 16): True,
            (1, 64, 64, 28): True,
            (16, 3, 64, 32): False,  # too short a depth
            (16, 64, 3, 32): False,
            (16, 16, 16, 5): False,  # 8 x 8 outputs of which 39 are thrown away
            (1, 448, 448, 4): False,  # more to pack than to multiply
            (16, 448, 448, 8): True,
        }.items(),
        ids=str,
    )
    def test_is_said(self, shape, filtered):
        batch, c_in, c_out, size = shape
        x, z = torch.zeros(batch, c_in, size, size), torch.zeros(batch, c_out, size, size)
        weight = torch.zeros(c_out, c_in, 3, 3)
        _library.module.choose_isa(SETS[0])
        for found in (
            explain(conv2d_add_act, x, weight, padding=1),
            explain(conv_transpose2d_add_act, z, weight, padding=1),
        ):
            (plan,) = found.plans.values()
            assert ("F(4x4, 3x3)" in found.kernel) == filtered
            assert (plan["products_of_direct"] < 1) == filtered

    def test_five_taps(self):
        x, z = torch.zeros(4, 64, 40, 40), torch.zeros(4, 300, 40, 40)
        weight = torch.zeros(300, 64, 5, 5)
        for found in (
            explain(conv2d_add_act, x, weight, padding=2),
            explain(conv_transpose2d_add_act, z, weight, padding=2),
        ):
            (plan,) = found.plans.values()
            assert "F(2x2, 5x5)" in found.kernel
            assert plan["products_of_direct"] == pytest.approx(36 / 100)
        # Longer on one axis: no filter is known.
        assert "F(2x2" not in explain(conv2d_add_act, x, weight[..., :3], padding=(2, 1)).kernel

    @pytest.mark.parametrize(
        ("taps", "what", "share"),
        [
            (3, "F(3, 2) on one phase of each axis and single taps", 49 / 81),
            (5, "F(2, 3) on one phase of each axis and F(2, 2)", 49 / 100),
        ],
    )
    def test_stride_2(self, taps, what, share):
        x, z = torch.zeros(4, 128, 48, 48), torch.zeros(4, 128, 24, 24)
        call = {"stride": 2, "padding": taps // 2}
        weight = torch.zeros(128, 128, taps, taps)
        _library.module.choose_isa(SETS[0])
        for found in (
            explain(conv2d_add_act, x, weight, **call),
            explain(conv_transpose2d_add_act, z, weight, output_size=48, **call),
        ):
            (plan,) = found.plans.values()
            assert what in found.kernel
            assert plan["products_of_direct"] == pytest.approx(share)
            assert "F(" not in explain(conv2d_add_act, x[:, :8], weight[:, :8], **call).kernel

    def test_float64_and_other_strides_are_summed_directly(self):
        weight = torch.zeros(64, 64, 3, 3)
        x = torch.zeros(2, 64, 16, 16)
        assert "F(4x4" not in explain(conv2d_add_act, x.double(), weight.double(), padding=1).kernel
        assert "F(4x4" not in explain(conv2d_add_act, x, weight, stride=2, padding=1).kernel
        assert "F(4x4" not in explain(conv2d_add_act, x, weight, stride=(1, 2), padding=1).kernel


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("taps", FILTER)
def test_what_is_not_finite_stays_where_the_kernel_carries_it(instruction_set, taps, transposed, value):
    operation = conv_transpose2d_add_act if transposed else conv2d_add_act
    reach = taps // 2
    x, weight, add, bias = operands((2, 32, 40, 13, 13, reach), transposed, True, taps)
    x[1, 5, 6, 7] = value
    h = operation(x, weight, add, bias, stride=1, padding=reach)
    spoiled = ~h.isfinite()
    touched = torch.zeros_like(spoiled)
    touched[1, :, 6 - reach : 7 + reach, 7 - reach : 8 + reach] = True
    assert torch.equal(spoiled, touched)
    want = (
        drives(transposed, x.nan_to_num(0, 0, 0).double(), weight.double(), reach)
        + add
        + bias.view(1, -1, 1, 1)
    )
    torch.testing.assert_close(h[~touched].double(), want[~touched], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("taps", FILTER)
def test_what_is_not_finite_stays_where_strides_carry_it(instruction_set, taps, transposed):
    weight = torch.randn(128, 130, taps, taps) / 50
    padding, size = taps // 2, 14
    if transposed:
        x, (operation, reference) = torch.randn(2, 128, 7, 7), (conv_transpose2d_add_act, F.conv_transpose2d)
        call, wanted = {"output_size": size}, {"output_padding": 1}
    else:
        x, (operation, reference) = torch.randn(2, 130, size, size), (conv2d_add_act, F.conv2d)
        call = wanted = {}
    x[1, 5, 3, 4], x[0, 3, 0, 6] = torch.nan, torch.inf
    got = operation(x, weight, stride=2, padding=padding, **call)
    want = reference(x, weight, None, 2, padding, **wanted)
    assert torch.equal(got.isfinite(), want.isfinite())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("taps", FILTER)
def test_same_bits_on_any_number_of_threads(instruction_set, taps):
    x, weight, add, bias = operands((5, 40, 120, 13, 11, 1), False, True, taps)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(conv2d_add_act(x, weight, add, bias, stride=1, padding=1, activation="tanh"))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    "mode", ["where faster", "never", "where possible", "in buffers", "in registers", "along rows"]
)
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_every_form_of_the_sum_agrees(mode, taps, stride):
    x, weight, _, _ = operands((2, 130, 140, 15, 12, 0), False, True, taps)
    z = torch.randn(2, 140, (15 + 2 - taps) // stride + 1, (12 + 2 - taps) // stride + 1)
    results = []
    before = _library.module.choose_filtering(mode)
    try:
        for up, source, size in ((True, x, None), (False, z, (15, 12))):
            narrow = [t.clone().requires_grad_() for t in (source, weight)]
            wide = [t.detach().double().requires_grad_() for t in narrow]
            if up:
                got = conv2d_add_act(*narrow, stride=stride, padding=1)
                want = F.conv2d(*wide, None, stride, 1)
            else:
                got = conv_transpose2d_add_act(*narrow, stride=stride, padding=1, output_size=size)
                spare = [s - ((n - 1) * stride - 2 + taps) for s, n in zip(size, z.shape[2:], strict=True)]
                want = F.conv_transpose2d(*wide, None, stride, 1, spare)
            grad = torch.randn(got.shape)
            results.append((got, want))
            results += zip(
                torch.autograd.grad(got, narrow, grad),
                torch.autograd.grad(want, wide, grad.double()),
                strict=True,
            )
    finally:
        assert _library.module.choose_filtering(before) == mode
    for got, want in results:
        assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max()


def test_an_unknown_form_is_refused():
    with pytest.raises(
        ValueError,
        match="mode is 'sometimes'; expected one of 'where faster', 'never', 'where possible', 'in buffers', "
        "'in registers', 'along rows'",
    ):
        _library.module.choose_filtering("sometimes")


def test_sources_and_sinks():
    # Pooling before, upsampling and a gate after: the same staging and the same finish as the direct sum.
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, 32, 23, 26, generator=draw)
    weight = torch.randn(48, 32, 3, 3, generator=draw) / 20
    pooled = F.avg_pool2d(x.double(), 2)
    h = conv2d_add_act(x, weight, stride=1, padding=1, pool=2, activation="tanh")
    torch.testing.assert_close(
        h.double(), torch.tanh(F.conv2d(pooled, weight.double(), None, 1, 1)), rtol=0, atol=1e-5
    )
    z = torch.randn(2, 48, 11, 13, generator=draw)
    gate = torch.randn(2, 32, 22, 39, generator=draw)
    u = conv_transpose2d_add_act(
        z, weight, None, None, stride=1, padding=1, upsample=(2, 3), gate=gate, activation="tanh"
    )
    drive = F.conv_transpose2d(z.double(), weight.double(), None, 1, 1)
    want = torch.tanh(drive.repeat_interleave(2, 2).repeat_interleave(3, 3)) * (gate > 0)
    torch.testing.assert_close(u.double(), want, rtol=0, atol=1e-5)
