"""Products with padding are left out where that pays, and are something where a factor is not finite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tied_conv_cases import check_not_finite

from lmser_kernels import _library, conv2d_add_act, conv_transpose2d_add_act, explain

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True, params=["chosen", "direct"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """As plans choose, and as direct sums, which alone leave products out."""
    if request.param == "chosen" or _library.module is None:
        yield request.param
        return
    before = _library.module.choose_filtering("never"), _library.module.choose_unpacking("never")
    yield request.param
    _library.module.choose_filtering(before[0])
    _library.module.choose_unpacking(before[1])


# batch, channels below and above, size, kernel, stride, padding
SHAPES = {
    "small images": (20, 19, 50, (7, 6), (5, 5), (2, 2), (2, 2)),
    "stride 1": (6, 21, 35, (7, 9), (5, 5), (1, 1), (2, 2)),
    "one image": (1, 40, 64, (7, 7), (5, 5), (2, 2), (2, 2)),
    "smaller than the kernel": (5, 33, 20, (2, 1), (3, 3), (1, 1), (1, 1)),
    "nothing but padding": (3, 18, 34, (3, 3), (2, 2), (1, 1), (3, 4)),
    "rows alone": (9, 17, 32, (4, 30), (5, 1), (2, 1), (2, 0)),
    "columns alone": (9, 17, 32, (30, 4), (1, 5), (1, 2), (0, 2)),
    "a weight in pieces": (2, 200, 80, (6, 6), (5, 5), (2, 2), (2, 2)),
    "strides beyond the kernel": (4, 24, 40, (9, 8), (2, 2), (3, 3), (1, 1)),
}
EXACT = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, down, dtype):
    batch, below, above, size, kernel, stride, padding = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    fan_in = (above if down else below) * kernel[0] * kernel[1]
    big, weight = randn(batch, below, *size), randn(above, below, *kernel) / fan_in**0.5
    small = F.conv2d(big.double(), weight.double(), None, stride, padding)
    source = randn(*small.shape) if down else big
    add = randn(*(big if down else small).shape)
    grad = randn(*add.shape)

    def run(inputs, impl):
        inputs = [t.detach().requires_grad_() for t in inputs]
        if down:
            out = conv_transpose2d_add_act(
                *inputs, stride=stride, padding=padding, output_size=size, activation="tanh", impl=impl
            )
        else:
            out = conv2d_add_act(*inputs, stride=stride, padding=padding, activation="tanh", impl=impl)
        return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]

    found = run([source, weight, add], "native")
    wanted = run([t.double() for t in (source, weight, add)], "reference")
    if dtype == torch.bfloat16:  # f' is read off the rounded output
        found, wanted = found[:1], wanted[:1]
    for ours, exact in zip(found, wanted, strict=True):
        assert (ours.double() - exact).norm() <= EXACT[dtype] * exact.norm()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["source", "weight", "grad"])
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_what_is_not_finite_goes_where_it_does_in_eager_pytorch(down, where, value):
    geometry = {"stride": 2, "padding": 2}
    big, weight = torch.randn(16, 20, 7, 7), torch.randn(33, 20, 5, 5)
    small = F.conv2d(big, weight, None, **geometry)
    source, add = (small, big) if down else (big, small)
    tensors = {
        "source": source,
        "weight": weight,
        "add": torch.randn_like(add),
        "bias": torch.randn(add.shape[1]),
    }
    tensors["grad"] = torch.randn_like(add)
    # The first value of a weight meets padding, the first of a gradient has padding under its taps.
    tensors[where].view(-1)[0] = value
    run = conv_transpose2d_add_act if down else conv2d_add_act
    rest = {"output_size": 7} if down else {}
    check_not_finite(run, tensors, where, activation="leaky_relu", **geometry, **rest)


def test_a_weight_that_is_kept_packed_is_looked_at_again():
    x, weight = torch.randn(16, 20, 7, 7), torch.randn(33, 20, 5, 5)

    def corner():
        return conv2d_add_act(x, weight, stride=2, padding=2)[:, 3, 0, 0]

    assert corner().isfinite().all()
    weight[3, 0, 0, 0] = torch.inf  # lies in the padding of the corner: zero times infinity
    assert corner().isnan().all()
    weight[3, 0, 0, 0] = 1
    assert corner().isfinite().all()


def test_parts_of_a_batch_have_its_bits():
    x, weight = torch.randn(24, 20, 7, 7), torch.randn(33, 20, 5, 5)

    def run(x):
        return conv2d_add_act(x, weight, stride=2, padding=2)

    whole = run(x)
    for count in (1, 2, 7):
        parts = torch.cat([run(part) for part in x.split(count)])
        assert torch.equal(parts, whole)


@pytest.fixture
def usual_products() -> Iterator[None]:
    before = _library.module.assume_fast_wide_products(False)
    yield
    _library.module.assume_fast_wide_products(before)


def test_explained(form, usual_products):
    def reason(batch, size, kernel, **layout):
        return explain(
            "conv2d_add_act",
            torch.randn(batch, 64, size, size).to(**layout),
            torch.randn(128, 64, kernel, kernel, dtype=layout.get("dtype")),
            stride=2,
            padding=kernel // 2,
        ).reason

    last = {"memory_format": torch.channels_last}
    direct = form == "direct"
    assert ("meet the padding" in reason(64, 7, 5, **last)) == direct
    # What nothing of the padding is read of need not be staged.
    assert ("meet the padding" in reason(1, 128, 5, **last)) == direct
    assert ("read as it lies" in reason(1, 128, 5, **last)) == direct
    assert "read as it lies" not in reason(1, 128, 5)
    assert "read as it lies" not in reason(1, 128, 5, dtype=torch.bfloat16, **last)
    assert "meet the padding" not in reason(64, 7, 1, **last)
