"""`conv_transpose2d_add_act`: values, gradients of any order, sizes, layouts, special values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from implementations import FUSED, examples
from test_conv2d_add_act import LAYERS
from tied_conv_cases import Case, cases, check_against_oracle, check_not_finite, higher_order, layer, saved_by
from torch.autograd import gradcheck, gradgradcheck

from lmser_kernels import conv2d_add_act, conv_transpose2d_add_act
from lmser_kernels.activation import ACTIVATIONS

pytestmark = pytest.mark.operators

GEOMETRIES = [
    {"stride": 1, "padding": 1},
    {"stride": (2, 1), "padding": (0, 1), "upsample": (1, 2), "output_size": (8, 3)},
    {"stride": (3, 2), "padding": 1, "upsample": 2, "output_size": (8, 7)},
]


def operands(dtype=torch.float64, requires_grad=True, gate=False, **geometry):
    z = torch.randn(2, 2, 3, 4, dtype=dtype)
    weight = torch.randn(2, 3, 3, 2, dtype=dtype)
    add = torch.randn_like(conv_transpose2d_add_act(z, weight, impl="reference", **geometry))
    bias = torch.randn(3, dtype=dtype)
    tensors = tuple(t.requires_grad_(requires_grad) for t in (z, weight, add, bias))
    return (*tensors, torch.randn_like(add)) if gate else tensors


class TestOracle:
    @pytest.mark.native
    @settings(max_examples=examples(300))
    @given(case=cases(True))
    def test_compiled(self, case: Case):
        check_against_oracle(case, conv_transpose2d_add_act, FUSED)

    # Where f' is taken from the input of f and not from its rounded output, only the wide types compare.
    @settings(max_examples=examples(50))
    @given(case=cases(True, (torch.float32, torch.float64)))
    def test_reference(self, case: Case):
        # oneDNN's backward of a 1 x k kernel at stride (1, 2) returns memory that it never wrote where a channels-last
        # input is one pixel wide (torch 2.13).
        with torch.backends.mkldnn.flags(enabled=False):
            check_against_oracle(case, conv_transpose2d_add_act, "reference")

    @pytest.mark.slow
    @pytest.mark.native
    @settings(max_examples=examples(5000))
    @given(case=cases(True))
    def test_compiled_at_length(self, case: Case):
        check_against_oracle(case, conv_transpose2d_add_act, FUSED, threads=2)

    @pytest.mark.native
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("sizes", LAYERS, ids=str)
    def test_layers_of_the_networks(self, sizes, layout, dtype):
        check_against_oracle(layer(True, sizes, layout, dtype), conv_transpose2d_add_act, FUSED, threads=2)


def test_reference_is_the_eager_line():
    z, weight = torch.randn(2, 2, 3, 4), torch.randn(2, 3, 3, 3)
    bias, add, gate = torch.randn(3), torch.randn(2, 3, 12, 16), torch.randn(2, 3, 12, 16)
    geometry = {"stride": 2, "padding": 1, "output_size": (6, 8), "upsample": 2}
    got = conv_transpose2d_add_act(
        z, weight, add, bias, gate=gate, activation="tanh", impl="reference", **geometry
    )
    linear = F.interpolate(F.conv_transpose2d(z, weight, None, 2, 1, 1), scale_factor=2)
    assert torch.equal(got, torch.tanh(linear + bias.view(1, -1, 1, 1) + add) * (gate > 0))


class TestSizes:
    @pytest.mark.parametrize("size", [96, 97, 95, 94])
    @pytest.mark.parametrize("stride", [1, 2, 3, 4])
    def test_every_parity_comes_back(self, impl, size, stride):
        x, weight = torch.randn(1, 2, size, 5), torch.randn(3, 2, 3, 3)
        y = conv2d_add_act(x, weight, stride=stride, padding=1, impl=impl)
        u = conv_transpose2d_add_act(y, weight, stride=stride, padding=1, output_size=(size, 5), impl=impl)
        assert u.shape == x.shape

    def test_smallest_by_default(self, impl):
        z, weight = torch.randn(1, 3, 4, 5), torch.randn(3, 2, 3, 2)
        u = conv_transpose2d_add_act(z, weight, stride=(2, 3), padding=(1, 0), upsample=(2, 1), impl=impl)
        assert u.shape == (1, 2, 14, 14)

    def test_adjoint_of_the_convolution(self, impl):
        x, weight = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
        y = conv2d_add_act(x, weight, stride=2, padding=1, impl=impl)
        z = torch.randn_like(y)
        u = conv_transpose2d_add_act(z, weight, stride=2, padding=1, output_size=(9, 8), impl=impl)
        torch.testing.assert_close((y * z).sum(), (x * u).sum())


class TestDerivatives:
    @pytest.mark.many_calls
    @pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize(("return_drive", "gated"), [(False, True), (True, False), (True, True)])
    def test_first_and_second(self, impl, activation, geometry, return_drive, gated):
        *inputs, gate = operands(gate=True, **geometry)

        def call(z, weight, add, bias):
            return conv_transpose2d_add_act(
                z,
                weight,
                add,
                bias,
                gate=gate if gated else None,
                gate_slope=0.2 if gated and activation in ("identity", "relu", "leaky_relu") else 0.0,
                activation=activation,
                return_drive=return_drive,
                impl=impl,
                **geometry,
            )

        assert gradcheck(call, inputs, fast_mode=True)
        assert gradgradcheck(call, inputs, fast_mode=True)

    @pytest.mark.many_calls
    @pytest.mark.native
    @pytest.mark.parametrize("activation", ["sigmoid", "leaky_sigmoid"])
    def test_second_of_every_entry(self, activation):
        *inputs, gate = operands(gate=True, **GEOMETRIES[1])

        def call(z, weight, add, bias):
            call = {"gate": gate, "activation": activation, "return_drive": True, **GEOMETRIES[1]}
            return conv_transpose2d_add_act(z, weight, add, bias, impl=FUSED, **call)

        assert gradgradcheck(call, inputs)

    @pytest.mark.native
    @pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
    def test_third(self, activation):
        # Without output padding: PyTorch's own third derivative refuses it.
        geometry = {"stride": (2, 1), "padding": (0, 1), "upsample": (1, 2)}
        *inputs, gate = operands(gate=True, **geometry)
        call = {"activation": activation, "gate": gate, **geometry}
        results = [
            higher_order(lambda *t, impl=impl: conv_transpose2d_add_act(*t, impl=impl, **call), inputs, 3)
            for impl in (FUSED, "reference")
        ]
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)

    @pytest.mark.native
    @pytest.mark.parametrize("activation", ["identity", "tanh"])
    @pytest.mark.parametrize("which", range(4))
    def test_of_one_argument_alone(self, activation, which):
        *inputs, gate = operands(gate=True, **GEOMETRIES[2])
        call = {"activation": activation, "impl": FUSED, "gate": gate, **GEOMETRIES[2]}
        every = torch.autograd.grad(conv_transpose2d_add_act(*inputs, **call).square().sum(), inputs)
        alone = [t.detach().requires_grad_(i == which) for i, t in enumerate(inputs)]
        (grad,) = torch.autograd.grad(conv_transpose2d_add_act(*alone, **call).square().sum(), alone[which])
        torch.testing.assert_close(grad, every[which], rtol=1e-12, atol=1e-12)

    def test_no_gradient_to_the_gate(self, impl):
        *inputs, gate = operands(gate=True, **GEOMETRIES[0])
        gate.requires_grad_()
        h = conv_transpose2d_add_act(*inputs, gate=gate, activation="relu", impl=impl, **GEOMETRIES[0])
        (grad,) = torch.autograd.grad(h.sum(), gate, allow_unused=True)
        assert grad is None or not grad.any()


@pytest.mark.native
class TestCompiled:
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_layout_follows_the_input(self, channels_last):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        z, weight, add, bias = operands(torch.float32, requires_grad=False, **GEOMETRIES[2])
        z = z.to(memory_format=layout).requires_grad_()
        add.requires_grad_(), weight.requires_grad_()
        h, drive = conv_transpose2d_add_act(
            z, weight, add, bias, activation="relu", return_drive=True, **GEOMETRIES[2]
        )
        grads = torch.autograd.grad(h.sum() + drive.sum(), (z, add))
        for tensor in (h, drive, *grads):
            assert tensor.is_contiguous(memory_format=layout)

    def test_saves_only_inputs_and_output(self):
        z, weight, add, bias, gate = operands(torch.float32, gate=True, **GEOMETRIES[0])
        saved, h = saved_by(
            lambda: conv_transpose2d_add_act(
                z, weight, add, bias, gate=gate, activation="tanh", **GEOMETRIES[0]
            )
        )
        assert saved == {z.data_ptr(), weight.data_ptr(), gate.data_ptr(), h.data_ptr()}
        saved, h = saved_by(lambda: conv_transpose2d_add_act(z, weight, add, bias, **GEOMETRIES[0]))
        assert saved == {z.data_ptr(), weight.data_ptr()}

    @pytest.mark.parametrize("threads", [1, 2])
    def test_same_bits_from_run_to_run(self, threads):
        torch.set_num_threads(threads)
        z = torch.randn(9, 32, 15, 16, requires_grad=True)
        weight = torch.randn(32, 16, 3, 3, requires_grad=True)
        bias = torch.randn(16, requires_grad=True)

        def run():
            h = conv_transpose2d_add_act(z, weight, None, bias, stride=2, padding=1, activation="tanh")
            return h, *torch.autograd.grad(h.square().sum(), (z, weight, bias))

        first = run()
        for _ in range(4):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("where", ["source", "weight", "add", "bias", "grad"])
    def test_not_finite_as_eager(self, where, activation, value):
        for gated in (False, True):
            geometry = {"stride": 2, "padding": 1} if gated else {"stride": 1, "padding": 0}
            z, weight, add, bias = operands(torch.float32, requires_grad=False, **geometry)
            if gated:
                geometry["gate"] = torch.randn_like(add)
            tensors = {"source": z, "weight": weight, "add": add, "bias": bias, "grad": torch.randn_like(add)}
            tensors[where].view(-1)[tensors[where].numel() // 2] = value
            check_not_finite(conv_transpose2d_add_act, tensors, where, activation=activation, **geometry)

    # Enough channels for an algorithm that adds inputs before it multiplies them.
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("where", ["source", "weight", "add", "bias", "grad"])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_not_finite_as_eager_with_many_channels(self, stride, where, value):
        geometry = {"stride": stride, "padding": 1, "output_size": (12, 11)}
        source = torch.randn(1, 33, 12 // stride, (10 + stride) // stride)
        weight = torch.randn(33, 34, 3, 3)
        add = torch.randn_like(conv_transpose2d_add_act(source, weight, impl="reference", **geometry))
        tensors = {"source": source, "weight": weight, "add": add, "bias": torch.randn(add.shape[1])}
        tensors["grad"] = torch.randn_like(add)
        tensors[where].view(-1)[tensors[where].numel() // 2] = value
        check_not_finite(conv_transpose2d_add_act, tensors, where, activation="leaky_relu", **geometry)
