"""`settle_step`: the compiled operator against the reference, values and all gradients."""

from __future__ import annotations

import pytest
import torch
from implementations import FUSED
from settle_cases import same

from lmser_kernels import settle_step
from lmser_kernels.reference import settle_step as reference_step

pytestmark = pytest.mark.operators

native = pytest.mark.native


@pytest.mark.parametrize("impl", ["reference", pytest.param(FUSED, marks=native)])
@pytest.mark.parametrize("ends", ["both", "bottom", "top"])
def test_settle_step(impl, ends):
    dtype = torch.float64
    below = torch.randn(2, 3, 6, 8, dtype=dtype) if ends != "bottom" else None
    above = torch.randn(2, 5, 3, 4, dtype=dtype) if ends != "top" else None
    if ends == "both":
        below = torch.randn(2, 3, 12, 16, dtype=dtype)
    weight_below = torch.randn(4, 3, 3, 3, dtype=dtype) if below is not None else None
    weight_above = torch.randn(5, 4, 3, 3, dtype=dtype) if above is not None else None
    pool, upsample = (2, 2) if ends == "both" else (1, 2)
    tensors = [below, above, weight_below, weight_above, torch.randn(4, dtype=dtype)]
    tensors = [t.requires_grad_() if t is not None else None for t in tensors]
    options = {"padding": 1, "pool": pool, "upsample": upsample}
    shape = reference_step(*tensors, **options)[0].shape
    options |= {"evidence": torch.randn(shape, dtype=dtype).requires_grad_(), "mask": torch.rand(shape) > 0.5}
    options["previous"] = torch.randn(shape, dtype=dtype)
    h, change = settle_step(*tensors, impl=impl, **options)
    wanted, largest = reference_step(*tensors, **options)
    same([h, change], [wanted, largest])
    inputs = [t for t in (*tensors, options["evidence"]) if t is not None]
    same(torch.autograd.grad(h.sin().sum(), inputs), torch.autograd.grad(wanted.sin().sum(), inputs))
    assert float(settle_step(*tensors, impl=impl, padding=1, pool=pool, upsample=upsample)[1]) == float("inf")


def step_arguments(dtype=torch.float64, batch=2):
    tensors = [
        torch.randn(batch, 3, 6, 8, dtype=dtype),
        torch.randn(batch, 5, 3, 4, dtype=dtype),
        torch.randn(4, 3, 3, 3, dtype=dtype) * 0.3,
        torch.randn(5, 4, 3, 3, dtype=dtype) * 0.3,
        torch.randn(4, dtype=dtype),
    ]
    evidence, mask = torch.randn(batch, 4, 6, 8, dtype=dtype), torch.rand(batch, 4, 6, 8) > 0.5
    return [t.requires_grad_() for t in (*tensors, evidence)], mask


@pytest.mark.many_calls
@native
def test_settle_step_is_differentiable_twice():
    inputs, mask = step_arguments()

    def run(*given):
        return settle_step(
            *given[:5], padding=1, upsample=2, activation="tanh", evidence=given[5], mask=mask, impl=FUSED
        )[0]

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@native
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 4e-3)]
)
def test_settle_step_in_other_dtypes(dtype, tolerance):
    exact, mask = step_arguments()
    given = [t.detach().to(dtype).requires_grad_() for t in exact]
    options = {"padding": 1, "upsample": 2, "activation": "tanh", "mask": mask}
    h, change = settle_step(
        *given[:5], evidence=given[5], previous=torch.zeros(2, 4, 6, 8, dtype=dtype), **options
    )
    wanted, _ = reference_step(*exact[:5], evidence=exact[5], **options)
    assert (h.dtype, change.dtype) == (dtype, dtype)
    same([h.double()], [wanted], tolerance)
    assert change.item() == pytest.approx(float(wanted.detach().abs().max()), rel=tolerance)
    found, right = torch.autograd.grad(h.sum(), given), torch.autograd.grad(wanted.sum(), exact)
    for a, b in zip(found, right, strict=True):
        assert a.dtype == dtype
        assert float((a.double() - b).abs().max()) <= 10 * tolerance * float(b.abs().max())


@native
def test_settle_step_of_a_large_batch_in_groups():
    below, above = torch.randn(64, 8, 64, 64), torch.randn(64, 8, 32, 32)
    weights = torch.randn(16, 8, 3, 3) * 0.1, torch.randn(8, 16, 3, 3) * 0.1
    previous = torch.randn(64, 16, 64, 64)
    previous[50, 3, 7, 9] = 40.0
    found = settle_step(below, above, *weights, padding=1, upsample=2, previous=previous, impl=FUSED)
    wanted = reference_step(below, above, *weights, padding=1, upsample=2, previous=previous)
    same(found, wanted, 1e-4)


# Where the taps of both edges meet the same pixels, both drives are one sum; the last three are not that.
# batch, channels below, here and above, size, kernel, padding, pool, padding above
SUMS = {
    "odd": (2, 3, 4, 5, (7, 9), (3, 3), (1, 1), 1, None),
    "filtered": (3, 40, 24, 33, (13, 10), (3, 3), (1, 1), 1, None),
    "filtered, five taps": (2, 16, 24, 9, (12, 7), (5, 5), (2, 2), 1, None),
    "pooled": (2, 9, 17, 8, (5, 6), (3, 3), (1, 1), 2, None),
    "oblong": (2, 9, 17, 8, (5, 6), (5, 3), (1, 0), 1, (3, 2)),
    "one channel here": (2, 12, 1, 4, (9, 20), (3, 3), (1, 1), 1, None),
    "two channels here": (2, 12, 2, 30, (6, 5), (3, 3), (1, 1), 1, None),
    "signal": (2, 5, 6, 7, (1, 20), (1, 3), (0, 1), 1, None),
    "dense": (6, 12, 7, 5, (1, 1), (1, 1), (0, 0), 1, None),
    "pointwise": (2, 12, 7, 40, (5, 3), (1, 1), (0, 0), 1, None),
    "empty": (0, 3, 4, 5, (6, 6), (3, 3), (1, 1), 1, None),
    "few rows": (3, 12, 70, 5, (1, 1), (1, 1), (0, 0), 1, None),
    "other padding": (2, 3, 4, 5, (6, 7), (3, 3), (1, 1), 1, (0, 0)),
    "other kernel": (2, 9, 8, 10, (8, 8), (3, 3), (1, 1), 1, (2, 2)),
}


def between(case, dtype, layout):
    """Arguments of a step between two layers, and the sizes of the layer above that its padding asks for."""
    n, below, here, above, size, kernel, padding, pool, padding_above = SUMS[case]
    upper = (5, 5) if case == "other kernel" else kernel
    out = [s + 2 * p - k + 1 for s, p, k in zip(size, padding, kernel, strict=True)]
    outer = padding if padding_above is None else padding_above
    high = [s + 2 * p - k + 1 for s, p, k in zip(out, outer, upper, strict=True)]
    tensors = [
        torch.randn(n, below, size[0] * pool, size[1] * pool, dtype=dtype).contiguous(memory_format=layout),
        torch.randn(n, above, *high, dtype=dtype).contiguous(memory_format=layout),
        torch.randn(here, below, *kernel, dtype=dtype) * 0.2,
        # Of another order in memory than its shape says.
        (torch.randn(here, above, *upper, dtype=dtype) * 0.2).transpose(0, 1),
        torch.randn(here, dtype=dtype),
    ]
    options = {"padding": padding, "padding_above": padding_above, "pool": pool, "activation": "tanh"}
    return [t.requires_grad_() for t in tensors], options, (n, here, *out)


@native
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", SUMS)
def test_both_drives(case, layout, dtype, tolerance):
    tensors, options, shape = between(case, dtype, layout)
    options |= {"evidence": torch.randn(shape, dtype=dtype), "mask": torch.rand(shape) > 0.7}
    options["previous"] = torch.randn(shape, dtype=dtype)
    found = settle_step(*tensors, impl=FUSED, **options)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    options |= {name: options[name].double() for name in ("evidence", "previous")}
    wanted = reference_step(*exact, **options)
    if shape[0] == 0:
        found, wanted = found[:1], wanted[:1]
    same([t.double() for t in found], wanted, tolerance)
    gradients = torch.autograd.grad(found[0].sum(), tensors)
    same([g.double() for g in gradients], torch.autograd.grad(wanted[0].sum(), exact), tolerance)


@native
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("case", ["odd", "filtered", "pooled", "one channel here", "dense"])
def test_what_is_not_finite_reaches_what_it_should(case, side, value):
    tensors, options, _ = between(case, torch.float32, torch.channels_last)
    tensors = [t.detach() for t in tensors]
    tensors[side][0, 1, -1, 0] = value
    options["activation"] = "identity"
    found, wanted = settle_step(*tensors, impl=FUSED, **options)[0], reference_step(*tensors, **options)[0]
    assert torch.equal(found.isfinite(), wanted.isfinite())
    finite = wanted.isfinite()
    assert 0 < finite.sum() < finite.numel()
    torch.testing.assert_close(found[finite], wanted[finite], rtol=1e-4, atol=1e-4)


@native
@pytest.mark.parametrize("side", [2, 3])
def test_a_changed_weight_of_either_edge_is_noticed(side):
    tensors, options, _ = between("filtered", torch.float32, torch.channels_last)
    tensors = [t.detach() for t in tensors]
    for _ in range(3):
        found, wanted = (
            settle_step(*tensors, impl=FUSED, **options)[0],
            reference_step(*tensors, **options)[0],
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        tensors[side][1, 2, 0, 0] += 3


X, Z = torch.zeros(2, 3, 6, 8), torch.zeros(2, 5, 3, 4)
BELOW, ABOVE = torch.zeros(4, 3, 3, 3), torch.zeros(5, 4, 3, 3)
ERRORS = [
    ((None, None, None, None), {}, ValueError, "below and above must not both be None"),
    ((X, Z, BELOW, None), {}, ValueError, "above and weight_above must be given together"),
    ((X, Z, ABOVE, ABOVE), {}, ValueError, "below has 3 channels; weight_below"),
    (
        (X, Z, BELOW, ABOVE),
        {"upsample": 1},
        ValueError,
        r"above gives a layer of shape \(2, 4, 3, 4\), below one",
    ),
    ((X, Z, BELOW, ABOVE, torch.zeros(3)), {}, ValueError, "bias must have one value per channel of h"),
    (
        (X, Z, BELOW, ABOVE),
        {"previous": torch.zeros(2, 4, 6, 7)},
        ValueError,
        "previous must have the shape of h",
    ),
    ((X, Z, BELOW, ABOVE), {"mask": torch.ones(2, 4, 6, 8) > 0}, ValueError, "mask: expected evidence"),
    ((X.double(), Z, BELOW, ABOVE), {}, TypeError, "above must have the dtype of below"),
]


@pytest.mark.parametrize(("tensors", "change", "error", "message"), ERRORS, ids=[e[3] for e in ERRORS])
def test_bad_arguments_are_named(tensors, change, error, message):
    with pytest.raises(error, match=message):
        settle_step(*tensors, **{"padding": 1, "upsample": 2, **change})
