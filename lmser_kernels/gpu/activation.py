"""The activations in Triton: forward, and the derivative read off the output (csrc/activation.h, activation.py).

`ACT` is the activation's name and `SLOPE` its leak, both compile-time constants: a scalar argument would reach the kernel
in float32, or in float64 from a compiler, whatever the sum is made in, while a constant takes the type of what it meets.
Arguments are float32 or float64: kernels widen half precision before they call.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(z):
    # Of an argument that is never positive, exp does not overflow.
    small = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


@triton.jit
def tanh(z):
    # tanh |z| = (1 - e) / (1 + e) with e = exp(-2 |z|) loses digits near 0, where the series takes over.
    size = tl.abs(z)
    e = tl.exp(-2.0 * size)
    wide = (1.0 - e) / (1.0 + e)
    if z.dtype == tl.float64:
        # |z| < 0.1: the terms beyond z^19 are below 1e-18 of the first.
        s = z * z
        series = tanh_series(s)
        near = size * (1.0 + s * series)
        wide = tl.where(size < 0.1, near, wide)
    else:
        s = z * z
        near = size * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
        wide = tl.where(size < 0.25, near, wide)
    return tl.where(z < 0, -wide, wide)


@triton.jit
def tanh_series(s):
    t = s * 0.0 + (-443861162.0 / 1856156927625.0)
    t = t * s + 6404582.0 / 10854718875.0
    t = t * s - 929569.0 / 638512875.0
    t = t * s + 21844.0 / 6081075.0
    t = t * s - 1382.0 / 155925.0
    t = t * s + 62.0 / 2835.0
    t = t * s - 17.0 / 315.0
    t = t * s + 2.0 / 15.0
    return t * s - 1.0 / 3.0


@triton.jit
def activate(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """`f(z)`; NaN stays NaN."""
    if ACT == "relu":
        return tl.where(z <= 0, 0.0, z)
    elif ACT == "leaky_relu":
        return tl.where(z > 0, z, z * SLOPE)
    elif ACT == "sigmoid":
        return sigmoid(z)
    elif ACT == "tanh":
        return tanh(z)
    elif ACT == "leaky_sigmoid":
        return tl.where(z > 1, SLOPE * (z - 1.0) + 1.0, tl.where(z < -1, SLOPE * (z + 1.0) - 1.0, z))
    else:
        return z


@triton.jit
def pull_back(grad, h, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """`grad · f'(z)` with `h = f(z)`; relu selects: 0 even for an infinite `grad`."""
    if ACT == "relu":
        return tl.where(h <= 0, 0.0, grad)
    elif ACT == "leaky_relu":
        return tl.where(h > 0, grad, grad * SLOPE)
    elif ACT == "sigmoid":
        return grad * (h * (1.0 - h))
    elif ACT == "tanh":
        return grad * (1.0 - h * h)
    elif ACT == "leaky_sigmoid":
        return tl.where(tl.abs(h) > 1, grad * SLOPE, grad)
    else:
        return grad
