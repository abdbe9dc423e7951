"""`conv2d_add_act`: values and gradients of any order, layouts, special values, what it saves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from implementations import FUSED, examples
from tied_conv_cases import Case, cases, check_against_oracle, check_not_finite, higher_order, layer, saved_by
from torch.autograd import gradcheck, gradgradcheck

from lmser_kernels import conv2d_add_act
from lmser_kernels.activation import ACTIVATIONS

pytestmark = pytest.mark.operators

GEOMETRIES = [
    {"stride": 1, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "pool": (1, 2)},
    {"stride": (3, 2), "padding": 1, "pool": 2},
]
# (batch, C_in, C_out, (H, W), kernel, stride, padding): the layers of the networks, at small batches.
LAYERS = [
    (2, 3, 16, (48, 48), 3, 1, 1),
    (2, 16, 32, (48, 48), 3, 2, 1),
    (3, 64, 128, (13, 12), 3, 2, 1),
    (2, 128, 256, (6, 6), 3, 2, 1),
    (1, 1, 16, (28, 28), 3, 1, 1),
    (1, 6, 30, (40, 40), 5, 1, 2),
    (50, 784, 300, (1, 1), 1, 1, 0),
    (7, 100, 10, (1, 1), 1, 1, 0),
    (2, 1, 42, (1, 4000), (1, 256), (1, 128), (0, 0)),
    (1, 300, 304, (9, 9), 3, 1, 1),
    (3, 40, 33, (14, 15), 3, 1, 1),
    (5, 36, 50, (7, 9), 3, 1, 1),
]


def operands(dtype=torch.float64, requires_grad=True, **geometry):
    x = torch.randn(2, 3, 7, 6, dtype=dtype)
    weight = torch.randn(2, 3, 3, 2, dtype=dtype)
    add = torch.randn_like(conv2d_add_act(x, weight, impl="reference", **geometry))
    bias = torch.randn(2, dtype=dtype)
    return tuple(t.requires_grad_(requires_grad) for t in (x, weight, add, bias))


class TestOracle:
    @pytest.mark.native
    @settings(max_examples=examples(300))
    @given(case=cases(False))
    def test_compiled(self, case: Case):
        check_against_oracle(case, conv2d_add_act, FUSED)

    # Where f' is taken from the input of f and not from its rounded output, only the wide types compare.
    @settings(max_examples=examples(50))
    @given(case=cases(False, (torch.float32, torch.float64)))
    def test_reference(self, case: Case):
        check_against_oracle(case, conv2d_add_act, "reference")

    @pytest.mark.slow
    @pytest.mark.native
    @settings(max_examples=examples(5000))
    @given(case=cases(False))
    def test_compiled_at_length(self, case: Case):
        check_against_oracle(case, conv2d_add_act, FUSED, threads=2)

    @pytest.mark.native
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("sizes", LAYERS, ids=str)
    def test_layers_of_the_networks(self, sizes, layout, dtype):
        check_against_oracle(layer(False, sizes, layout, dtype), conv2d_add_act, FUSED, threads=2)


def test_reference_is_the_eager_line():
    x, weight, add, bias = operands(torch.float32, requires_grad=False, stride=2, padding=1, pool=2)
    got = conv2d_add_act(
        x, weight, add, bias, stride=2, padding=1, pool=2, activation="relu", impl="reference"
    )
    assert torch.equal(got, F.relu(F.conv2d(F.avg_pool2d(x, 2), weight, bias, 2, 1) + add))
    h, drive = conv2d_add_act(x, weight, stride=2, padding=1, return_drive=True, impl="reference")
    assert torch.equal(drive, F.conv2d(x, weight, None, 2, 1))
    assert torch.equal(h, drive)


class TestDerivatives:
    @pytest.mark.many_calls
    @pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("return_drive", [False, True])
    def test_first_and_second(self, impl, activation, geometry, return_drive):
        inputs = operands(**geometry)

        def call(x, weight, add, bias):
            return conv2d_add_act(
                x, weight, add, bias, activation=activation, return_drive=return_drive, impl=impl, **geometry
            )

        assert gradcheck(call, inputs, fast_mode=True)
        assert gradgradcheck(call, inputs, fast_mode=True)

    @pytest.mark.many_calls
    @pytest.mark.native
    @pytest.mark.parametrize("activation", ["sigmoid", "leaky_sigmoid"])
    def test_second_of_every_entry(self, activation):
        geometry = GEOMETRIES[1]
        inputs = operands(**geometry)

        def call(x, weight, add, bias):
            return conv2d_add_act(
                x, weight, add, bias, activation=activation, return_drive=True, impl=FUSED, **geometry
            )

        assert gradgradcheck(call, inputs)

    @pytest.mark.native
    @pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
    def test_third(self, activation):
        geometry = GEOMETRIES[1]
        inputs = operands(**geometry)
        results = [
            higher_order(
                lambda *t, impl=impl: conv2d_add_act(*t, activation=activation, impl=impl, **geometry),
                inputs,
                3,
            )
            for impl in (FUSED, "reference")
        ]
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)

    @pytest.mark.native
    @pytest.mark.parametrize("activation", ["identity", "tanh"])
    @pytest.mark.parametrize("which", range(4))
    def test_of_one_argument_alone(self, activation, which):
        inputs = operands(**GEOMETRIES[2])
        call = {"activation": activation, "impl": FUSED, **GEOMETRIES[2]}
        every = torch.autograd.grad(conv2d_add_act(*inputs, **call).square().sum(), inputs)
        alone = [t.detach().requires_grad_(i == which) for i, t in enumerate(inputs)]
        (grad,) = torch.autograd.grad(conv2d_add_act(*alone, **call).square().sum(), alone[which])
        torch.testing.assert_close(grad, every[which], rtol=1e-12, atol=1e-12)

    def test_of_the_drive_alone(self, impl):
        inputs = operands(**GEOMETRIES[1])
        drive = conv2d_add_act(*inputs, activation="tanh", return_drive=True, impl=impl, **GEOMETRIES[1])[1]
        cotangent = torch.randn_like(drive)
        x, weight, *_ = inputs
        grads = torch.autograd.grad(drive, inputs, cotangent, allow_unused=True)
        linear = conv2d_add_act(x, weight, impl="reference", **GEOMETRIES[1])
        torch.testing.assert_close(grads[:2], torch.autograd.grad(linear, (x, weight), cotangent))
        assert all(g is None or not g.any() for g in grads[2:])

    def test_of_an_expanded_gradient(self, impl):
        x, weight, add, bias = operands(**GEOMETRIES[0])
        call = {"activation": "tanh", **GEOMETRIES[0]}
        got = torch.autograd.grad(
            conv2d_add_act(x, weight, add, bias, impl=impl, **call).sum(), (x, weight, bias)
        )
        h = conv2d_add_act(x, weight, add, bias, impl="reference", **call)
        want = torch.autograd.grad(h, (x, weight, bias), torch.ones_like(h))
        torch.testing.assert_close(got, want)


@pytest.mark.native
class TestCompiled:
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_layout_follows_the_input(self, channels_last):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, weight, add, bias = operands(torch.float32, requires_grad=False, **GEOMETRIES[0])
        x = x.to(memory_format=layout).requires_grad_()
        add.requires_grad_(), weight.requires_grad_()
        h, drive = conv2d_add_act(x, weight, add, bias, activation="relu", return_drive=True, **GEOMETRIES[0])
        grads = torch.autograd.grad(h.sum() + drive.sum(), (x, add))
        for tensor in (h, drive, *grads):
            assert tensor.is_contiguous(memory_format=layout)

    def test_saves_only_inputs_and_output(self):
        x, weight, add, bias = operands(torch.float32, **GEOMETRIES[0])
        saved, h = saved_by(lambda: conv2d_add_act(x, weight, add, bias, activation="tanh", **GEOMETRIES[0]))
        assert saved == {x.data_ptr(), weight.data_ptr(), h.data_ptr()}
        saved, h = saved_by(lambda: conv2d_add_act(x, weight, add, bias, **GEOMETRIES[0]))
        assert saved == {x.data_ptr(), weight.data_ptr()}

    @pytest.mark.parametrize("threads", [1, 2])
    def test_same_bits_from_run_to_run(self, threads):
        torch.set_num_threads(threads)
        x = torch.randn(9, 16, 31, 30, requires_grad=True)
        weight = torch.randn(32, 16, 3, 3, requires_grad=True)
        bias = torch.randn(32, requires_grad=True)

        def run():
            h = conv2d_add_act(x, weight, None, bias, stride=2, padding=1, activation="tanh")
            return h, *torch.autograd.grad(h.square().sum(), (x, weight, bias))

        first = run()
        for _ in range(4):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("where", ["source", "weight", "add", "bias", "grad"])
    def test_not_finite_as_eager(self, where, activation, value):
        for geometry in ({"stride": 1, "padding": 0}, {"stride": 2, "padding": 1}):
            x, weight, add, bias = operands(torch.float32, requires_grad=False, **geometry)
            tensors = {"source": x, "weight": weight, "add": add, "bias": bias, "grad": torch.randn_like(add)}
            tensors[where].view(-1)[tensors[where].numel() // 2] = value
            check_not_finite(conv2d_add_act, tensors, where, activation=activation, **geometry)

    # Enough channels for an algorithm that adds inputs before it multiplies them.
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("where", ["source", "weight", "add", "bias", "grad"])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_not_finite_as_eager_with_many_channels(self, stride, where, value):
        geometry = {"stride": stride, "padding": 1}
        source, weight = torch.randn(1, 34, 12, 11), torch.randn(33, 34, 3, 3)
        add = torch.randn_like(conv2d_add_act(source, weight, impl="reference", **geometry))
        tensors = {"source": source, "weight": weight, "add": add, "bias": torch.randn(add.shape[1])}
        tensors["grad"] = torch.randn_like(add)
        tensors[where].view(-1)[tensors[where].numel() // 2] = value
        check_not_finite(conv2d_add_act, tensors, where, activation="leaky_relu", **geometry)
