"""Layers whose states settling does not keep for its backward but makes again: the gradients of the reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from settle_cases import gradients, same

from lmser_kernels import settle

pytestmark = pytest.mark.native

# (channels, size, windows, kernel, batch), and the hidden layers that are made again: all between the first and the last
# whose drive from below takes at most 512 multiply-adds a value.
NETWORKS = {
    "all": ((3, 6, 9, 4), (8, 12), (1, 2, 2), 3, 3, (1, 2)),
    "without windows": ((2, 7, 5, 3), (5, 6), (1, 1, 1), 3, 2, (1, 2)),
    "not the second": ((2, 60, 7, 5), (8, 8), (1, 2, 1), 3, 2, (1,)),
    "not the first": ((60, 24, 16, 5), (8, 4), (1, 2, 2), 3, 2, (2,)),
    "none": ((513, 9, 5), (1, 1), (1, 1), 1, 4, ()),
    "unlike windows": ((3, 8, 5, 4), (12, 12), ((1, 1), (3, 2), (2, 3)), 3, 1, (1, 2)),
    "pooled visible": ((3, 8, 5, 4), (16, 8), (2, 2, 2), 3, 2, (1, 2)),
    "few channels": ((2, 2, 3, 1), (12, 8), (1, (3, 2), 2), 3, 2, (1, 2)),
    "deep": ((2, 5, 6, 4, 7, 3), (8, 8), (1, 2, 1, 1, 2), 3, 2, (1, 2, 3, 4)),
    "no sample": ((3, 6, 9, 4), (8, 12), (1, 2, 2), 3, 0, (1, 2)),
}
VARIANTS = (
    "plain",
    "some evidence",
    "all evidence",
    "blended",
    "external",
    "free reverse weights",
    "no biases",
)


def network(name, dtype=torch.float64, *, variant="plain", start="zero", **options):
    """A call of `settle` from hidden states that are zero, anywhere, or zero in every second layer."""
    channels, size, pools, kernel, batch, _ = NETWORKS[name]
    draw = torch.Generator().manual_seed(len(name))

    def made(*shape, scale=1.0):
        return (torch.randn(shape, generator=draw, dtype=torch.float64) * scale).to(dtype)

    states, here = [], size
    for layer, width in enumerate(channels):
        if layer:
            pool = pools[layer - 1] if isinstance(pools[layer - 1], tuple) else (pools[layer - 1],) * 2
            here = (here[0] // pool[0], here[1] // pool[1])
        state = made(batch, width, *here, scale=0.3)
        zero = layer and (start == "zero" or (start == "mixed" and layer % 2))
        states.append(torch.zeros_like(state) if zero else state)
    call = {
        "pools": pools,
        "theta": 0.0,
        "max_steps": 4,
        "readouts": True,
        "unconverged": "ignore",
        **options,
    }
    call["weights"] = [
        made(above, below, kernel, kernel, scale=0.8 / (max(above, below) * kernel**2) ** 0.5)
        for below, above in pairwise(channels)
    ]
    call["biases"] = None if variant == "no biases" else [made(c, scale=0.2) for c in channels]
    if variant in ("some evidence", "all evidence", "blended", "free reverse weights"):
        call["evidence"] = made(*states[0].shape, scale=0.5)
    if variant in ("some evidence", "blended", "free reverse weights"):
        call["mask"] = torch.rand(states[0].shape, generator=draw) < 0.6
    if variant == "blended":
        call["strength"] = 0.7
    if variant == "external":
        call["external"] = made(*states[0].shape, scale=0.2)
    if variant == "free reverse weights":
        call["reverse_weights"] = [w + made(*w.shape, scale=0.05) for w in call["weights"]]
    return states, call


def found(states, call, **options):
    """What `settle` gives, its gradients, and how many values of a trajectory it keeps."""
    inputs = [s.detach().clone() for s in states]
    call = call | options
    leaves = list(inputs)
    for name, value in call.items():
        if isinstance(value, list):
            call[name] = [v.detach().clone() for v in value]
            leaves += call[name]
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            call[name] = value.detach().clone()
            leaves.append(call[name])
    for leaf in leaves:
        leaf.requires_grad_()
    weights, biases = call.pop("weights"), call.pop("biases")
    kept = []

    def note(tensor):
        kept.append(tensor.numel() if tensor.dim() == 1 else 0)  # the trajectory
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        result = settle(inputs, weights, biases, **call)
    return result, gradients(result, leaves), max(kept)


@pytest.mark.parametrize("start", ["zero", "anywhere", "mixed"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_the_reference(name, variant, threads, start):
    torch.set_num_threads(threads)
    states, call = network(name, variant=variant, start=start)
    result, grads, kept = found(states, call)
    reference, wanted, _ = found(states, call, impl="reference")
    same([*result.states, result.readouts], [*reference.states, reference.readouts], 1e-13)
    same(grads, wanted, 1e-12)
    if states[0].shape[0]:
        # The states of every update; under a visible layer that never changes the first hidden one is updated for a drive
        # from below in the first sweep alone, and neither it nor the next is made again.
        updates = [call["max_steps"] * 2] * (len(states) - 2) + [call["max_steps"]]
        if variant == "all evidence":
            updates[0] = call["max_steps"] + 1
        most = sum(count * h.numel() for count, h in zip(updates, states[1:], strict=True))
        again = [layer for layer in NETWORKS[name][-1] if variant != "all evidence" or layer > 2]
        assert (kept < most) == bool(again)


@pytest.mark.parametrize("start", ["zero", "anywhere"])
def test_what_is_kept(start):
    """Of a layer made again the drive from above alone, one value a window, and once more for the first sweep."""
    for name, (channels, size, pools, _, batch, again) in NETWORKS.items():
        if not batch or any(isinstance(p, tuple) for p in pools):
            continue
        states, call = network(name, variant="no biases", start=start)
        kept = found(states, call)[2]
        values, here = 0, (size[0] // pools[0], size[1] // pools[0])
        for layer in range(1, len(channels)):
            whole = batch * channels[layer] * here[0] * here[1]
            pool = pools[layer] if layer < len(pools) else 1
            if layer in again:
                values += (call["max_steps"] + 1) * whole // pool**2
            else:
                values += call["max_steps"] * whole * (1 if layer == len(channels) - 1 else 2)
            here = (here[0] // pool, here[1] // pool)
        assert kept == values, name


@pytest.mark.parametrize("name", ["all", "not the first", "few channels"])
def test_single_precision(name):
    states, call = network(name, torch.float32, variant="some evidence")
    _, grads, _ = found(states, call)
    _, wanted, _ = found(*network(name, variant="some evidence"))
    same([None if g is None else g.double() for g in grads], wanted, 3e-5)
    _, again, _ = found(states, call)
    same(again, grads, 0)  # to the bit, every time
    _, rounded, _ = found(states, call | {"trajectory_dtype": torch.bfloat16})
    off = [
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(rounded, wanted, strict=True)
        if b is not None
    ]
    assert 1e-5 < max(off) < 0.03


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_where_it_does_in_the_reference(value):
    states, call = network("all", torch.float32, variant="some evidence")
    call["evidence"][0, 0, 0, 0], call["mask"][0, 0, 0, 0] = value, True
    result, grads, _ = found(states, call)
    reference, wanted, _ = found(states, call, impl="reference")
    for a, b in zip([*result.states, *grads], [*reference.states, *wanted], strict=True):
        if b is not None and a is not None:
            assert torch.equal(a.isnan(), b.isnan())


def test_loss_of_early_sweeps_alone():
    states, call = network("all", variant="some evidence")
    weights = [w.requires_grad_() for w in call.pop("weights")]
    biases = call.pop("biases")
    early = settle(states, weights, biases, **call).readouts[1].square().sum()
    short = settle(states, weights, biases, **{**call, "max_steps": 2}).readouts[1].square().sum()
    same(torch.autograd.grad(early, weights), torch.autograd.grad(short, weights), 1e-13)
