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
