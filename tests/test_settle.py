"""`settle`: the compiled operator against the reference, values and all gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from implementations import DEVICE, FUSED, randn
from settle_cases import SHAPES, VARIANTS, case, gradients, same

import lmser_kernels
from lmser_kernels import settle

pytestmark = pytest.mark.operators

native = pytest.mark.native


@native
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bptt_agrees_with_the_reference(shape, variant, order):
    activation = "tanh" if order == "up_down" else "leaky_sigmoid"
    given = case(shape, activation=activation, order=order, theta=0.0, max_steps=4, **VARIANTS[variant])
    found, wanted = (given.settle(impl, readouts=True) for impl in (FUSED, "reference"))
    same(found.states, wanted.states)
    same([found.readouts, found.steps], [wanted.readouts, wanted.steps])
    if given.states[0].shape[0]:
        same([found.change], [wanted.change])
    same(gradients(found, given.inputs()), gradients(wanted, given.inputs()))


@native
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "no sample"])
def test_implicit_agrees_with_long_bptt(shape, variant, order):
    given = case(shape, order=order, activation="tanh", gain=0.3, **VARIANTS[variant])
    long = given.settle(FUSED, theta=1e-13, max_steps=400)
    implicit = given.settle(
        FUSED, theta=1e-13, max_steps=400, backward="implicit", adjoint_theta=1e-12, unconverged="raise"
    )
    reference = given.settle(
        "reference", theta=1e-13, max_steps=400, backward="implicit", adjoint_theta=1e-12, unconverged="raise"
    )
    same(implicit.states, long.states, 1e-9)
    inputs = given.inputs()[len(given.states) :]  # no gradient reaches the initial states
    found = gradients(implicit, inputs)
    same(found, gradients(long, inputs), 1e-6)
    same(found, gradients(reference, inputs), 1e-8)


@native
@pytest.mark.parametrize("variant", ["some evidence", "all evidence", "blended"])
def test_implicit_readout_is_the_last(variant):
    given = case("three edges, pooled", **VARIANTS[variant])
    found, wanted = (
        given.settle(
            impl, theta=1e-13, max_steps=400, backward="implicit", readouts=True, adjoint_theta=1e-13
        )
        for impl in (FUSED, "reference")
    )
    assert found.readouts.shape[0] == 1
    same([found.readouts], [wanted.readouts], 1e-9)
    inputs = given.inputs()[len(given.states) :]
    same(gradients(found, inputs), gradients(wanted, inputs), 1e-8)


@pytest.mark.many_calls
@native
@pytest.mark.parametrize("shape", ["three edges, pooled", "fully connected"])
def test_finite_differences(shape):
    given = case(shape, evidence="some", strength=0.7, zero=False)
    names = given.inputs()

    def run(*tensors):
        layers, edges = len(given.states), len(given.weights)
        found = settle(
            tensors[:layers],
            tensors[layers : layers + edges],
            tensors[layers + edges : 2 * layers + edges],
            evidence=tensors[-1],
            mask=given.options["mask"],
            strength=0.7,
            pools=given.options["pools"],
            theta=0,
            max_steps=3,
            readouts=True,
            impl=FUSED,
        )
        return (*found.states, found.readouts)

    assert torch.autograd.gradcheck(run, names, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, names, fast_mode=True)


@native
@pytest.mark.parametrize("readouts", [False, True])
@pytest.mark.parametrize("evidence", ["none", "some", "all"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_sample_stops_by_itself(shape, evidence, readouts):
    given = case(
        shape, evidence=evidence, grad=False, gain=1.0, theta=1e-3, per_sample=True, readouts=readouts
    )
    found, wanted = given.settle(FUSED), given.settle("reference")
    same(found.states, wanted.states)
    assert torch.equal(found.steps, wanted.steps)
    same([found.change, found.readouts], [wanted.change, wanted.readouts])
    # and as if each were alone
    for n in range(min(3, len(found.steps))):
        alone = case(shape, grad=False)
        alone.states, alone.weights, alone.biases = (
            [s[n : n + 1] for s in given.states],
            given.weights,
            given.biases,
        )
        alone.options = {
            **given.options,
            "per_sample": False,
            **{
                k: given.options[k][n : n + 1]
                for k in ("evidence", "mask")
                if given.options.get(k) is not None
            },
        }
        single = alone.settle(FUSED)
        assert int(single.steps) == int(found.steps[n])
        same(single.states, [h[n : n + 1] for h in found.states])


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "view"])
def test_dtypes_and_layouts(dtype, layout):
    exact = case("three edges, pooled", evidence="some", gain=1.0, max_steps=5, theta=0)
    wanted = exact.settle("reference", readouts=True)
    given = case("three edges, pooled", grad=False)

    def to(tensor):
        tensor = tensor.detach().to(dtype)
        if layout == "channels_last" and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        if layout == "view":
            tensor = torch.stack([tensor, tensor], -1)[..., 0]
        return tensor.requires_grad_()

    given.states, given.weights, given.biases = (
        [to(t) for t in part] for part in (exact.states, exact.weights, exact.biases)
    )
    given.options = {**exact.options, "evidence": to(exact.options["evidence"])}
    found = given.settle(FUSED, readouts=True)
    assert all(h.dtype == dtype for h in (*found.states, found.readouts))
    assert found.states[0].is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.01}[dtype]
    same([h.double() for h in found.states], wanted.states, tolerance)
    for a, b in zip(gradients(found, given.inputs()), gradients(wanted, exact.inputs()), strict=True):
        if a is None or b is None:
            continue
        assert float((a.double() - b).abs().max()) <= 20 * tolerance * max(float(b.abs().max()), 1e-3)


@native
def test_many_sweeps_and_room_for_them():
    given = case("fully connected", evidence="some", theta=0, max_steps=75)
    found, wanted = (given.settle(impl, readouts=True) for impl in (FUSED, "reference"))
    same([found.readouts, *found.states], [wanted.readouts, *wanted.states])
    same(gradients(found, given.inputs()), gradients(wanted, given.inputs()))


@native
@pytest.mark.parametrize("backward", ["bptt", "implicit"])
@pytest.mark.parametrize("impl", [FUSED, "reference"])
def test_no_samples_have_gradients(impl, backward):
    states = [torch.zeros(0, c, 1, 1, dtype=torch.float64, requires_grad=True) for c in (5, 4)]
    weight = torch.ones(4, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    found = settle(
        states, [weight], None, theta=0.5, max_steps=5, backward=backward, readouts=True, impl=impl
    )
    assert found.readouts is not None
    (found.readouts.sum() + found.states[1].sum()).backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


@native
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_in_their_sample(value):
    given = case("three edges, pooled", dtype=torch.float32, grad=False, max_steps=6, theta=1e-6)
    given.states[0][1, 0, 2, 3] = value
    with torch.backends.cudnn.flags(
        enabled=False
    ):  # of its algorithms some spread what is not finite over a tile
        found, wanted = given.settle(FUSED), given.settle("reference")
    for a, b in zip(found.states, wanted.states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert bool(found.states[0][0].isfinite().all())
    assert bool(found.change.isnan()) == bool(wanted.change.isnan())


@native
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("shape", ["five by five", "many samples", "wide", "fully connected"])
def test_results_do_not_depend_on_the_number_of_threads(shape, order):
    """Nor on whether threads take samples of their own or share those there are: bit by bit."""
    given = case(shape, dtype=torch.float32, evidence="some", zero=False, order=order, max_steps=3, theta=0)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found = given.settle(FUSED, readouts=True)
            assert found.readouts is not None
            results.append([*found.states, found.readouts, found.change, *gradients(found, given.inputs())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0][: len(given.states) + 2], other, strict=False):
            assert torch.equal(a, b)
        for a, b in zip(results[0], other, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert (a - b).norm().item() <= 1e-5 * a.norm().item()


@native
@pytest.mark.parametrize("threads", [1, 2])
def test_many_samples_that_stop_one_by_one(threads):
    """As many batch sizes as there are samples, each with plans of its own."""
    generator = torch.Generator("cpu").manual_seed(3)
    weights = [1.5 * randn((30, 20, 1, 1), generator) / 30**0.5]
    evidence = torch.linspace(0, 4, 400).view(400, 1, 1, 1) * randn((400, 20, 1, 1), generator)
    mask = torch.arange(20).view(1, 20, 1, 1).expand(400, -1, 1, 1) < 10
    states = [torch.zeros(400, 20, 1, 1), 0.5 * randn((400, 30, 1, 1), generator)]
    before = torch.get_num_threads()
    results = []
    try:
        torch.set_num_threads(threads)
        for impl in (FUSED, "reference"):
            results.append(
                settle(
                    states, weights, None, evidence=evidence, mask=mask, theta=1e-6, max_steps=400, per_sample=True,
                    impl=impl,
                )
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    found, wanted = results
    assert len(found.steps.unique()) > 64
    same(found.states, wanted.states, 1e-5)


@native
def test_samples_alone_or_together():
    """A sample of a batch settles as it does by itself, however many take their sweeps at a time."""
    given = case("many samples", dtype=torch.float32, evidence="some", grad=False, max_steps=4, theta=0)
    together = given.settle(FUSED).states
    one = case("many samples", dtype=torch.float32, evidence="some", grad=False, max_steps=4, theta=0)
    one.weights, one.biases = given.weights, given.biases
    for n in (0, 4, 8):
        one.states = [h[n : n + 1] for h in given.states]
        one.options = given.options | {
            key: given.options[key][n : n + 1] for key in ("evidence", "mask") if key in given.options
        }
        for a, b in zip(one.settle(FUSED).states, together, strict=True):
            torch.testing.assert_close(a, b[n : n + 1], rtol=1e-5, atol=1e-6)


@native
def test_compiles_without_a_break():
    given = case("three edges, pooled", dtype=torch.float32, evidence="some", max_steps=5, theta=0)

    def loss(weight):
        found = settle(
            given.states, [weight, *given.weights[1:]], given.biases, readouts=True, **given.options
        )
        return found.readouts.square().mean() + found.states[2].sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    weight = given.weights[0]
    same(torch.autograd.grad(compiled(weight), weight), torch.autograd.grad(loss(weight), weight), 1e-5)


def test_transforms_of_torch_func_take_the_reference():
    given = case("fully connected", grad=False, max_steps=3, theta=0)

    def total(weight, impl):
        return (
            settle(given.states, [weight, given.weights[1]], given.biases, impl=impl, theta=0, max_steps=3)
            .states[0]
            .sum()
        )

    found = torch.func.grad(total)(given.weights[0], "reference")
    weight = given.weights[0].clone().requires_grad_()
    same([found], torch.autograd.grad(total(weight, "auto"), weight))
    if lmser_kernels._library.available:
        with pytest.raises(RuntimeError, match='impl="reference"'):
            torch.func.grad(total)(given.weights[0], FUSED)


def test_a_fixed_point_that_was_not_reached():
    for impl in ("reference", *([FUSED] if lmser_kernels._library.available else [])):
        given = case("fully connected", max_steps=2, theta=1e-12, backward="implicit")
        with pytest.raises(RuntimeError, match="not converged after 2 sweeps"):
            gradients(given.settle(impl, unconverged="raise"), given.weights)
        with pytest.warns(RuntimeWarning, match="not converged"):
            gradients(given.settle(impl, unconverged="warn"), given.weights)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradients(given.settle(impl, unconverged="ignore"), given.weights)


def test_clamped_units_never_move():
    given = case("three edges, pooled", evidence="some", grad=False, max_steps=7, theta=0)
    mask, evidence = given.options["mask"], given.options["evidence"]
    for impl in ("reference", *([FUSED] if lmser_kernels._library.available else [])):
        assert torch.equal(given.settle(impl).states[0][mask], evidence[mask])


ERRORS = [
    ({"states": []}, ValueError, "states: expected 3"),
    ({"weights": []}, ValueError, "weights: expected at least one"),
    ({"biases": [None]}, ValueError, "biases: expected 3"),
    ({"pools": (1,)}, ValueError, "pools: expected 2"),
    ({"pools": (1, 3)}, ValueError, r"pools\[1\]: the height"),
    ({"padding": (0, 1)}, ValueError, r"states\[1\] must have height 2"),
    ({"mask": torch.ones(2, 2, 4, 4)}, ValueError, "mask: expected evidence"),
    ({"evidence": torch.zeros(2, 2, 4)}, ValueError, "evidence must have the shape of states"),
    ({"evidence": torch.zeros(2, 2, 4, 4), "mask": torch.ones(2, 2, 4, 4)}, TypeError, "mask must be bool"),
    ({"order": "random"}, ValueError, "order must be one of 'up_down', 'odd_even'; got 'random'"),
    ({"backward": "both"}, ValueError, "backward must be one of"),
    ({"theta": -1.0}, ValueError, "theta must not be negative"),
    ({"theta": float("nan")}, ValueError, "theta must be finite"),
    ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
    ({"checkpoint_every": 2.5}, TypeError, "checkpoint_every must be an int"),
    ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
    ({"max_steps": 2.0}, TypeError, "max_steps must be an int"),
    ({"strength": 1.5}, ValueError, "strength must be between 0 and 1"),
    ({"unconverged": "stop"}, ValueError, "unconverged must be one of"),
    ({"activation": "softmax"}, ValueError, "activation must be one of"),
    ({"impl": "cuda"}, ValueError, "impl must be one of"),
    ({"reverse_weights": [torch.zeros(3, 2, 3, 3)]}, ValueError, "reverse_weights: expected 2"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=[m for _, _, m in ERRORS])
def test_bad_arguments_are_named(change, error, message):
    arguments = {
        "states": [torch.zeros(2, 2, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2)],
        "weights": [torch.zeros(3, 2, 3, 3), torch.zeros(5, 3, 3, 3)],
        "biases": None,
        "pools": (1, 2),
        **change,
    }
    with pytest.raises(error, match=message):
        settle(**arguments)


def test_per_sample_with_bptt_is_refused_where_a_gradient_is_asked_for():
    given = case("fully connected")
    with pytest.raises(ValueError, match="per_sample"):
        given.settle("auto", per_sample=True)
    with torch.no_grad():
        assert given.settle("auto", per_sample=True).steps.shape == (7,)


@native
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
def test_minimal_filtering_inside(order):
    """Wide enough that the convolutions and the weight gradients run as Winograd."""
    given = case("wide", dtype=torch.float32, order=order, evidence="some", gain=1.0, theta=0, max_steps=3)
    plans = lmser_kernels.explain("settle", given.states, given.weights, given.biases, pools=(1, 2)).plans
    if DEVICE.type == "cpu":
        assert any("minimal filtering" in str(plan["kernel"]) for plan in plans.values())
    exact = given.double()
    found, wanted = given.settle(FUSED, readouts=True), exact.settle("reference", readouts=True)
    same([h.double() for h in (*found.states, found.readouts)], [*wanted.states, wanted.readouts], 1e-5)
    for a, b in zip(gradients(found, given.inputs()), gradients(wanted, exact.inputs()), strict=True):
        assert (a is None) == (b is None) or not bool((a if b is None else b).any())
        if a is not None and b is not None:
            assert float((a.double() - b).norm()) <= 1e-5 * float(b.norm())


@native
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("evidence", ["none", "some", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])  # f(0) is zero, and is not
@pytest.mark.parametrize("shape", ["three edges, pooled", "wide", "many samples", "five by five"])
def test_change_is_how_far_the_last_sweep_moved_the_states(
    shape, activation, dtype, evidence, order, per_sample
):
    """To the bit, by whichever kernel, and whether a state is written beside its last or over it."""
    given = case(shape, dtype=dtype, zero=False, evidence=evidence, grad=False, activation=activation)
    before = given.states
    if evidence != "none":
        held = given.options.get("mask", torch.ones_like(before[0], dtype=torch.bool))
        before = [torch.where(held, given.options["evidence"], before[0]), *before[1:]]
    for sweeps in range(1, 5):
        found = given.settle(
            FUSED, theta=0.0, max_steps=sweeps, order=order, per_sample=per_sample, unconverged="ignore"
        )
        moved = [(a - b).abs().flatten(1).amax(1) for a, b in zip(found.states, before, strict=True)]
        by_sample = torch.stack(moved).amax(0)
        assert torch.equal(found.change, by_sample if per_sample else by_sample.max())
        before = found.states


@native
def test_what_is_not_finite_takes_the_direct_sum():
    """A sample with NaN makes its convolutions run again; the others, their change and gradients are as before."""
    given = case(
        "wide", dtype=torch.float32, gain=1.0, zero=False, per_sample=True, grad=False, max_steps=3, theta=0
    )
    clean = given.settle(FUSED)
    given.states[0][1, 0, 5, 6] = float("nan")
    found = given.settle(FUSED)
    assert bool(found.change[1].isnan())
    for n in (0, 2):
        same([h[n] for h in found.states], [h[n] for h in clean.states], 1e-5)
        same([found.change[n]], [clean.change[n]], 1e-4)
    again = case("wide", dtype=torch.float32, gain=1.0, zero=False, max_steps=3, theta=0)
    with torch.no_grad():
        again.states[0][1, 0, 5, 6] = float("nan")
    a, b = (gradients(again.settle(impl, readouts=True), again.inputs()) for impl in (FUSED, "reference"))
    for n in (0, 2):
        assert bool(a[0][n].isfinite().all())
        same([a[0][n]], [b[0][n]], 1e-3)
