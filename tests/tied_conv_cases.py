"""Generated calls of the tied convolution, and their float64 oracle.

The oracle is the eager reference on the same numbers in float64. Its tolerance is not a guess: for each
result the same linear map of the absolute values bounds the rounding errors of any summation order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from implementations import FUSED, randn
from torch import Tensor

from lmser_kernels import activation as activations
from lmser_kernels import reference

LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "expanded")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Unit roundoff of a result, and of the sums that it is made of.
ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
SUM_ROUNDOFF = ROUNDOFF | {torch.bfloat16: 2.0**-24, torch.float16: 2.0**-24}
# float16 results below the normal range round to a fixed step.
SMALLEST_STEP = {
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-130,
    torch.float32: 2.0**-140,
    torch.float64: 2.0**-1000,
}


def laid_out(shape: tuple[int, ...], layout: str, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A random tensor of `shape` in one of `LAYOUTS`, needing a gradient."""
    n, c, h, w = shape

    def draw(*size: int) -> Tensor:
        return randn(size, generator, dtype)

    if layout == "channels_last":
        tensor = draw(n, c, h, w).to(memory_format=torch.channels_last)
    elif layout == "sliced":
        tensor = draw(n, c + 2, h + 3, 2 * w)[:, 1 : c + 1, 2 : h + 2, ::2]
    elif layout == "transposed":
        tensor = draw(n, c, w, h).transpose(2, 3)
    elif layout == "expanded":
        tensor = draw(1, c, 1, w).expand(n, c, h, w)
    else:
        tensor = draw(n, c, h, w)
    assert tensor.shape == shape
    return tensor.detach().requires_grad_()


@dataclass
class Case:
    """One call, `operation(source, weight, add, bias, **keywords)`, and the gradients that come back."""

    transposed: bool
    source: Tensor
    weight: Tensor
    add: Tensor | None
    bias: Tensor | None
    keywords: dict[str, Any]
    grad: Tensor
    grad_drive: Tensor | None

    @property
    def name(self) -> str:
        return "conv_transpose2d_add_act" if self.transposed else "conv2d_add_act"

    @property
    def inputs(self) -> dict[str, Tensor]:
        given = {"source": self.source, "weight": self.weight, "add": self.add, "bias": self.bias}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def linear_keywords(self) -> dict[str, Any]:
        return {
            k: v
            for k, v in self.keywords.items()
            if k not in ("activation", "slope", "gate", "gate_slope", "return_drive")
        }


@dataclass
class Edge:
    """The two layers that a weight joins: sizes of the big (convolved) and of the small side."""

    batch: int
    c_in: int
    c_out: int
    big: tuple[int, ...]
    small: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@st.composite
def edges(draw: st.DrawFn) -> Edge:
    """Any shape, small; one in three is a 3 by 3 kernel with the channels and sizes of a network's layer."""
    few = st.integers(1, 5)
    ordinary = draw(st.integers(0, 2)) == 0
    if ordinary:
        batch, channels, extra = draw(st.integers(1, 2)), st.integers(28, 70), st.integers(0, 22)
        kernel, stride = (3, 3), draw(st.sampled_from([(2, 2), (1, 1)]))
        padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    else:
        batch, channels = draw(st.sampled_from([2, 1, 3, 2, 1, 0])), st.one_of(few, st.integers(1, 40))
        extra = st.integers(0, 9)
        kernel, stride = draw(st.tuples(few, few)), draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        padding = draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    big = tuple(max(1, kernel[i] - 2 * padding[i]) + draw(extra) for i in (0, 1))
    small = tuple((big[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    return Edge(batch, draw(channels), draw(channels), big, small, kernel, stride, padding)


@st.composite
def cases(draw: st.DrawFn, transposed: bool, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Case:
    edge, dtype = draw(edges()), draw(st.sampled_from(dtypes))
    factor = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    batch, c_in, c_out, big, small = edge.batch, edge.c_in, edge.c_out, edge.big, edge.small
    generator = torch.Generator("cpu").manual_seed(draw(st.integers(0, 2**32)))
    layouts = st.sampled_from(LAYOUTS)
    weight = laid_out((c_out, c_in, *edge.kernel), draw(layouts), generator, dtype)
    keywords: dict[str, Any] = {"stride": edge.stride, "padding": edge.padding}
    if transposed:
        source = laid_out((batch, c_out, *small), draw(layouts), generator, dtype)
        keywords |= {"output_size": big, "upsample": factor, "spread": draw(st.booleans())}
        out = (batch, c_in, big[0] * factor[0], big[1] * factor[1])
    else:
        # What the pool leaves over is dropped.
        rest = [draw(st.integers(0, f - 1)) for f in factor]
        size = [big[i] * factor[i] + rest[i] for i in (0, 1)]
        source = laid_out((batch, c_in, *size), draw(layouts), generator, dtype)
        keywords |= {"pool": factor}
        out = (batch, c_out, *small)
    add = laid_out(out, draw(layouts), generator, dtype) if draw(st.booleans()) else None
    bias = None
    if draw(st.booleans()):
        bias = randn((2 * out[1],), generator, dtype)[::2].requires_grad_()
    keywords["activation"] = draw(st.sampled_from(activations.ACTIVATIONS))
    if keywords["activation"] in activations.DEFAULT_SLOPES:
        keywords["slope"] = draw(st.sampled_from([None, 0.05, 0.7]))
    if transposed and draw(st.booleans()):
        keywords["gate"] = laid_out(out, draw(layouts), generator, dtype).detach()
        if keywords["activation"] in ("identity", "relu", "leaky_relu"):
            keywords["gate_slope"] = draw(st.sampled_from([0.0, 0.25]))
    if transposed and draw(st.integers(0, 3)) == 0:
        keywords["input_gate"] = laid_out(source.shape, draw(layouts), generator, dtype).detach()
        keywords["input_slope"] = draw(st.sampled_from([0.0, 0.25]))
    grad = laid_out(out, draw(layouts), generator, dtype).detach()
    grad_drive = None
    if draw(st.booleans()):
        keywords["return_drive"] = True
        grad_drive = laid_out(out, draw(layouts), generator, dtype).detach()
    return Case(transposed, source, weight, add, bias, keywords, grad, grad_drive)


def wide(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) else value


def close(
    name: str, got: Tensor, want: Tensor, magnitude: Tensor, steps: int, filtered: bool = False
) -> None:
    """`got` is `want`, rounded once to its dtype, up to `steps` roundings on the way and those of the sums.

    `magnitude` is the sum of the absolute values of the terms that `want` is the sum of. A
    minimal-filtering algorithm (`filtered`) adds neighbours before it multiplies and takes them away again
    after: it is as accurate as the largest of them allows.
    """
    if filtered and magnitude.dim() == 4 and magnitude.numel():
        magnitude = magnitude.amax((2, 3), keepdim=True).expand_as(magnitude)
    assert got.shape == want.shape, f"{name}: {tuple(got.shape)} instead of {tuple(want.shape)}"
    error = (got.detach().double() - want).abs()
    dtype = got.dtype
    allowed = ROUNDOFF[dtype] * (want.abs() + steps * (magnitude + want.abs()))
    allowed = allowed + 64 * SUM_ROUNDOFF[dtype] * (magnitude + want.abs()) + SMALLEST_STEP[dtype]
    assert not torch.isnan(error).any(), f"{name}: NaN where the oracle has none"
    worst = (error / allowed).max().item() if error.numel() else 0.0
    assert worst <= 1, f"{name}: error is {worst:.3g} times what rounding allows ({dtype})"


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def check_against_oracle(case: Case, operation: Any, impl: str, threads: int = 1) -> None:
    """Values and every gradient of `operation` on `case`, computed on `threads` threads, against float64."""
    linear = getattr(reference, case.name)
    keywords, linear_keywords = case.keywords, case.linear_keywords()
    drive_too = "return_drive" in keywords
    # The reference rounds after each of its steps, a fused kernel once, and a Triton kernel what it makes of an operand
    # (a pool's mean, f' times the gradient) to the type that the matrix unit takes.
    steps = 4 if impl == "reference" else 1 if impl == "triton" and case.source.dtype.itemsize == 2 else 0
    filtered = case.weight.shape[2:] == (3, 3)

    inputs = case.inputs
    with on_threads(threads):
        result = operation(case.source, case.weight, case.add, case.bias, impl=impl, **keywords)
        h, drive = result if drive_too else (result, None)
        outputs, incoming = ([h, drive], [case.grad, case.grad_drive]) if drive_too else ([h], [case.grad])
        got = dict(zip(inputs, torch.autograd.grad(outputs, list(inputs.values()), incoming), strict=True))
    x, w, add, bias = (wide(v) for v in (case.source, case.weight, case.add, case.bias))
    want = linear(x, w, add, bias, **{k: wide(v) for k, v in keywords.items() if k != "return_drive"})
    magnitude = linear(
        x.abs(), w.abs(), wide(case.add) if add is None else add.abs(), None, **linear_keywords
    )
    if bias is not None:
        magnitude = magnitude + bias.abs().view(1, -1, 1, 1)
    assert h.dtype == case.source.dtype
    close("h", h, want, magnitude, steps, filtered)
    if drive is not None:
        close("drive", drive, linear(x, w, **linear_keywords), magnitude, steps, filtered)

    # f' is read off the result itself, so that a value that rounding carried over a kink is no error.
    grad, gate = wide(case.grad), keywords.get("gate")
    pre = grad * activations.derivative(wide(h), keywords["activation"], keywords.get("slope"))
    if gate is not None:
        pre = pre * torch.where(gate > 0, 1.0, keywords.get("gate_slope", 0.0))
    total = pre if case.grad_drive is None else pre + wide(case.grad_drive)
    size = grad.abs() if case.grad_drive is None else grad.abs() + wide(case.grad_drive).abs()
    x.requires_grad_(), w.requires_grad_()
    want_x, want_w = torch.autograd.grad(linear(x, w, **linear_keywords), (x, w), total)
    x, w = x.detach().abs().requires_grad_(), w.detach().abs().requires_grad_()
    size_x, size_w = torch.autograd.grad(linear(x, w, **linear_keywords), (x, w), size)
    close("gradient of the input", got["source"], want_x, size_x, steps + 1, filtered)
    close("gradient of weight", got["weight"], want_w, size_w, steps + 1, filtered)
    if "add" in got:
        close("gradient of add", got["add"], pre, grad.abs(), steps + 1)
    if "bias" in got:
        close("gradient of bias", got["bias"], pre.sum((0, 2, 3)), grad.abs().sum((0, 2, 3)), steps + 1)


def layer(transposed: bool, sizes: tuple[Any, ...], layout: str, dtype: torch.dtype) -> Case:
    """A call with everything in it; `sizes` is (N, C_in, C_out, (H, W), kernel, stride, padding)."""
    batch, c_in, c_out, size, *numbers = sizes
    kernel, stride, padding = ((v, v) if isinstance(v, int) else v for v in numbers)
    small = tuple((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    generator = torch.Generator("cpu").manual_seed(1)
    x, z = (batch, c_in, *size), (batch, c_out, *small)
    source, out = (z, x) if transposed else (x, z)
    keywords: dict[str, Any] = {"stride": stride, "padding": padding, "activation": "relu"}
    if transposed:
        keywords["output_size"] = size
    bias = randn((out[1],), generator, dtype).requires_grad_()
    tensors = [
        laid_out(shape, layout, generator, dtype) for shape in (source, (c_out, c_in, *kernel), out, out)
    ]
    return Case(transposed, tensors[0], tensors[1], tensors[2], bias, keywords, tensors[3].detach(), None)


def higher_order(operation: Any, inputs: Any, order: int) -> list[Tensor]:
    """Gradients of every order up to `order`, each of the summed squares of those before it."""
    result = operation(*inputs)
    collected = []
    for level in range(order):
        scalar = sum((g * g).sum() for g in ([result] if level == 0 else collected[-len(inputs) :]))
        grads = torch.autograd.grad(scalar, inputs, create_graph=True, allow_unused=True)
        collected += [torch.zeros_like(i) if g is None else g for g, i in zip(grads, inputs, strict=True)]
    return collected


def saved_by(call: Any) -> tuple[set[int], Tensor]:
    """Addresses of the tensors that `call` keeps for its backward, and its result."""
    kept: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call()
    return kept, result


def check_not_finite(operation: Any, tensors: dict[str, Tensor], where: str, **keywords: Any) -> None:
    """NaN and infinities of one argument arrive where eager PyTorch's do.

    Eager may skip products with the zeros around an input (its paths differ there), a kernel may not, and
    zero times infinity is NaN. So where those products meet what is not finite, a result may have more NaN
    than eager's, never less, and agrees elsewhere.
    """
    inputs = [tensors[name].clone().requires_grad_() for name in ("source", "weight", "add", "bias")]
    results = []
    for impl in (FUSED, "reference"):
        # Of cuDNN's algorithms some spread what is not finite over a tile.
        with torch.backends.cudnn.flags(enabled=False):
            h = operation(*inputs, impl=impl, **keywords)
            # Gradients compare only where h does.
            grads = () if where == "weight" else torch.autograd.grad(h, inputs, tensors["grad"])
        results.append((h, *grads))
    names = ("h", "gradient of the input", "gradient of weight", "gradient of add", "gradient of bias")
    for name, got, want in zip(names, *results, strict=False):
        same = torch.isclose(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)
        if where == "weight" or name == "gradient of weight" or (where == "grad" and name == names[1]):
            same |= got.isnan()
        assert same.all(), f"{name} with {where} not finite: {got[~same]} instead of {want[~same]}"
