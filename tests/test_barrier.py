"""Barrier functions: against quadrature of the inverse, and at the ends of the range."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from lmser.models.barrier import barrier, inside, inverse
from lmser_kernels import activation as activations

CASES = {
    "identity": ("identity", None, (-3.0, -0.4, 0.0, 0.7, 2.5)),
    "tanh": ("tanh", None, (-0.999, -0.3, 0.0, 1e-4, 0.5, 0.97)),
    "sigmoid": ("sigmoid", None, (0.001, 0.2, 0.5, 0.9, 0.9999)),
    "leaky_sigmoid": ("leaky_sigmoid", None, (-4.0, -1.2, -1.0, -0.3, 0.0, 0.8, 1.0, 1.01, 3.0)),
    "steep leaky_sigmoid": ("leaky_sigmoid", 1.7, (-4.0, -1.2, 0.3, 3.0)),
    "leaky_relu": ("leaky_relu", 0.1, (-0.4, -0.01, 0.0, 0.7, 2.5)),
}


def root(value: float, activation: str, slope: float | None) -> float:
    """`f⁻¹` by bracketing: nothing of the formulas under test."""

    def f(z: float) -> float:
        return float(activations.apply(torch.tensor(z, dtype=torch.float64), activation, slope)) - value

    return brentq(f, -60, 60, xtol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_inverse(case):
    activation, slope, points = CASES[case]
    x = torch.tensor(points, dtype=torch.float64)
    z = inverse(x, activation, slope)
    torch.testing.assert_close(activations.apply(z, activation, slope), x)
    torch.testing.assert_close(z, torch.tensor([root(p, activation, slope) for p in points], dtype=x.dtype))


@pytest.mark.parametrize("case", CASES)
def test_barrier_is_the_integral_of_the_inverse(case):
    activation, slope, points = CASES[case]
    got = barrier(torch.tensor(points, dtype=torch.float64), activation, slope)
    for value, point in zip(got.tolist(), points, strict=True):
        kinks = [k for k in (-1.0, 1.0) if min(0, point) < k < max(0, point)]

        def integrand(xi: float) -> float:
            return float(inverse(torch.tensor(xi, dtype=torch.float64), activation, slope))

        expected, error = quad(integrand, 0, point, points=kinks or None, epsabs=1e-12, epsrel=1e-12)
        assert abs(value - expected) < 1e-9 + 10 * error


def test_leaky_sigmoid_as_printed():
    """004 Sect. 3.3: the branches below -1 and above 1."""
    alpha, x = 0.2, torch.tensor([-3.0, -1.5, 1.5, 3.0], dtype=torch.float64)
    printed = torch.where(
        x < 0,
        (x**2 + (1 - alpha) * (1 + 2 * x)) / (2 * alpha),
        (x**2 + (1 - alpha) * (1 - 2 * x)) / (2 * alpha),
    )
    torch.testing.assert_close(barrier(x, "leaky_sigmoid", alpha), printed)


@pytest.mark.parametrize("case", CASES)
def test_derivative_is_the_inverse(case):
    activation, slope, points = CASES[case]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(barrier(x, activation, slope).sum(), x)
    torch.testing.assert_close(grad, inverse(x.detach(), activation, slope), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_of_the_range(dtype):
    x = torch.tensor([-1.0, 1.0, -1.5, 1.0 + 1e-3], dtype=dtype)
    log2 = math.log(2)
    torch.testing.assert_close(barrier(x), torch.tensor([log2, log2, math.inf, math.inf], dtype=dtype))
    torch.testing.assert_close(inverse(x)[:2], torch.tensor([-math.inf, math.inf], dtype=dtype))
    assert inverse(x)[2:].isnan().all()
    unit = torch.tensor([0.0, 1.0, -0.1, 1.1], dtype=dtype)
    torch.testing.assert_close(
        barrier(unit, "sigmoid"), torch.tensor([0.0, 0.0, math.inf, math.inf], dtype=dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_inside_moves_only_what_was_rounded_onto_an_end(dtype, activation):
    one = np.ones((), dtype=np.float32 if dtype == torch.float32 else np.float64)
    below = float(np.nextafter(one, -one))
    x = torch.tensor([1.0, below, 0.3], dtype=dtype)
    got = inside(x, activation)
    assert got.tolist() == [below, below, x[2].item()]
    assert inverse(got, activation).isfinite().all()
    low = inside(torch.tensor([-1.0 if activation == "tanh" else 0.0], dtype=dtype), activation)
    assert inverse(low, activation).isfinite().all()


@pytest.mark.parametrize(
    ("activation", "slope", "match"),
    [
        ("relu", None, "activation: expected one that has an inverse .* got 'relu'"),
        ("leaky_relu", 0.0, "activation: expected one that has an inverse .* got 'leaky_relu'"),
        ("elu", None, "activation must be one of"),
        ("tanh", 0.1, "slope is for"),
    ],
)
@pytest.mark.parametrize("function", [barrier, inverse])
def test_refuses(function, activation, slope, match):
    with pytest.raises(ValueError, match=match):
        function(torch.zeros(2), activation, slope)
