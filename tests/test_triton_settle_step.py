"""The neuron update in Triton's interpreter, against the compiled operator: values, change, layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmser_kernels.activation import ACTIVATIONS, check
from lmser_kernels.gpu.launch import recording
from lmser_kernels.settle.triton_step import settle_step

pytestmark = [
    pytest.mark.native,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # infinity times 0
]

# Channels below, here, above; size of the layer; window below, window above; kernels and padding of the two edges.
GEOMETRIES = {
    "plain": ((3, 5, 7), (5, 6), (1, 1), (1, 1), (3, 3), (1, 1), (3, 3), (1, 1)),
    "pooled on both sides": ((3, 5, 33), (4, 6), (2, 2), (2, 2), (3, 3), (1, 1), (3, 3), (1, 1)),
    "window of nine, one tap": ((16, 4, 3), (6, 9), (1, 1), (3, 3), (3, 3), (1, 1), (1, 1), (0, 0)),
    "large window": ((4, 3, 2), (5, 10), (1, 2), (5, 5), (1, 1), (0, 0), (1, 1), (0, 0)),
    "one-sided window": ((2, 17, 1), (3, 8), (1, 1), (1, 2), (1, 3), (0, 1), (3, 1), (1, 0)),
    "fully connected": ((40, 70, 12), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), (0, 0)),
    "other kernels": ((6, 8, 4), (5, 7), (1, 1), (1, 1), (5, 5), (2, 2), (1, 3), (0, 1)),
    "padding beyond the kernel": ((2, 3, 4), (7, 6), (1, 1), (1, 1), (2, 2), (3, 3), (3, 3), (2, 0)),
}
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}


def arguments(geometry, dtype, *, ends="both", evidence=True, activation="tanh", batch=3):
    (c_below, c, c_above), size, pool, up, kernel, pad, kernel_above, pad_above = GEOMETRIES[geometry]
    source = [(size[i] + kernel[i] - 1 - 2 * pad[i]) * pool[i] for i in (0, 1)]
    source[0] += pool[0] - 1  # rows that the pool drops
    above = [size[i] // up[i] + 2 * pad_above[i] - kernel_above[i] + 1 for i in (0, 1)]
    shape = (batch, c, *size)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    hold = torch.tensor([0.0, 1.0, 0.4], dtype=dtype)[torch.randint(3, shape)]
    return [
        random(batch, c_below, *source) if ends != "bottom" else None,
        random(batch, c_above, *above) if ends != "top" else None,
        random(c, c_below, *kernel) * 0.2 if ends != "bottom" else None,
        random(c_above, c, *kernel_above) * 0.2 if ends != "top" else None,
        random(c), random(*shape) if evidence else None, hold if evidence else None, random(*shape),
        pad, pad_above, pool, up, activation, check(activation),
    ]  # fmt: skip


def compare(given):
    h, change = settle_step(*given)
    wanted, largest = torch.ops.lmser.settle_step(*given)
    assert (h.stride(), h.dtype) == (wanted.stride(), wanted.dtype)
    tolerance = TOLERANCE[h.dtype]
    torch.testing.assert_close(h, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(change, largest, rtol=tolerance, atol=tolerance, equal_nan=True)
    return h, change


@pytest.fixture(autouse=True)
def _full_precision():
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values(geometry, dtype):
    number = list(GEOMETRIES).index(geometry)
    compare(arguments(geometry, dtype, evidence=number % 2 == 0, activation=ACTIVATIONS[number % 6]))


@pytest.mark.parametrize(
    ("geometry", "ends"), [(g, e) for g in ("plain", "pooled on both sides") for e in ("top", "bottom")]
)
def test_ends(geometry, ends):
    compare(arguments(geometry, torch.float64, ends=ends))


def test_any_layout():
    given = arguments("plain", torch.float64, batch=2)
    given[0] = given[0].contiguous(memory_format=torch.channels_last)
    given[1] = torch.cat([given[1]] * 2, 3)[..., ::2].flip(0)
    given[3] = given[3].transpose(2, 3)
    given[5] = given[5][:1].expand(2, -1, -1, -1)
    given[7] = given[7].repeat_interleave(2, 0)[::2]
    compare(given)


def test_several_tiles():
    """More rows and channels than a tile has."""
    given = arguments("fully connected", torch.float32, batch=67)
    h, _ = compare(given)
    assert h.shape[0] > 64
    assert h.shape[1] > 64


def test_without_previous_nothing_is_compared():
    given = arguments("plain", torch.float32)
    given[7] = None
    assert compare(given)[1] == torch.inf


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite(value):
    given = arguments("pooled on both sides", torch.float64, activation="leaky_sigmoid")
    given[0][1, 2, 3, 4] = value
    h, change = compare(given)
    assert not h[1].isfinite().all()
    assert h[0].isfinite().all()
    assert change.isnan() if value != value else change.isinf()


def test_nan_that_evidence_covers():
    given = arguments("plain", torch.float64)
    given[1][:] = torch.nan
    given[6][:] = 1
    h, change = compare(given)
    assert bool(h.isfinite().all())
    assert bool(change.isfinite())


def test_empty_batch():
    h, change = compare(arguments("plain", torch.float32, batch=0))
    assert h.shape[0] == 0
    assert change == 0


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match=r"float32 or float64; got torch.*bfloat16"):
        settle_step(*arguments("plain", torch.bfloat16))


def test_launched_without_looking_at_values():
    given = [
        torch.empty_like(t, device="meta") if isinstance(t, Tensor) else t
        for t in arguments("pooled on both sides", torch.float32)
    ]
    with recording(90) as made:
        settle_step(*given)
    assert [launch.kernel.__name__ for launch in made.launches] == ["window_sums", "update_kernel"]
