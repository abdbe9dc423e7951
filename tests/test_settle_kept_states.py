"""What `settle` keeps for its backward: states in bfloat16, or fewer of them, the others computed again."""

from __future__ import annotations

import pytest
import torch
from implementations import FUSED
from settle_cases import VARIANTS, case, gradients, same

pytestmark = pytest.mark.operators

native = pytest.mark.native


@native
@pytest.mark.parametrize("variant", ["plain", "some evidence", "all evidence"])
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
def test_trajectory_in_bfloat16(order, variant):
    given = case(
        "three edges, pooled", dtype=torch.float32, order=order, max_steps=5, theta=0, **VARIANTS[variant]
    )
    exact = given.settle(FUSED, readouts=True)
    rounded = given.settle(FUSED, readouts=True, trajectory_dtype=torch.bfloat16)
    same([*rounded.states, rounded.readouts], [*exact.states, exact.readouts], 0)
    largest = 0.0
    for a, b in zip(gradients(rounded, given.inputs()), gradients(exact, given.inputs()), strict=True):
        if b is not None and a is not None:
            off = float((a - b).abs().max()) / max(float(b.abs().max()), 1e-6)
            assert off < 0.02
            largest = max(largest, off)
    assert largest > 1e-6  # something was rounded
    with pytest.raises(ValueError, match="trajectory_dtype must be None"):
        case("fully connected").settle(FUSED, trajectory_dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="only the compiled operator"):
        given.settle("reference", trajectory_dtype=torch.bfloat16)


@pytest.mark.parametrize("impl", [pytest.param(FUSED, marks=native), "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
def test_states_computed_again(order, variant, impl):
    """The same values and gradients whether states are kept or computed again, in segments of any length."""
    given = case("three edges, pooled", order=order, max_steps=7, theta=0, **VARIANTS[variant])
    kept = given.settle(impl, readouts=True)
    wanted = gradients(kept, given.inputs())
    for every in (1, 3, 7):
        again = given.settle(impl, readouts=True, checkpoint_every=every)
        same([*again.states, again.readouts, again.change], [*kept.states, kept.readouts, kept.change])
        assert int(again.steps) == 7
        same(gradients(again, given.inputs()), wanted)
    last = given.settle(impl, checkpoint_every=3)
    assert last.readouts is None
    same(gradients(last, given.inputs()), gradients(given.settle(impl), given.inputs()))


@native
def test_states_computed_again_stop_where_all_do():
    given = case("fully connected", evidence="some", max_steps=60, theta=1e-4)
    kept, again = (given.settle(FUSED, readouts=True, checkpoint_every=n) for n in (None, 4))
    assert 4 < int(kept.steps) == int(again.steps) < 60
    same([again.readouts, again.change], [kept.readouts, kept.change])
    same(gradients(again, given.inputs()), gradients(kept, given.inputs()))
    half = case("fully connected", dtype=torch.bfloat16, evidence="some", max_steps=6, theta=0)
    a, b = (half.settle(FUSED, readouts=True, checkpoint_every=n) for n in (None, 4))
    same([h.float() for h in a.states], [h.float() for h in b.states], 0.02)


@native
def test_states_computed_again_are_not_kept():
    given = case("many samples", dtype=torch.float32, max_steps=16, theta=0)
    sizes = {}
    for every in (None, 4):
        kept = 0

        def note(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            given.settle(FUSED, checkpoint_every=every)
        sizes[every] = kept
    assert sizes[4] < sizes[None] / 2
