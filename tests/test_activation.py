"""Each activation against its equation, its derivative from the output against autograd's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmser_kernels import activation as activations

SLOPES = [(name, slope) for name in activations.ACTIVATIONS for slope in (None, 0.3)]
SLOPES = [(name, slope) for name, slope in SLOPES if slope is None or name in activations.DEFAULT_SLOPES]


def equation(name: str, slope: float | None, z: torch.Tensor) -> torch.Tensor:
    if name == "leaky_sigmoid":
        alpha = 0.2 if slope is None else slope
        middle = z.clamp(-1, 1)
        return middle + alpha * (z - middle)
    return {
        "identity": z,
        "relu": F.relu(z),
        "leaky_relu": F.leaky_relu(z, 0.01 if slope is None else slope),
        "sigmoid": torch.sigmoid(z),
        "tanh": torch.tanh(z),
    }[name]


@pytest.mark.parametrize(("name", "slope"), SLOPES)
def test_forward_is_the_equation(name, slope):
    z = torch.linspace(-4, 4, 401, dtype=torch.float64)
    torch.testing.assert_close(activations.apply(z, name, slope), equation(name, slope, z))


@pytest.mark.parametrize(("name", "slope"), SLOPES)
def test_derivative_from_the_output_is_autograd(name, slope):
    z = torch.linspace(-4.013, 4.017, 401, dtype=torch.float64, requires_grad=True)
    h = activations.apply(z, name, slope)
    (expected,) = torch.autograd.grad(h.sum(), z)
    torch.testing.assert_close(activations.derivative(h.detach(), name, slope), expected)
    grad = torch.randn_like(z)
    torch.testing.assert_close(activations.pull_back(grad, h.detach(), name, slope), grad * expected)


@pytest.mark.parametrize(("name", "slope"), SLOPES)
def test_second_derivative_is_that_of_the_first(name, slope):
    h = torch.linspace(-0.99, 0.98, 50, dtype=torch.float64, requires_grad=True)
    first = activations.derivative(h, name, slope)
    expected = torch.zeros_like(h)
    if first.requires_grad:
        (expected,) = torch.autograd.grad(first.sum(), h)
    second = activations.second_derivative(h.detach(), name)
    torch.testing.assert_close(torch.zeros_like(h).detach() if second is None else second, expected)


@pytest.mark.parametrize(
    ("name", "at", "expected"),
    [
        ("relu", 0.0, 0.0),
        ("relu", -0.0, 0.0),
        ("leaky_relu", 0.0, 0.01),
        ("leaky_sigmoid", 1.0, 1.0),
        ("leaky_sigmoid", -1.0, 1.0),
    ],
)
def test_subgradient_at_a_kink(name, at, expected):
    z = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    h = activations.apply(z, name)
    (by_autograd,) = torch.autograd.grad(h.sum(), z)
    assert by_autograd.item() == expected
    assert activations.derivative(h.detach(), name).item() == expected


def test_relu_selects_where_the_gradient_is_not_finite():
    grad = torch.tensor([torch.inf, torch.nan, torch.inf])
    h = torch.tensor([0.0, 0.0, 1.0])
    assert activations.pull_back(grad, h, "relu").tolist() == [0.0, 0.0, torch.inf]


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_nan_stays_nan(name):
    assert torch.isnan(activations.apply(torch.tensor([torch.nan]), name)).all()


@pytest.mark.parametrize(
    ("name", "slope", "error", "match"),
    [
        ("elu", None, ValueError, "activation must be one of identity, .* got 'elu'"),
        (None, None, ValueError, "activation must be one of"),
        ("elu", 0.1, ValueError, "activation must be one of"),
        (
            "relu",
            0.1,
            ValueError,
            "slope is for leaky_relu and leaky_sigmoid only; got slope=0.1 with 'relu'",
        ),
        ("leaky_relu", -0.1, ValueError, "slope must be finite and not negative; got -0.1"),
        ("leaky_relu", float("nan"), ValueError, "slope must be finite"),
        ("leaky_relu", float("inf"), ValueError, "slope must be finite"),
        ("leaky_sigmoid", 0, ValueError, "slope of leaky_sigmoid must be positive"),
        ("leaky_sigmoid", "0.2", TypeError, "slope must be a number; got str"),
        ("leaky_sigmoid", True, TypeError, "slope must be a number; got bool"),
    ],
)
def test_bad_arguments_are_named(name, slope, error, match):
    with pytest.raises(error, match=match):
        activations.check(name, slope)


def test_defaults():
    assert activations.check("leaky_relu") == 0.01
    assert activations.check("leaky_sigmoid") == 0.2
    assert activations.check("tanh") == 0.0
    assert activations.check("leaky_relu", 0) == 0.0
