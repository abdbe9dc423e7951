"""Max pooling in Triton: values, places, derivatives and layouts of the compiled CPU operators."""

from __future__ import annotations

import pytest
import torch
from tied_conv_cases import DTYPES, LAYOUTS, ROUNDOFF, laid_out

from lmser_kernels import activation as activations

pytest.importorskip("triton")
from lmser_kernels.max_pool import triton as launchers

pytestmark = pytest.mark.native

# (kernel, stride, padding), (N, C, H, W)
CASES = (
    (((2, 2), (2, 2), (0, 0)), (2, 16, 6, 8)),
    (((3, 3), (2, 2), (1, 1)), (2, 5, 7, 9)),
    (((3, 2), (1, 3), (1, 1)), (1, 3, 5, 8)),  # overlapping down, apart across
    (((1, 1), (1, 1), (0, 0)), (2, 1, 3, 2)),
    (((1, 4), (3, 2), (0, 2)), (3, 2, 5, 6)),
    (((5, 5), (2, 1), (2, 2)), (1, 2, 6, 5)),  # more places than are unrolled
    (((4, 6), (4, 6), (0, 0)), (2, 40, 4, 6)),  # one window
    (((2, 2), (2, 2), (1, 1)), (0, 3, 4, 4)),
)


def draw(shape, layout, dtype, seed=0):
    return laid_out(shape, layout, torch.Generator().manual_seed(seed), dtype).detach()


def same(got, want, steps=1):
    """Equal where only values are picked, else up to a few roundings; in one layout."""
    assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)
    # Triton's interpreter cuts bfloat16 off, where the CPU rounds.
    tolerance = 0.0 if got.dtype == torch.uint8 else 4 * steps * ROUNDOFF[got.dtype]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


def check(x, windows, activation="leaky_sigmoid", slope=0.2, seed=3, layout="contiguous"):
    kernel = windows[0]
    h, places = torch.ops.lmser.max_pool2d_act(x, *windows, activation, slope)
    got = launchers.max_pool2d_act(x, *windows, activation, slope)
    same(got[0], h)
    same(got[1], places)
    z = draw(h.shape, layout, x.dtype, seed)
    size = x.shape[2:]
    for given, act in ((h, activation), (None, "identity")):
        unpool = (z, places, given, size, *windows, act, slope)
        same(launchers.max_unpool2d(*unpool), torch.ops.lmser.max_unpool2d(*unpool), kernel[0] * kernel[1])
        select = (x, places, given, *windows, act, slope)
        same(launchers.max_select2d(*select), torch.ops.lmser.max_select2d(*select))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("windows", "shape"), CASES)
def test_windows(windows, shape, layout):
    check(draw(shape, layout, torch.float32), windows, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("windows", "shape"), CASES[:2])
def test_dtypes(windows, shape, dtype):
    check(draw(shape, "channels_last", dtype), windows, layout="channels_last")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", ["contiguous", "channels_last", "sliced"])
def test_layouts(layout, other):
    check(draw((2, 8, 5, 4), layout, torch.float32), ((2, 2), (1, 2), (1, 0)), layout=other)


@pytest.mark.parametrize("activation", activations.ACTIVATIONS)
def test_activations(activation):
    check(2 * draw((1, 4, 6, 6), "channels_last", torch.float64), CASES[0][0], activation, 0.3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0])
def test_not_finite_and_ties(value, layout):
    x = draw((1, 2, 6, 6), layout, torch.float32)
    x[0, 0, :2, :3] = x[0, 1, 2, 3] = value
    for windows in (((2, 2), (2, 2), (0, 0)), ((3, 3), (1, 1), (1, 1))):
        check(x, windows, "relu", 0.0)
        h, places = torch.ops.lmser.max_pool2d_act(x, *windows, "tanh", 0.0)
        call = (torch.full_like(h, torch.inf), places, h, (6, 6), *windows, "tanh", 0.0)
        same(launchers.max_unpool2d(*call), torch.ops.lmser.max_unpool2d(*call))


def test_places_outside_their_windows():
    """Left out by both maps, as are places on padding."""
    places = (
        torch.arange(2 * 3 * 3 * 4, dtype=torch.int64).view(2, 3, 3, 4).mul(7).remainder(13).to(torch.uint8)
    )
    windows = ((3, 3), (2, 2), (1, 1))
    z, x = draw((2, 4, 3, 3), "contiguous", torch.float64), draw((2, 4, 5, 6), "contiguous", torch.float64, 1)
    unpool, select = (z, places, None, (5, 6), *windows, "identity", 0.0), (x, places, None, *windows)
    same(launchers.max_unpool2d(*unpool), torch.ops.lmser.max_unpool2d(*unpool))
    args = (*select, "identity", 0.0)
    same(launchers.max_select2d(*args), torch.ops.lmser.max_select2d(*args))


def test_windows_of_255_places():
    x = torch.arange(2 * 510.0).view(1, 2, 1, 510)
    h, places = launchers.max_pool2d_act(x, (1, 255), (1, 255), (0, 0), "identity", 0.0)
    assert h.flatten().tolist() == [254, 509, 764, 1019]
    assert bool((places == 254).all())


def test_missing_output():
    places = torch.zeros((1, 2, 2, 1), dtype=torch.uint8)
    with pytest.raises(
        ValueError, match="h must be the pool's output where the activation is tanh; got None"
    ):
        launchers.max_unpool2d(
            torch.zeros(1, 1, 2, 2), places, None, (4, 4), (2, 2), (2, 2), (0, 0), "tanh", 0.0
        )
