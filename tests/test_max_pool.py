"""`max_pool2d_act` and `max_unpool2d`: values and gradients of any order, layouts, windows, special values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import FUSED, examples, randn
from tied_conv_cases import DTYPES, LAYOUTS, laid_out, saved_by, wide
from torch.autograd import gradcheck, gradgradcheck

from lmser_kernels import activation as activations
from lmser_kernels import max_pool2d_act, max_unpool2d, nn, reference

pytestmark = pytest.mark.operators


@st.composite
def calls(draw):
    dtype = draw(st.sampled_from(DTYPES))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(2))
    stride = draw(st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4))))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [draw(st.integers(max(1, k - 2 * p), 13)) for k, p in zip(kernel, padding, strict=True)]
    shape = (draw(st.sampled_from([2, 1, 3, 0])), draw(st.integers(1, 40)), *size)
    generator = torch.Generator("cpu").manual_seed(draw(st.integers(0, 2**32)))
    x = laid_out(shape, draw(st.sampled_from(LAYOUTS)), generator, dtype)
    activation = draw(st.sampled_from(activations.ACTIVATIONS))
    slope = draw(st.sampled_from([None, 0.05])) if activation in activations.DEFAULT_SLOPES else None
    return x, (kernel, stride, padding), {"activation": activation, "slope": slope}, generator


@pytest.mark.native
class TestOracle:
    @settings(max_examples=examples(200))
    @given(call=calls())
    def test_values_places_and_gradients(self, call):
        x, windows, keywords, generator = call
        h, places = max_pool2d_act(x, *windows, return_places=True, impl=FUSED, **keywords)
        want, where = reference.max_pool2d_act(wide(x), *windows, return_places=True, **keywords)
        assert h.dtype == x.dtype
        tolerance = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 1e-6}.get(x.dtype, 1e-14)
        torch.testing.assert_close(h.double(), want.double(), rtol=tolerance, atol=tolerance)
        assert torch.equal(places, where)
        grad = randn(h.shape, generator, h.dtype)
        (got,) = torch.autograd.grad(h, x, grad)
        # f' is read off the result itself, so that a value that rounding carried over a kink is no error.
        pre = wide(grad) * activations.derivative(wide(h), keywords["activation"], keywords["slope"])
        size = (x.shape[2], x.shape[3])
        back = reference.max_unpool2d(pre, where, *windows, output_size=size)
        torch.testing.assert_close(got.double(), back.double(), rtol=4 * tolerance, atol=4 * tolerance)

    @settings(max_examples=examples(100))
    @given(call=calls())
    def test_unpool(self, call):
        x, windows, _, generator = call
        _, places = max_pool2d_act(x, *windows, return_places=True)
        z = randn(places.permute(0, 3, 1, 2).shape, generator, x.dtype)
        size = (x.shape[2], x.shape[3])
        got = max_unpool2d(z, places, *windows, output_size=size, impl=FUSED)
        want = reference.max_unpool2d(wide(z), places, *windows, output_size=size)
        tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 1e-5}.get(x.dtype, 1e-13)
        torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def spread(*shape):
    """Values far apart, so that finite differences change no winner."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count, dtype=torch.float64).view(shape) / count - 0.45).requires_grad_()


class TestDerivatives:
    @pytest.mark.many_calls
    @pytest.mark.parametrize("activation", activations.ACTIVATIONS)
    def test_first_and_second(self, impl, activation):
        def call(x):
            return max_pool2d_act(x, (3, 2), (2, 1), (1, 1), activation=activation, impl=impl)

        assert gradcheck(call, spread(2, 2, 5, 4))
        assert gradgradcheck(call, spread(2, 2, 5, 4))

    @pytest.mark.many_calls
    def test_of_unpool(self, impl):
        x = spread(2, 2, 5, 4)
        h, places = max_pool2d_act(x, 3, 2, 1, return_places=True, impl=impl)

        def call(z):
            return max_unpool2d(z, places, 3, 2, 1, output_size=(5, 4), impl=impl)

        z = torch.randn_like(h).requires_grad_()
        assert gradcheck(call, z)
        assert gradgradcheck(call, z)

    def test_unpool_is_the_transpose_of_pooling(self, impl):
        """What 003 Eq. (6) asks of it: (d pool / dx)^T z."""
        x = spread(2, 3, 7, 7)
        h, places = max_pool2d_act(x, 3, 2, return_places=True, impl=impl)
        z = torch.randn_like(h)
        (want,) = torch.autograd.grad(F.max_pool2d(x, 3, 2), x, z)
        torch.testing.assert_close(max_unpool2d(z, places, 3, 2, output_size=7, impl=impl), want)

    def test_places_that_are_none(self, impl):
        """Beyond the window, or on the padding around the map: left out, never written elsewhere."""
        z = torch.ones(1, 1, 3, 3)
        for place, left in ((0, 4), (3, 9), (4, 0), (255, 0)):
            places = torch.full((1, 3, 3, 1), place, dtype=torch.uint8)
            u = max_unpool2d(z, places, 2, 2, 1, output_size=5, impl=impl)
            assert float(u.sum()) == left

    def test_a_long_signal(self, impl):
        """Longer than what the kernels take for a window or a stride."""
        x = torch.randn(1, 1, 1, (1 << 20) + 10, requires_grad=True)
        h = max_pool2d_act(x, (1, 64), impl=impl)
        (grad,) = torch.autograd.grad(h.sum(), x)
        assert int(grad.sum()) == h.numel()

    def test_windows_of_255_places(self, impl):
        x = torch.arange(2 * 510.0).view(1, 2, 510, 1)
        for values, kernel in ((x, (255, 1)), (x.mT, (1, 255))):
            h, places = max_pool2d_act(values, kernel, return_places=True, impl=impl)
            assert h.flatten().tolist() == [254, 509, 764, 1019]
            assert bool((places == 254).all())


@pytest.mark.native
class TestCompiled:
    def test_layout_follows_the_first(self):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 3, 8, 6).to(memory_format=layout).requires_grad_()
            h = max_pool2d_act(x, 2, activation="relu")
            (grad,) = torch.autograd.grad(h, x, torch.ones_like(h))
            assert h.is_contiguous(memory_format=layout)
            assert grad.is_contiguous(memory_format=layout)

    def test_saves_places_and_output(self):
        x = torch.randn(2, 3, 8, 6, requires_grad=True)
        saved, h = saved_by(lambda: max_pool2d_act(x, 2, activation="relu"))
        assert h.data_ptr() in saved
        assert x.data_ptr() not in saved
        assert len(saved) == 2
        saved, h = saved_by(lambda: max_pool2d_act(x, 2))
        assert len(saved) == 1
        assert h.data_ptr() not in saved

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_not_finite_as_eager(self, value):
        x = torch.randn(1, 2, 6, 6)
        x[0, 0, :2, :2] = value
        x[0, 1, 2, 3] = value
        found = []
        for impl in (FUSED, "reference"):
            leaf = x.clone().requires_grad_()
            h, places = max_pool2d_act(leaf, 2, activation="relu", return_places=True, impl=impl)
            grad = torch.full_like(h, torch.inf)
            found.append((h.detach(), places, torch.autograd.grad(h, leaf, grad)[0]))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, equal_nan=True)

    def test_equal_at_any_thread_count(self):
        x = torch.randn(5, 33, 41, 37).requires_grad_()
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                h = max_pool2d_act(x, 3, 2, 1, activation="leaky_relu")
                found.append((h.detach(), torch.autograd.grad(h, x, torch.ones_like(h))[0]))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))

    def test_compile(self):
        x = torch.randn(2, 3, 8, 6, requires_grad=True)

        def call(x):
            h, places = max_pool2d_act(x, 2, activation="relu", return_places=True)
            return max_unpool2d(h, places, 2, output_size=(8, 6))

        got = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(got, call(x))


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"kernel_size": 16}, ValueError, "at most 255 places"),
            ({"padding": 2}, ValueError, "at most half of kernel_size"),
            ({"kernel_size": 9}, ValueError, "larger than the padded input"),
            ({"x": torch.zeros(3, 4, 5)}, ValueError, "x must be 4-D"),
            ({"x": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, TypeError, "x must be float32"),
            ({"stride": 0}, ValueError, "stride must be at least 1"),
            (
                {"x": torch.zeros(1, 2, 0, 4), "kernel_size": 2, "padding": 1},
                ValueError,
                r"at least one pixel; got a map of \(0, 4\)",
            ),
            ({"stride": 1 << 20, "impl": FUSED}, RuntimeError, "stride is .* at most 1048575"),
            ({"activation": "gelu"}, ValueError, "activation must be one of"),
        ],
    )
    def test_pool(self, change, error, words):
        with pytest.raises(error, match=words):
            max_pool2d_act(**{"x": torch.zeros(1, 1, 8, 8), "kernel_size": 3, **change})

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"output_size": 10}, ValueError, "must be the size of z"),
            ({"places": torch.zeros(1, 4, 4, 1)}, TypeError, "places must be a uint8 tensor"),
            ({"places": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, ValueError, "places must have"),
        ],
    )
    def test_unpool(self, change, error, words):
        given = {
            "z": torch.zeros(1, 1, 4, 4),
            "places": torch.zeros(1, 4, 4, 1, dtype=torch.uint8),
            "kernel_size": 2,
            "output_size": 8,
        }
        max_unpool2d(**given)
        with pytest.raises(error, match=words):
            max_unpool2d(**{**given, **change})


def test_layer():
    layer = nn.MaxPool2dAct(3, 2, 1, "leaky_relu", 0.1)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(layer(x), F.leaky_relu(F.max_pool2d(x, 3, 2, 1), 0.1))
    assert (
        repr(layer)
        == "MaxPool2dAct((3, 3), stride=(2, 2), padding=(1, 1), activation='leaky_relu', slope=0.1)"
    )
    assert nn.MaxPool2dAct(2).stride == (2, 2)
