"""The Triton launches of the tied convolution in Triton's interpreter: values, data gradients, sizes, layouts."""

from __future__ import annotations

import pytest
import torch
from implementations import DEVICE
from tied_conv_cases import DTYPES, Case, close, laid_out, layer, wide
from torch import Tensor

from lmser_kernels import reference
from lmser_kernels.activation import ACTIVATIONS, DEFAULT_SLOPES, check, pull_back
from lmser_kernels.gpu.launch import launch, recording
from lmser_kernels.tied_conv import triton as launchers
from lmser_kernels.tied_conv.triton_drives import Source, down, packed_down, packed_up, up

pytestmark = [
    pytest.mark.native,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # infinity times 0
]

# (C_in, C_out, size, kernel, stride, padding, factor), the factor pools on the way up and repeats on the way down.
GEOMETRIES = [
    (3, 5, (7, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    (16, 20, (7, 6), (3, 3), (2, 2), (1, 1), (1, 1)),
    (33, 17, (5, 4), (1, 3), (1, 2), (0, 1), (2, 2)),
    (9, 1, (6, 5), (5, 5), (1, 1), (2, 2), (1, 2)),
    (5, 3, (7, 9), (2, 2), (3, 3), (0, 2), (3, 1)),
    (1, 4, (4, 5), (3, 2), (2, 1), (4, 3), (4, 3)),
    (64, 32, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    (7, 2, (1, 12), (1, 4), (1, 4), (0, 0), (1, 1)),
]
ROUNDS = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 1}


def small_size(size, kernel, stride, padding):
    return tuple((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))


def random(shape, layout="channels_last", dtype=torch.float32, seed=0) -> Tensor:
    return laid_out(shape, layout, torch.Generator("cpu").manual_seed(seed), dtype).detach()


def strides(*results: Tensor) -> list[tuple[int, ...]]:
    return [result.stride() for result in results]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
class TestValues:
    """Against float64 and, in layout, against the compiled operator."""

    def test_convolution(self, geometry, dtype):
        c_in, c_out, size, kernel, stride, padding, pool = geometry
        number = GEOMETRIES.index(geometry)
        layouts = ("channels_last", "contiguous", "sliced", "expanded", "transposed")
        small, activation = small_size(size, kernel, stride, padding), ACTIVATIONS[number % 6]
        big = tuple(size[i] * pool[i] + (pool[i] > 2) for i in (0, 1))  # a row too many, which the pool drops
        x = random((2, c_in, *big), layouts[number % 5], dtype)
        weight = random((c_out, c_in, *kernel), layouts[(number + 1) % 5], dtype, 1)
        add = random((2, c_out, *small), layouts[(number + 2) % 5], dtype, 2)
        bias = random((2 * c_out, 1, 1, 1), "contiguous", dtype, 3)[::2, 0, 0, 0]
        arguments = (x, weight, add, bias, stride, padding, pool, activation, check(activation, None), True)
        h, drive = launchers.conv2d_add_act(*arguments)
        given = {"stride": stride, "padding": padding, "pool": pool}
        want, want_drive = reference.conv2d_add_act(
            *(wide(t) for t in (x, weight, add, bias)), **given, activation=activation, return_drive=True
        )
        size_of = reference.conv2d_add_act(
            *(wide(t).abs() for t in (x, weight, add, bias)), **given, activation="identity"
        )
        steps = ROUNDS[dtype] if pool != (1, 1) else 0
        close("h", h, want, size_of, steps)
        close("drive", drive, want_drive, size_of, steps)
        assert strides(h, drive) == strides(*torch.ops.lmser.conv2d_add_act(*arguments))

    def test_transposed(self, geometry, dtype):
        c_in, c_out, size, kernel, stride, padding, upsample = geometry
        number = GEOMETRIES.index(geometry)
        layouts = ("contiguous", "channels_last", "transposed", "sliced", "expanded")
        small, activation = small_size(size, kernel, stride, padding), ACTIVATIONS[(number + 1) % 6]
        out = (2, c_in, size[0] * upsample[0], size[1] * upsample[1])
        z = random((2, c_out, *small), layouts[number % 5], dtype)
        weight = random((c_out, c_in, *kernel), layouts[(number + 1) % 5], dtype, 1)
        add = random(out, layouts[(number + 2) % 5], dtype, 2)
        bias = random((2 * c_in, 1, 1, 1), "contiguous", dtype, 3)[::2, 0, 0, 0]
        gate = random(out, layouts[(number + 3) % 5], dtype, 4)
        input_gate = random(z.shape, layouts[(number + 4) % 5], dtype, 5)
        gate_slope = 0.25 if activation in ("identity", "relu", "leaky_relu") else 0.0
        spread = number % 2 == 0
        arguments = (
            z, weight, add, bias, gate, stride, padding, size, upsample, activation, check(activation, None), True,
            gate_slope, input_gate, 0.5, spread,
        )  # fmt: skip
        h, drive = launchers.conv_transpose2d_add_act(*arguments)
        given = {"stride": stride, "padding": padding, "output_size": size, "upsample": upsample}
        given |= {"spread": spread, "input_gate": wide(input_gate), "input_slope": 0.5}
        want, want_drive = reference.conv_transpose2d_add_act(
            *(wide(t) for t in (z, weight, add, bias)), **given, gate=wide(gate), gate_slope=gate_slope,
            activation=activation, return_drive=True,
        )  # fmt: skip
        size_of = reference.conv_transpose2d_add_act(
            *(wide(t).abs() for t in (z, weight, add, bias)), **given
        )
        close("h", h, want, size_of, 0)
        close("drive", drive, want_drive, size_of, 0)
        assert strides(h, drive) == strides(*torch.ops.lmser.conv_transpose2d_add_act(*arguments))

    def test_pair(self, geometry, dtype):
        c_in, c_out, size, kernel, stride, padding, _ = geometry
        layout = ("channels_last", "contiguous")[GEOMETRIES.index(geometry) % 2]
        x = random((2, c_in, *size), layout, dtype)
        z = random((2, c_out, *small_size(size, kernel, stride, padding)), "contiguous", dtype, 1)
        weight = random((c_out, c_in, *kernel), layout, dtype, 2)
        results = launchers.tied_conv2d(x, z, weight, stride, padding)
        tensors = [wide(t) for t in (x, z, weight)]
        wants = reference.tied_conv2d(*tensors, stride=stride, padding=padding)
        sizes = reference.tied_conv2d(*(t.abs() for t in tensors), stride=stride, padding=padding)
        for name, got, want, size_of in zip("yu", results, wants, sizes, strict=True):
            close(name, got, want, size_of, 0)
        assert strides(*results) == strides(*torch.ops.lmser.tied_conv2d(x, z, weight, stride, padding))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
class TestDataGradients:
    """With a `Source`, each direction is the other's data gradient, f' and gate applied while it reads."""

    def operands(self, shape, dtype, activation):
        grad, plus, gate = (random(shape, "channels_last", dtype, seed) for seed in (1, 2, 3))
        h = random(shape, "contiguous", dtype, 4)
        slope = check(activation, None)
        source = Source(h, activation, slope, gate, 0.25, plus)
        total = pull_back(wide(grad), wide(h), activation, slope if activation in DEFAULT_SLOPES else None)
        total = total * torch.where(gate > 0, 1.0, 0.25) + wide(plus)
        return grad, source, total

    def test_of_the_convolution(self, activation, dtype):
        """What the pool dropped has no gradient, but the result has its rows."""
        x, weight = random((2, 5, 11, 8), "contiguous", dtype), random((6, 5, 3, 3), dtype=dtype, seed=9)
        geometry = {"stride": (2, 1), "padding": (1, 0)}
        grad, source, total = self.operands((2, 6, 2, 2), dtype, activation)
        got, _ = down(
            grad, weight, **geometry, size=(3, 4), upsample=(3, 2), spread=True, output_size=(11, 8),
            source=source, like=x,
        )  # fmt: skip
        big = wide(x).requires_grad_()
        (want,) = torch.autograd.grad(
            reference.conv2d_add_act(big, wide(weight), **geometry, pool=(3, 2)), big, total
        )
        (size_of,) = torch.autograd.grad(
            reference.conv2d_add_act(big, wide(weight).abs(), **geometry, pool=(3, 2)), big, total.abs()
        )
        close("gradient of x", got, want, size_of, ROUNDS[dtype])
        assert got.stride() == x.stride()
        assert (got[:, :, 9:] == 0).all()

    @pytest.mark.parametrize("spread", [False, True])
    def test_of_the_transposed_convolution(self, activation, dtype, spread):
        z, weight = random((2, 6, 3, 2), dtype=dtype), random((6, 5, 3, 3), "contiguous", dtype, 9)
        given = {
            "stride": (2, 1),
            "padding": (1, 0),
            "output_size": (6, 4),
            "upsample": (1, 2),
            "spread": spread,
        }
        grad, source, total = self.operands((2, 5, 6, 8), dtype, activation)
        input_gate = random(z.shape, "contiguous", dtype, 5)
        got, _ = up(
            grad, weight, stride=(2, 1), padding=(1, 0), size=(3, 2), pool=(1, 2), sum_pool=not spread,
            source=source, gate=input_gate, gate_slope=0.5, like=z,
        )  # fmt: skip
        small = wide(z).requires_grad_()
        given |= {"input_gate": wide(input_gate), "input_slope": 0.5}
        (want,) = torch.autograd.grad(
            reference.conv_transpose2d_add_act(small, wide(weight), **given), small, total
        )
        (size_of,) = torch.autograd.grad(
            reference.conv_transpose2d_add_act(small, wide(weight).abs(), **given), small, total.abs()
        )
        close("gradient of z", got, want, size_of, ROUNDS[dtype])


class TestSizes:
    def test_empty_batch(self):
        weight = random((4, 3, 3, 3))
        arguments = (None, None, (1, 1), (1, 1))
        h, drive = launchers.conv2d_add_act(
            random((0, 3, 5, 5)), weight, *arguments, (1, 1), "relu", 0.0, False
        )
        assert h.shape == (0, 4, 5, 5)
        assert drive.shape == (0,)
        y, u = launchers.tied_conv2d(random((0, 3, 5, 5)), random((0, 4, 5, 5)), weight, (1, 1), (1, 1))
        assert (y.shape, u.shape) == ((0, 4, 5, 5), (0, 3, 5, 5))

    def test_a_result_that_is_not_asked_for(self):
        h, drive = launchers.conv_transpose2d_add_act(
            random((1, 4, 2, 2)), random((4, 3, 3, 3)), None, None, None, (1, 1), (1, 1), (2, 2), (1, 1),
            "relu", 0.0, False, 0.0, None, 0.0, False,
        )  # fmt: skip
        assert h.shape == (1, 3, 2, 2)
        assert drive.shape == (0,)

    def test_more_pixels_than_32_bits_count(self):
        """The launches of two layers, one of them large, and the large one's way of counting on the small one."""

        def call(x):
            return up(x, random((4, 3, 3, 3)), stride=(1, 1), padding=(1, 1), size=tuple(x.shape[2:]))[0]

        x = random((2, 3, 5, 6))
        want = call(x)
        with recording(90) as made:
            got = call(x)
            call(torch.empty(2**15, 3, 256, 256, device="meta"))
        small, large = made.launches
        assert not small.arguments["WIDE"]
        assert large.arguments["WIDE"]
        launch(small.kernel, small.grid, **small.arguments | {"WIDE": True, "out": got})
        assert torch.equal(got, want)


class TestNotFinite:
    """NaN and infinities of an operand reach what they are multiplied into, and nothing else."""

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("geometry", GEOMETRIES[:3], ids=str)
    def test_operand(self, geometry, value):
        c_in, c_out, size, kernel, stride, padding, _ = geometry
        x = random((2, c_in, *size))
        z = random((2, c_out, *small_size(size, kernel, stride, padding)), seed=1)
        weight = random((c_out, c_in, *kernel), "contiguous", seed=2)
        x[1, c_in - 1, 1, 2] = z[0, 0, -1, -1] = value
        results = launchers.tied_conv2d(x, z, weight, stride, padding)
        wants = reference.tied_conv2d(wide(x), wide(z), wide(weight), stride=stride, padding=padding)
        for got, want in zip(results, wants, strict=True):
            assert not want.isfinite().all()
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4, equal_nan=True)

    def test_closed_gate(self):
        """A gate multiplies, as the reference's does: 0 times NaN is NaN."""
        z, weight = random((1, 4, 3, 3)), random((4, 5, 3, 3), seed=1)
        gate = torch.full((1, 5, 3, 3), -1.0)
        add = torch.zeros(1, 5, 3, 3)
        add[0, 2, 1, 1] = float("nan")
        h, _ = launchers.conv_transpose2d_add_act(
            z, weight, add, None, gate, (1, 1), (1, 1), (3, 3), (1, 1), "identity", 0.0, False,
            0.0, None, 0.0, False,
        )  # fmt: skip
        assert h[0, 2, 1, 1].isnan()
        assert (h.nan_to_num() == 0).all()


class TestWeightLayout:
    def test_summed_channels_lie_side_by_side(self):
        weight = random((4, 6, 3, 3), "contiguous")
        assert packed_up(weight).stride(1) == 1
        assert packed_down(weight).stride(0) == 1
        for packed in (packed_up(weight), packed_down(weight)):
            assert torch.equal(packed, weight)

    def test_what_serves_is_not_copied(self):
        last = random((4, 6, 3, 3), "channels_last")
        assert packed_up(last) is last
        half = last.to(torch.bfloat16)
        assert packed_down(half) is half
        single = last.float()
        assert packed_down(single, 16) is single
        assert packed_down(single, 2**20).stride(0) == 1
        one_by_one = random((4, 6, 1, 1), "contiguous")
        assert packed_up(one_by_one) is one_by_one


@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_of_several_tiles(transposed):
    case: Case = layer(transposed, (2, 70, 130, (9, 10), 3, 2, 1), "channels_last", torch.float32)
    source, weight, add, bias = (t.detach() for t in (case.source, case.weight, case.add, case.bias))
    run = down if transposed else up
    size = case.keywords["output_size"] if transposed else case.grad.shape[2:]
    h, _ = run(
        source, weight, stride=(2, 2), padding=(1, 1), size=size, add=add, bias=bias, activation="relu"
    )
    operation = getattr(reference, case.name)
    want = operation(*(wide(t) for t in (source, weight, add, bias)), **case.keywords)
    magnitude = operation(*(wide(t).abs() for t in (source, weight, add, bias)), **case.linear_keywords())
    close("h", h, want, magnitude, 0)
    assert h.device == DEVICE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_long_sum_of_few_tiles_is_cut_into_pieces(transposed, dtype):
    """And the pieces, once they are added, go through the same epilogue."""
    x, z = random((1, 38, 2, 3), dtype=dtype), random((1, 36, 2, 3), dtype=dtype, seed=1)
    weight, geometry = random((36, 38, 5, 5), "contiguous", dtype, 2), {"stride": (1, 1), "padding": (2, 2)}
    given: dict = {"activation": "leaky_relu", "slope": 0.1, "drive": True}
    if transposed:
        out = (1, 38, 2, 6)
        extra: dict = {"upsample": (1, 2), "spread": True, "gate": random(out, dtype=dtype, seed=5)}
        run, source, size = down, z, (2, 3)
    else:
        out, extra = (1, 36, 2, 3), {}
        run, source, size = up, x, (2, 3)
    add, bias = (
        random(out, "contiguous", dtype, 3),
        random((out[1], 1, 1, 1), dtype=dtype, seed=4)[:, 0, 0, 0],
    )
    with recording(90) as made:
        run(source, weight, **geometry, size=size, add=add, bias=bias, **given, **extra)
    kernels = [launched.kernel.__name__ for launched in made.launches]
    assert kernels == ["conv_down" if transposed else "conv_up", "sum_and_finish"]
    h, drive = run(source, weight, **geometry, size=size, add=add, bias=bias, **given, **extra)
    tensors = [wide(t) for t in (source, weight, add, bias)]
    geometry |= {"output_size": size, "upsample": (1, 2), "spread": True} if transposed else {}
    operation = reference.conv_transpose2d_add_act if transposed else reference.conv2d_add_act
    gates = {"gate": wide(extra["gate"])} if transposed else {}
    want, want_drive = operation(
        *tensors, **geometry, **gates, activation="leaky_relu", slope=0.1, return_drive=True
    )
    magnitude = operation(*(t.abs() for t in tensors), **geometry)
    close("h", h, want, magnitude, 0)
    assert drive is not None
    close("drive", drive, want_drive, magnitude, 0)
