"""Settling in Triton's interpreter, against the compiled operators: all results of the solve and of both gradients."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from torch import Tensor
from trajectories import whole_trajectory
from triton.runtime import interpreter

import lmser_kernels
from lmser_kernels.activation import check
from lmser_kernels.gpu.launch import recording
from lmser_kernels.settle import triton as launchers
from lmser_kernels.settle.triton_schedule import schedule

stop = importlib.import_module("lmser_kernels.settle.triton_stop")

pytestmark = [
    pytest.mark.native,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # infinity times 0
]

# Batch, channels of the layers, size of the visible layer, windows, kernel.
NETWORKS = {
    "pooled": (2, (2, 3, 4), (2, 8), ((1, 2), (2, 2)), (3, 3)),
    "fully connected": (5, (9, 7, 3), (1, 1), ((1, 1),) * 2, (1, 1)),
    "deep": (3, (4, 5, 6, 3), (1, 1), ((1, 1),) * 3, (1, 1)),
    "one edge": (2, (1, 3), (3, 6), ((1, 3),), (1, 3)),
}


@pytest.fixture(autouse=True)
def _quick_and_precise(monkeypatch):
    monkeypatch.setattr(stop, "LOOK_EVERY", 2)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # Checking every sum of integers takes as long as all the rest.
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))


def arguments(
    network, *, evidence="some", strength=1.0, external=False, reverse=False, zero=False, dtype=torch.float64,
    activation="tanh", order="up_down", theta=0.05, max_steps=6, per_sample=False, keep=False, half=False,
    readouts=False, gain=0.5,
):  # fmt: skip
    """Of the operator `settle`."""
    batch, channels, size, windows, kernel = NETWORKS[network]
    states, weights, reverse_weights, padding = [], [], [], []
    for i, c in enumerate(channels):
        if i:
            size = (size[0] // windows[i - 1][0], size[1] // windows[i - 1][1])
            scale = gain / (max(c, channels[i - 1]) * kernel[0] * kernel[1]) ** 0.5
            weights.append(torch.randn(c, channels[i - 1], *kernel, dtype=dtype) * scale)
            reverse_weights.append(weights[-1] + 0.1 * torch.randn_like(weights[-1]))
            padding += [kernel[0] // 2, kernel[1] // 2]
        state = 0.3 * torch.randn(batch, c, *size, dtype=dtype)
        states.append(torch.zeros_like(state) if zero and i else state)
    biases = [
        torch.randn(c, dtype=dtype) * 0.1 if i != 1 else torch.empty(0, dtype=dtype)
        for i, c in enumerate(channels)
    ]
    first = states[0]
    hold = None
    if evidence != "none":
        hold = torch.full_like(first, strength)
        if evidence == "some":
            hold *= torch.rand(first.shape) < 0.5
    return [
        states, weights, reverse_weights if reverse else [], biases,
        None if evidence == "none" else torch.randn_like(first) * 0.5, hold,
        torch.randn_like(first) * 0.1 if external else None, [p for window in windows for p in window], padding,
        activation, check(activation), order, theta, max_steps, per_sample, keep, half, readouts, 0.0, 0, "ignore",
    ]  # fmt: skip


def same(found, wanted, tolerance=1e-11):
    """Values, sizes, strides and dtypes."""
    for place, (f, w) in enumerate(zip(found, wanted, strict=True)):
        assert (f.shape, f.dtype) == (w.shape, w.dtype), place
        assert f.numel() == 0 or f.stride() == w.stride(), place
        loose = {torch.bfloat16: 1e-2, torch.float32: 1e-5}.get(f.dtype, tolerance)
        torch.testing.assert_close(f, w, rtol=loose, atol=loose, equal_nan=True)


def flat(results) -> list[Tensor]:
    states, *rest = results
    return [*states, *rest]


def solved(given):
    """The launches' results, checked against the compiled operator's, which may keep less than all states."""
    found = launchers.settle(*given)
    wanted = torch.ops.lmser.settle(*given)
    whole = found[2]
    if whole.shape != wanted[2].shape:
        states = whole_trajectory(given, int(wanted[3])).to(whole.dtype)
        wanted = (*wanted[:2], states, *wanted[3:])
    same(flat(found), flat(wanted))
    return found


SOLVES = {
    "plain": {"network": "pooled", "evidence": "none"},
    "evidence": {"network": "pooled", "order": "odd_even"},
    "wholly held": {"network": "pooled", "evidence": "all", "theta": 0.001},
    "blended": {"network": "one edge", "strength": 0.6, "external": True, "order": "odd_even"},
    "reverse weights": {"network": "deep", "max_steps": 4, "reverse": True, "activation": "leaky_sigmoid"},
    "kept": {"network": "pooled", "keep": True, "external": True, "strength": 0.7},
    "kept, nothing held": {"network": "one edge", "keep": True, "evidence": "none", "theta": 0.0, "max_steps": 3},
    "kept in half": {"network": "fully connected", "keep": True, "half": True, "dtype": torch.float32},
    "readouts": {"network": "fully connected", "readouts": True, "order": "odd_even", "evidence": "none"},
    "by sample": {"network": "fully connected", "per_sample": True, "max_steps": 8, "order": "odd_even"},
    "by sample, images": {"network": "pooled", "per_sample": True, "evidence": "all"},
    "readouts by sample": {"network": "one edge", "per_sample": True, "readouts": True, "max_steps": 7},
    "readouts by sample, nothing held": {
        "network": "fully connected", "per_sample": True, "readouts": True, "evidence": "none", "max_steps": 7,
    },
    "float32": {"network": "one edge", "dtype": torch.float32, "zero": True},
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVES)
def test_solve(name):
    *_, steps, _ = solved(arguments(**SOLVES[name]))
    if SOLVES[name].get("per_sample"):
        assert steps.min() < steps.max() or name != "by sample"


@pytest.mark.parametrize("look_every", [1, 100])
def test_sweeps_after_the_last_change_nothing(monkeypatch, look_every):
    """However late the host sees that the solve has stopped."""
    monkeypatch.setattr(stop, "LOOK_EVERY", look_every)
    steps = solved(arguments("one edge", readouts=True, max_steps=9))[3]
    assert 1 < int(steps) < 9


def test_nan_spreads_and_never_settles():
    given = arguments("one edge", evidence="none", max_steps=3)
    given[0][0][1, 0, 1, 2] = torch.nan
    _, _, _, steps, change = solved(given)
    assert int(steps) == 3
    assert change.isnan()


def test_inputs_stay_as_they_are():
    given = arguments("one edge", per_sample=True)
    before = [t.clone() for t in (*given[0], given[4], given[5])]
    launchers.settle(*given)
    same((*given[0], given[4], given[5]), before, 0)


def test_no_sample():
    given = arguments("pooled", keep=True)
    given[0] = [h[:0] for h in given[0]]
    given[4], given[5] = given[4][:0], given[5][:0]
    solved(given)


GRADIENTS = {
    "pooled": {"network": "pooled", "strength": 0.6, "external": True},
    "odd and even": {
        "network": "pooled",
        "order": "odd_even",
        "activation": "leaky_sigmoid",
        "reverse": True,
    },
    "wholly held": {"network": "one edge", "evidence": "all"},
    "fully connected": {"network": "deep", "evidence": "none", "activation": "sigmoid"},
}


def gradients(given, *, seed=0, without=()):
    """(the operators' results on the CPU, gradients of them), those of the states in `without` not given."""
    found = torch.ops.lmser.settle(*given)
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(h.shape, generator=generator, dtype=h.dtype) for h in found[0]]
    for i in without:
        states[i] = states[i].new_empty(0)
    return found, states, torch.randn(found[1].shape, generator=generator, dtype=found[1].dtype)


def through_sweeps(operators, given, found, grads, grad_readouts, needs):
    states, weights, reverse, _, evidence, hold, external, *settings = given
    return operators.settle_backward(
        grads, grad_readouts, states, weights, reverse, evidence, hold, external is not None, *found[1:3],
        *settings[:5], needs,
    )  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_of_the_sweeps(name):
    given = arguments(
        **GRADIENTS[name], keep=True, theta=0.0, max_steps=3 if name == "fully connected" else 2
    )
    found, grads, grad_readouts = gradients(given, without=(1,) if name == "pooled" else ())
    needs = [True] * 5
    if name == "fully connected":
        grad_readouts, needs = grad_readouts.new_empty(0), [False, True, False, True, True]
    kept = launchers.settle(*given)  # of a wholly held layer more is kept than on a CPU
    wanted = through_sweeps(torch.ops.lmser, given, found, grads, grad_readouts, needs)
    same(through_sweeps(launchers, given, kept, grads, grad_readouts, needs), wanted)


def test_weight_gradients_of_many_sweeps_at_once_and_of_each(monkeypatch):
    given = arguments("one edge", keep=True, theta=0.0, max_steps=3)
    found, grads, grad_readouts = gradients(given)
    room = importlib.import_module("lmser_kernels.settle.triton_gradients")
    for size in (1, 1 << 20):
        monkeypatch.setattr(room, "_BYTES", size)
        got, wanted = (
            through_sweeps(operators, given, found, grads, grad_readouts, [False, True, False, False, False])
            for operators in (launchers, torch.ops.lmser)
        )
        same(got, wanted)


@pytest.mark.parametrize(("name", "theta"), [*((name, 0.05) for name in GRADIENTS), ("odd and even", 0.0)])
def test_gradient_of_the_fixed_point(name, theta):
    given = arguments(**GRADIENTS[name])
    (fixed, readouts, *_), grads, grad_readouts = gradients(given, without=(0,) if name == "pooled" else ())
    _, weights, reverse, _, evidence, hold, external, *settings = given
    if name == "fully connected":
        grad_readouts = grad_readouts[:, :0]
    call = (
        grads, grad_readouts[0] if grad_readouts.numel() else grads[0].new_empty(0), fixed, weights, reverse, evidence,
        hold, external is not None, readouts[0], *settings[:5], theta, 2 if theta == 0 else 7,
        [False, True, theta > 0, True, True],
    )  # fmt: skip
    found, wanted = launchers.settle_adjoint(*call), torch.ops.lmser.settle_adjoint(*call)
    same(flat(found), flat(wanted))
    assert int(found[1]) == 2 if theta == 0 else int(found[1]) < 7


def test_gradient_of_nothing_is_zero_at_once():
    given = arguments("one edge", evidence="none")
    fixed, readouts, *_ = torch.ops.lmser.settle(*given)
    zero = [torch.zeros_like(h) for h in fixed]
    call = (
        zero, zero[0], fixed, *given[1:3], None, None, False, readouts[0], *given[7:12], 0.0, 5,
        [False, True, True, True, True],
    )  # fmt: skip
    found = flat(launchers.settle_adjoint(*call))
    same(found, flat(torch.ops.lmser.settle_adjoint(*call)))
    assert int(found[-2]) == 1


@pytest.mark.parametrize("backward", ["bptt", "implicit"])
def test_through_the_public_function(backward):
    given = arguments("one edge")
    states, weights, _, _, evidence, hold = given[:6]

    def run(impl):
        inputs = [t.detach().clone().requires_grad_() for t in (*weights, evidence)]
        found = lmser_kernels.settle(
            states, inputs[:-1], None, evidence=inputs[-1], mask=hold == 1, pools=NETWORKS["one edge"][3], theta=0.05,
            max_steps=2, backward=backward, adjoint_max_steps=2, unconverged="ignore", readouts=True, impl=impl,
        )  # fmt: skip
        assert found.readouts is not None
        outputs = [*found.states, found.readouts]
        return [*outputs, found.steps, *torch.autograd.grad(sum(o.sin().sum() for o in outputs), inputs)]

    same([t.contiguous() for t in run("triton")], [t.contiguous() for t in run("native")])


def on_meta(given):
    def without_memory(value):
        if isinstance(value, list):
            return [without_memory(v) for v in value]
        return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value

    return [without_memory(value) for value in given]


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
def test_every_drive_is_computed_once_a_sweep(order):
    """In an upward pass the drive from above is the one of the last downward pass, and the other way round."""
    edges = len(NETWORKS["deep"][1]) - 1
    counts = []
    for sweeps in (1, 2):
        with recording(90) as made:
            launchers.settle(*on_meta(arguments("deep", evidence="none", order=order, max_steps=sweeps)))
        launched = [x.arguments for x in made.launches if x.kernel.__name__ == "update_kernel"]
        counts.append([sum(a[name] is not None for a in launched) for name in ("w_below", "w_above")])
    assert [later - first for first, later in zip(*counts, strict=True)] == [edges, edges]


def test_an_update_is_one_launch_and_a_sweep_no_more():
    with recording(90) as made:
        launchers.settle(*on_meta(arguments("pooled", theta=0.05, max_steps=3)))
    names = [x.kernel.__name__ for x in made.launches]
    updates = sum(len(schedule(3, "up_down").sweep(t)) for t in range(3))
    assert names.count("update_kernel") == updates + 1  # and the last readout
    others = [name for name in names if name != "update_kernel"]
    assert others == ["all_held_kernel", "hold_kernel", "window_sums", "outcome_kernel"]


def test_captured_sweeps_cannot_be_counted(monkeypatch):
    monkeypatch.setattr(
        importlib.import_module("lmser_kernels.settle.triton_solve"), "capturing", lambda like: True
    )
    with pytest.raises(RuntimeError, match=r"known on the device alone.*expected theta=0.*got theta=0\.05"):
        launchers.settle(*arguments("one edge", keep=True))
    monkeypatch.setattr(stop, "capturing", lambda like: True)
    assert int(solved(arguments("one edge"))[3]) < 6  # without them all sweeps are launched
    solved(arguments("one edge", keep=True, theta=0.0, max_steps=2))


def test_errors_name_the_argument():
    given = arguments("one edge", per_sample=True, keep=True)
    with pytest.raises(ValueError, match="per_sample cannot keep a trajectory"):
        launchers.settle(*given)
    given = arguments("one edge", keep=True, theta=0.0, max_steps=2)
    found, grads, grad_readouts = gradients(given)
    with pytest.raises(ValueError, match="trajectory must have 72 values; got 71"):
        through_sweeps(launchers, given, (*found[:2], found[2][1:]), grads, grad_readouts, [True] * 5)
