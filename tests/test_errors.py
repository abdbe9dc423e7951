"""Bad arguments: the right exception, naming the argument, what came and what was expected."""

from __future__ import annotations

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lmser_kernels import _library, add_act, conv2d_add_act, conv_transpose2d_add_act, dispatch, tied_conv2d

X, W, Z = torch.zeros(2, 3, 9, 8), torch.zeros(5, 3, 3, 3), torch.zeros(2, 5, 4, 4)


def up(*args, **keywords):
    return lambda impl: conv2d_add_act(*args, impl=impl, **keywords)


def down(*args, **keywords):
    return lambda impl: conv_transpose2d_add_act(*args, impl=impl, **keywords)


def both(*args, **keywords):
    return lambda impl: tied_conv2d(*args, impl=impl, **keywords)


def add(*args, **keywords):
    return lambda impl: add_act(*args, impl=impl, **keywords)


CALLS = {
    "x not a tensor": (up([1.0], W), TypeError, "x must be a tensor; got list"),
    "add not a tensor": (up(X, W, 1.0), TypeError, "add must be a tensor; got float"),
    "x of integers": (up(X.long(), W.long()), TypeError, "x must be float32, .*; got torch.int64"),
    "x complex": (up(X.cfloat(), W), TypeError, "x must be float32, .*; got torch.complex64"),
    "weight of another dtype": (
        up(X, W.double()),
        TypeError,
        "weight must have the dtype of x, torch.float32; got torch.float64",
    ),
    "bias of another dtype": (
        up(X, W, None, torch.zeros(5).half()),
        TypeError,
        "bias must have the dtype of x",
    ),
    "gate of booleans": (
        down(Z, W, gate=torch.ones(2, 3, 6, 6, dtype=torch.bool)),
        TypeError,
        "gate must have the dtype of z",
    ),
    "weight on another device": (
        up(X, W.to("meta")),
        ValueError,
        "weight must be on the device of x, cpu; got meta",
    ),
    "x of three dimensions": (
        up(X[0], W),
        ValueError,
        r"x must be 4-D, \(N, C_in, H, W\); got shape \(3, 9, 8\)",
    ),
    "weight of two dimensions": (up(X, W[0, 0]), ValueError, r"weight must be 4-D, .*; got shape \(3, 3\)"),
    "weight empty": (
        up(X[:, :0], W[:, :0]),
        ValueError,
        r"weight must not be empty; got shape \(5, 0, 3, 3\)",
    ),
    "channels": (
        up(X[:, :2], W),
        ValueError,
        r"x must have the weight's C_in = 3 channels; got x \(2, 2, 9, 8\) with weight \(5, 3, 3, 3\)",
    ),
    "kernel too large": (
        up(X[:, :, :2], W),
        ValueError,
        r"kernel must not be larger than the padded input; got \(3, 3\) with input \(2, 8\)",
    ),
    "pool too large": (up(X, W, pool=10), ValueError, r"x must be at least as large as the pool \(10, 10\)"),
    "add of another shape": (
        up(X, W, torch.zeros(2, 5, 7, 7)),
        ValueError,
        r"add must have the output's shape, \(2, 5, 7, 6\); got \(2, 5, 7, 7\)",
    ),
    "add to be broadcast": (
        up(X, W, torch.zeros(1, 5, 7, 6)),
        ValueError,
        "add must have the output's shape",
    ),
    "add without batch": (up(X, W, torch.zeros(5, 7, 6)), ValueError, "add must have the output's shape"),
    "bias of another length": (
        up(X, W, None, torch.zeros(3)),
        ValueError,
        r"bias must have one value per channel of .*, shape \(5,\); got \(3,\)",
    ),
    "bias of four dimensions": (
        up(X, W, None, torch.zeros(1, 5, 1, 1)),
        ValueError,
        r"shape \(5,\); got \(1, 5, 1, 1\)",
    ),
    "stride of three": (
        up(X, W, stride=(1, 1, 1)),
        TypeError,
        r"stride must be an int or a pair of ints; got \(1, 1",
    ),
    "stride a float": (up(X, W, stride=2.0), TypeError, "stride must be an int or a pair of ints; got 2.0"),
    "stride a boolean": (
        up(X, W, stride=True),
        TypeError,
        "stride must be an int or a pair of ints; got True",
    ),
    "stride zero": (up(X, W, stride=0), ValueError, "stride must be at least 1; got 0"),
    "padding negative": (up(X, W, padding=(0, -1)), ValueError, r"padding must be at least 0; got \(0, -1\)"),
    "padding a word": (
        up(X, W, padding="same"),
        TypeError,
        "padding must be an int or a pair of ints; got 'same'",
    ),
    "pool zero": (up(X, W, pool=0), ValueError, "pool must be at least 1; got 0"),
    "activation unknown": (
        up(X, W, activation="gelu"),
        ValueError,
        "activation must be one of .* got 'gelu'",
    ),
    "slope of relu": (up(X, W, activation="relu", slope=0.1), ValueError, "slope is for leaky_relu"),
    "z channels": (
        down(X, W),
        ValueError,
        r"z must have the weight's C_out = 5 channels; got z \(2, 3, 9, 8\) with weight \(5, 3, 3, 3\)",
    ),
    "z empty": (down(Z[:, :, :0], W), ValueError, "z must not have an empty height or width"),
    "z of three dimensions": (down(Z[0], W), ValueError, "z must be 4-D"),
    "upsample zero": (down(Z, W, upsample=(1, 0)), ValueError, r"upsample must be at least 1; got \(1, 0\)"),
    "output_size out of reach": (
        down(Z, W, stride=2, padding=1, output_size=9),
        ValueError,
        r"output_size .* must be from \(7, 7\) to \(8, 8\) for z \(2, 5, 4, 4\) .*; got \(9",
    ),
    "output_size too small": (down(Z, W, output_size=(6, 5)), ValueError, r"from \(6, 6\) to \(6, 6\)"),
    "output_size a float": (down(Z, W, output_size=6.0), TypeError, "output_size must be an int or a pair"),
    "nothing left": (down(Z, W, padding=3), ValueError, r"padding \(3, 3\) leaves nothing of the output"),
    "gate_slope below zero": (
        down(Z, W, gate_slope=-0.1),
        ValueError,
        "gate_slope must be finite and not negative",
    ),
    "gate_slope of text": (down(Z, W, gate_slope="0.1"), TypeError, "gate_slope must be a number"),
    "gate_slope with tanh": (
        down(Z, W, gate_slope=0.1, activation="tanh"),
        ValueError,
        "gate_slope must be 0 with activation 'tanh'",
    ),
    "gate of another shape": (
        down(Z, W, upsample=2, gate=torch.zeros(2, 3, 6, 6)),
        ValueError,
        r"gate must have the output's shape, \(2, 3, 12, 12\); got \(2, 3, 6, 6\)",
    ),
    "bias of the other side": (down(Z, W, None, torch.zeros(5)), ValueError, r"shape \(3,\); got \(5,\)"),
    "z not the convolution's shape": (
        both(X, Z, W),
        ValueError,
        r"z must have the shape of the convolution of x, \(2, 5, 7, 6\); got \(2, 5, 4, 4\)",
    ),
    "tied on another dtype": (both(X, Z.double(), W), TypeError, "z must have the dtype of x"),
    "y of three dimensions": (add(X[0], X[0]), ValueError, "y must be 4-D"),
    "u of another shape": (
        add(X, X[:1]),
        ValueError,
        r"u must have the shape of y, \(2, 3, 9, 8\); got \(1, 3, 9, 8\)",
    ),
    "bias of y": (add(X, X, torch.zeros(8)), ValueError, r"per channel of y, shape \(3,\); got \(8,\)"),
    "y missing": (add(None), TypeError, "y must be a tensor; got NoneType"),
    "weight missing": (up(X, None), TypeError, "weight must be a tensor; got NoneType"),
}


@pytest.mark.parametrize(("call", "error", "match"), CALLS.values(), ids=CALLS)
def test_named(impl, call, error, match):
    with pytest.raises(error, match=match):
        call(impl)


class TestImplementations:
    def test_unknown(self):
        with pytest.raises(
            ValueError, match="impl must be one of auto, native, triton, reference; got 'cuda'"
        ):
            conv2d_add_act(X, W, impl="cuda")

    @pytest.mark.parametrize(
        ("name", "call"),
        [
            ("conv2d_add_act", up(X, W)),
            ("conv_transpose2d_add_act", down(Z, W)),
            ("tied_conv2d", both(X, torch.zeros(2, 5, 7, 6), W)),
            ("add_act", add(X)),
        ],
    )
    def test_triton_does_not_fall_back(self, name, call, monkeypatch):
        monkeypatch.setattr(dispatch, "_interpreting", lambda: False)
        with pytest.raises(
            RuntimeError, match='impl="triton": Triton kernels take CUDA tensors, and CPU tensors'
        ):
            call("triton")

    @pytest.mark.native
    def test_a_gpu_before_ampere_takes_the_reference(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a T4")
        dispatch._before_ampere.cache_clear()
        with FakeTensorMode():
            there = torch.empty(2, 3, 4, 4, device="cuda:0")
            assert dispatch.chosen("add_act", "auto", there) is None
            why = r"for GPUs of capability 8.0 \(Ampere\) and later; a T4 has 7.5"
            assert re.search(why, dispatch.reason("add_act", "auto", there))
            with pytest.raises(RuntimeError, match=f'impl="triton": .* {why}'):
                dispatch.chosen("add_act", "triton", there)
        dispatch._before_ampere.cache_clear()

    def test_triton_that_is_missing_says_so(self, monkeypatch):
        monkeypatch.setattr(_library, "triton_error", "Triton is not installed")
        with pytest.raises(RuntimeError, match='impl="triton": Triton is not installed'):
            add_act(X, impl="triton")

    @pytest.mark.native
    def test_native_does_not_fall_back_on_another_device(self):
        with pytest.raises(
            RuntimeError, match='impl="native": no compiled kernel of add_act for meta tensors'
        ):
            add_act(X.to("meta"), impl="native")

    def test_auto_takes_the_reference_on_another_device(self):
        assert conv2d_add_act(X.to("meta"), W.to("meta"), stride=2).shape == (2, 5, 4, 3)

    def test_cuda_takes_the_kernels_that_there_are(self, monkeypatch):
        monkeypatch.setattr(_library, "available", True)
        monkeypatch.setattr(_library, "cuda_operators", frozenset({"settle"}))
        with FakeTensorMode():
            on_cuda = torch.empty(1, device="cuda")
        assert dispatch.chosen("settle", "native", on_cuda) is dispatch.compiled
        with pytest.raises(RuntimeError, match="no compiled kernel of tied_conv2d for cuda tensors"):
            dispatch.chosen("tied_conv2d", "native", on_cuda)
        monkeypatch.setattr(_library, "triton_error", None)
        assert dispatch.chosen("settle", "auto", on_cuda) is dispatch.compiled
        assert dispatch.chosen("tied_conv2d", "auto", on_cuda) is dispatch.triton
        assert dispatch.chosen("tied_conv2d", "triton", on_cuda) is dispatch.triton
        monkeypatch.setattr(_library, "triton_error", "Triton is not installed")
        assert dispatch.chosen("tied_conv2d", "auto", on_cuda) is None

    def test_native_without_the_library_says_why(self, monkeypatch):
        monkeypatch.setattr(_library, "available", False)
        monkeypatch.setattr(_library, "error", "it was not compiled")
        with pytest.raises(RuntimeError, match='impl="native": it was not compiled'):
            conv2d_add_act(X, W, impl="native")
        assert conv2d_add_act(X, W).shape == (2, 5, 7, 6)


@pytest.mark.native
class TestOperators:
    """The operators themselves, called past the Python checks, refuse too rather than read astray."""

    @pytest.mark.parametrize(
        ("name", "args", "match"),
        [
            (
                "conv2d_add_act",
                (X, W[:, :2], None, None, (1, 1), (0, 0), (1, 1), "relu", 0.0, False),
                "channels",
            ),
            ("conv2d_add_act", (X, W, Z, None, (1, 1), (0, 0), (1, 1), "relu", 0.0, False), "add has shape"),
            ("conv2d_add_act", (X, W, None, None, (0, 1), (0, 0), (1, 1), "relu", 0.0, False), "stride"),
            (
                "conv2d_add_act",
                (X, W, None, None, (1,), (0, 0), (1, 1), "relu", 0.0, False),
                "stride has 1 values",
            ),
            (
                "conv2d_add_act",
                (X, W, None, None, (1, 1), (0, 0), (1, 1), "gelu", 0.0, False),
                "activation is 'gelu'",
            ),
            (
                "conv2d_add_act",
                (X, W.double(), None, None, (1, 1), (0, 0), (1, 1), "relu", 0.0, False),
                "dtypes",
            ),
            (
                "conv2d_add_act",
                (X.long(), W, None, None, (1, 1), (0, 0), (1, 1), "relu", 0.0, False),
                "dtypes|float",
            ),
            (
                "conv_transpose2d_add_act",
                (Z, W, None, None, None, (1, 1), (0, 0), (9, 9), (1, 1), "relu", 0.0, False),
                "output_size",
            ),
            (
                "conv2d_add_act_backward",
                (None, None, X, X, W, (1, 1), (0, 0), (1, 1), "relu", 0.0, [True] * 4),
                "h has shape|missing",
            ),
            ("tied_conv2d", (X, Z, W, (1, 1), (0, 0)), "z has shape"),
            ("tied_conv2d_weight_grad", (X, Z, None, None, (3, 3), (1, 1), (0, 0)), "grad_y has shape"),
            ("add_act", (X, Z, None, "relu", 0.0), "u has shape"),
            ("add_act_backward", (X, Z, "relu", 0.0, True), "grad has shape"),
        ],
    )
    def test_refuse(self, name, args, match):
        with pytest.raises(RuntimeError, match=match):
            getattr(torch.ops.lmser, name)(*args)
