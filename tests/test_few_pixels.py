"""Convolutions of few pixels read their weight as it lies, and write its gradient where it is wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmser_kernels import _library, conv2d_add_act, conv_transpose2d_add_act, explain

pytestmark = pytest.mark.skipif(not _library.available, reason="needs the compiled library")
MODES = ("where faster", "never", "where possible")
SHAPES = list(itertools.product((1, 2, 3, 4, 5), ((1, 1), (3, 70), (67, 35), (129, 16), (40, 9), (256, 100))))
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture
def unpacking() -> Iterator[object]:
    before = _library.module.choose_unpacking("where faster")
    yield _library.module.choose_unpacking
    _library.module.choose_unpacking(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize(("batch", "channels"), SHAPES)
def test_matrices(batch, channels, layout, dtype):
    generator = torch.Generator().manual_seed(batch)
    below, above = channels

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weight = randn(above, below, 1, 1)
    if layout == "columns":
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "strided":
        weight = torch.stack([weight, weight], 2)[:, :, 0]
    x, z, bias = randn(batch, below, 1, 1), randn(batch, above, 1, 1), randn(above)
    exact = EXACT[dtype]
    found = conv2d_add_act(x, weight, z, bias, activation="relu", impl="native")
    wanted = F.relu(F.conv2d(x.double(), weight.double(), bias.double()) + z.double())
    assert (found.double() - wanted).abs().max() <= exact * wanted.abs().max().clamp_min(1)
    found, drive = conv_transpose2d_add_act(
        z, weight, x, activation="sigmoid", return_drive=True, impl="native"
    )
    linear = F.conv_transpose2d(z.double(), weight.double())
    assert (drive.double() - linear).abs().max() <= exact * linear.abs().max().clamp_min(1)
    assert (found.double() - torch.sigmoid(linear + x.double())).abs().max() <= max(exact, 1e-6)


def _lying(weight: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return weight.contiguous(memory_format=torch.channels_last)
    if layout == "rows apart":  # each row dense, the rows not
        return torch.cat([weight, torch.full_like(weight, torch.nan)], 1)[:, : weight.shape[1]]
    if layout == "columns":
        return weight.transpose(0, 1).contiguous().transpose(0, 1)
    return weight


# (batch, C_in, C_out, size, kernel, stride, padding)
CONVOLUTIONS = [
    (1, 64, 48, (7, 7), (3, 3), 2, 1),
    (1, 33, 50, (5, 4), (3, 3), 1, 1),
    (2, 16, 17, (7, 6), (5, 5), (2, 3), 2),
    (3, 5, 7, (3, 9), (1, 3), (1, 2), (0, 1)),
    (1, 1, 40, (9, 9), (3, 3), 2, 0),
    (4, 20, 3, (4, 4), (1, 1), 2, 0),
    (1, 24, 32, (2, 2), (3, 3), 1, 1),
    (1, 8, 16, (1, 12), (1, 5), (1, 2), (0, 2)),
    (50, 30, 20, (1, 1), (1, 1), 1, 0),
    (1, 130, 70, (3, 5), (2, 4), 1, (1, 3)),
]


@pytest.mark.parametrize("layout", ["plain", "channels last", "rows apart", "columns"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("batch", "below", "above", "size", "kernel", "stride", "padding"), CONVOLUTIONS)
def test_convolutions_and_their_gradients(
    unpacking, batch, below, above, size, kernel, stride, padding, dtype, layout
):
    generator = torch.Generator().manual_seed(above)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weight = _lying(randn(above, below, *kernel) / (kernel[0] * kernel[1] * below) ** 0.5, layout)
    x = randn(batch, *size, below).permute(0, 3, 1, 2)
    z = F.conv2d(x.double(), weight.double(), None, stride, padding).to(dtype)
    z, bias, below_bias = randn(*z.shape), randn(above), randn(below)
    z_gate, x_gate = randn(*z.shape), randn(*x.shape)
    settings = {"stride": stride, "padding": padding, "activation": "tanh"}

    def both(x, z, w, b, c, z_gate, x_gate, impl):
        h, drive = conv2d_add_act(x, w, z, b, return_drive=True, impl=impl, **settings)
        u = conv_transpose2d_add_act(
            z,
            w,
            x,
            c,
            output_size=size,
            gate=x_gate,
            input_gate=z_gate,
            input_slope=0.25,
            impl=impl,
            **settings,
        )
        return h, drive, u

    def with_gradients(tensors, impl):
        tensors = [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
        if layout == "rows apart":
            tensors[2] = _lying(tensors[2].contiguous(), layout)
        leaves = [t.requires_grad_() for t in tensors[:5]]
        results = both(*tensors, impl)
        cotangents = [
            torch.linspace(-1, 1, r.numel(), dtype=torch.float64).reshape(r.shape).to(r.dtype)
            for r in results
        ]
        return [*results, *torch.autograd.grad(results, leaves, cotangents)]

    arguments = (x, z, weight, bias, below_bias, z_gate, x_gate)
    wanted = with_gradients([t.double() for t in arguments], "reference")
    for mode in MODES:
        unpacking(mode)
        for i, (found, exact) in enumerate(zip(with_gradients(arguments, "native"), wanted, strict=True)):
            assert found.shape == exact.shape
            assert found.dtype == dtype
            difference = (found.double() - exact).abs().max()
            assert difference <= 4 * EXACT[dtype] * exact.abs().max().clamp_min(1), (mode, i)


def test_not_finite_values_go_where_they_go(unpacking):
    weight = torch.randn(16, 8, 3, 3)
    weight[3, 2, 0, 0] = torch.inf
    x, z = torch.randn(1, 8, 5, 5), torch.randn(1, 16, 3, 3)
    x[0, 1, 4, 4] = torch.nan
    x[0, 2] = 0
    z[0, 5, 1, 1] = torch.nan
    for mode in MODES:
        unpacking(mode)
        up = conv2d_add_act(x, weight, stride=2, padding=1)
        down = conv_transpose2d_add_act(z, weight, stride=2, padding=1, output_size=5)
        wanted = F.conv2d(x, weight, None, 2, 1), F.conv_transpose2d(z, weight, None, 2, 1)
        for found, exact in zip((up, down), wanted, strict=True):
            torch.testing.assert_close(found, exact, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["where faster", "where possible"])
def test_a_part_of_a_batch_has_the_bits_of_the_whole_and_threads_do_not_matter(unpacking, mode):
    """Images are taken by threads in parts, and a thread in parts of its own."""
    from lmser_kernels import reflect

    unpacking(mode)
    generator = torch.Generator().manual_seed(0)
    sizes = (70, 50, 30, 10)
    weights = [torch.randn(b, a, generator=generator) / a**0.5 for a, b in itertools.pairwise(sizes)]
    biases = [torch.zeros(n) for n in sizes]
    x = torch.randn(11, 70, 1, 1, generator=generator)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(reflect(x, weights, biases).reconstruction)
            z = torch.randn(1, 50, 4, 4, generator=torch.Generator().manual_seed(1))
            kernel = torch.randn(50, 70, 3, 3, generator=torch.Generator().manual_seed(2))
            results[-1] = (
                results[-1],
                conv_transpose2d_add_act(z, kernel, stride=2, padding=1, output_size=8),
            )
        for result in results[1:]:
            assert all(map(torch.equal, results[0], result))
    finally:
        torch.set_num_threads(threads)


def test_modes(unpacking):
    assert unpacking("never") == "where faster"
    assert unpacking("where faster") == "never"
    with pytest.raises(
        ValueError,
        match="mode is 'sometimes'; expected one of 'where faster', 'never', 'where possible'",
    ):
        unpacking("sometimes")


def test_explained(unpacking):
    def kernel(batch: int, size: int = 1, taps: int = 1, op: str = "conv2d_add_act") -> str:
        padding = taps // 2
        return explain(
            op, torch.randn(batch, 256, size, size), torch.randn(256, 256, taps, taps), padding=padding
        ).kernel

    assert "as it lies" in kernel(4)
    assert "as it lies" in kernel(1, size=3, taps=3)
    assert "added where the kernel reaches" in kernel(1, 3, 3, "conv_transpose2d_add_act")
    assert "as it lies" not in kernel(500)
    assert "as it lies" not in kernel(1, size=40, taps=3)
    unpacking("never")
    assert "as it lies" not in kernel(4)
