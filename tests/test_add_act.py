"""`add_act`: values and gradients of any order, layouts, special values, what it saves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import DEVICE, FUSED, examples, randn
from tied_conv_cases import DTYPES, LAYOUTS, close, higher_order, laid_out, saved_by, wide
from torch.autograd import gradcheck, gradgradcheck

from lmser_kernels import activation as activations
from lmser_kernels import add_act, reference

pytestmark = pytest.mark.operators


def operands(dtype=torch.float64):
    tensors = (
        torch.randn(2, 3, 4, 5, dtype=dtype),
        torch.randn(2, 3, 4, 5, dtype=dtype),
        torch.randn(3, dtype=dtype),
    )
    return tuple(t.requires_grad_() for t in tensors)


@st.composite
def calls(draw, dtypes=DTYPES):
    dtype = draw(st.sampled_from(dtypes))
    side = st.one_of(st.integers(1, 5), st.integers(1, 40))
    shape = (draw(st.sampled_from([2, 1, 3, 0])), draw(side), draw(side), draw(side))
    generator = torch.Generator("cpu").manual_seed(draw(st.integers(0, 2**32)))
    layouts = st.sampled_from(LAYOUTS)
    y, grad = (laid_out(shape, draw(layouts), generator, dtype) for _ in range(2))
    u = laid_out(shape, draw(layouts), generator, dtype) if draw(st.booleans()) else None
    bias = None
    if draw(st.booleans()):
        bias = randn((2 * shape[1],), generator, dtype)[::2].requires_grad_()
    activation = draw(st.sampled_from(activations.ACTIVATIONS))
    slope = draw(st.sampled_from([None, 0.05, 0.7])) if activation in activations.DEFAULT_SLOPES else None
    return y, u, bias, grad.detach(), {"activation": activation, "slope": slope}


def check(call, impl):
    y, u, bias, grad, keywords = call
    steps = 0 if impl != "reference" else 3
    h = add_act(y, u, bias, impl=impl, **keywords)
    assert h.dtype == y.dtype
    want = reference.add_act(wide(y), wide(u), wide(bias), **keywords)
    magnitude = sum(
        t if t.dim() == 4 else t.view(1, -1, 1, 1)
        for t in (wide(t).abs() for t in (y, u, bias) if t is not None)
    )
    close("h", h, want, magnitude, steps)
    inputs = {name: t for name, t in (("y", y), ("u", u), ("bias", bias)) if t is not None}
    got = dict(zip(inputs, torch.autograd.grad(h, list(inputs.values()), grad), strict=True))
    # f' is read off the result itself, so that a value that rounding carried over a kink is no error.
    pre = wide(grad) * activations.derivative(wide(h), keywords["activation"], keywords["slope"])
    size = wide(grad).abs()
    for name, gradient in got.items():
        if name == "bias":
            close(name, gradient, pre.sum((0, 2, 3)), size.sum((0, 2, 3)), steps + 1)
        else:
            close(name, gradient, pre, size, steps + 1)


class TestOracle:
    @pytest.mark.native
    @settings(max_examples=examples(200))
    @given(call=calls())
    def test_compiled(self, call):
        check(call, FUSED)

    # Where f' is taken from the input of f and not from its rounded output, only the wide types compare.
    @settings(max_examples=examples(40))
    @given(call=calls((torch.float32, torch.float64)))
    def test_reference(self, call):
        check(call, "reference")


class TestDerivatives:
    @pytest.mark.many_calls
    @pytest.mark.parametrize("activation", activations.ACTIVATIONS)
    def test_first_and_second(self, impl, activation):
        def call(*tensors):
            return add_act(*tensors, activation=activation, impl=impl)

        assert gradcheck(call, operands())
        assert gradgradcheck(call, operands())

    @pytest.mark.many_calls
    @pytest.mark.parametrize("activation", activations.ACTIVATIONS)
    def test_of_y_alone(self, impl, activation):
        y = operands()[0]
        assert gradcheck(lambda y: add_act(y, activation=activation, impl=impl), y)
        assert gradgradcheck(lambda y: add_act(y, activation=activation, impl=impl), y)

    @pytest.mark.native
    @pytest.mark.parametrize("activation", activations.ACTIVATIONS)
    def test_third(self, activation):
        inputs = operands()
        results = [
            higher_order(lambda *t, impl=impl: add_act(*t, activation=activation, impl=impl), inputs, 3)
            for impl in (FUSED, "reference")
        ]
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)

    @pytest.mark.many_calls
    def test_of_the_bias_alone(self, impl):
        y, u, bias = (t.detach() for t in operands())
        for activation in ("identity", "tanh"):
            assert gradcheck(
                lambda b, a=activation: add_act(y, u, b, activation=a, impl=impl), bias.requires_grad_()
            )


@pytest.mark.native
class TestCompiled:
    def test_layout_follows_the_first(self):
        y, u, bias = (t.detach() for t in operands(torch.float32))
        for layout in (torch.contiguous_format, torch.channels_last):
            first = y.to(memory_format=layout).requires_grad_()
            h = add_act(first, u, bias)
            (grad,) = torch.autograd.grad(h.sum(), first)
            assert h.is_contiguous(memory_format=layout)
            assert grad.is_contiguous(memory_format=layout)

    def test_saves_only_its_output(self):
        y, u, bias = operands(torch.float32)
        saved, h = saved_by(lambda: add_act(y, u, bias, activation="tanh"))
        assert saved == {h.data_ptr()}
        saved, _ = saved_by(lambda: add_act(y, u, bias, activation="identity"))
        assert saved == set()

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("activation", activations.ACTIVATIONS)
    def test_not_finite_as_eager(self, activation, value):
        y, u, bias = operands(torch.float32)
        for where in range(4):
            tensors = [
                y.detach().clone(),
                u.detach().clone(),
                bias.detach().clone(),
                torch.randn_like(y).detach(),
            ]
            tensors[where].view(-1)[1] = value
            *inputs, grad = tensors
            results = []
            for impl in (FUSED, "reference"):
                leaves = [t.clone().requires_grad_() for t in inputs]
                h = add_act(*leaves, activation=activation, impl=impl)
                results.append((h.detach(), *torch.autograd.grad(h, leaves, grad)))
            for got, want in zip(*results, strict=True):
                torch.testing.assert_close(got, want, equal_nan=True)

    @pytest.mark.parametrize(("activation", "eager"), [("sigmoid", torch.sigmoid), ("tanh", torch.tanh)])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
    def test_accurate_over_the_whole_range(self, activation, eager, dtype, tolerance):
        for reach in (1e-30, 1e-4, 1.0, 80.0):
            y = torch.linspace(-reach, reach, 20001, dtype=dtype).view(1, 1, 1, -1)
            got = add_act(y, activation=activation, impl=FUSED).double()
            want = eager(y.double())
            # A GPU makes exp(z) as 2^(z log2 e), whose exponent is rounded once: 2^-24 |z| of the result.
            rounded = 2**-23 * reach if DEVICE.type != "cpu" and dtype == torch.float32 else 0.0
            allowed = max(tolerance, 1e-6 if rounded else 0.0) + rounded
            torch.testing.assert_close(got, want, rtol=allowed, atol=0)
        ends = torch.tensor([-torch.inf, -1e4, 1e4, torch.inf], dtype=dtype).view(1, 1, 1, -1)
        assert torch.equal(add_act(ends, activation=activation, impl=FUSED), eager(ends))
