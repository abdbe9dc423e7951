"""`reflect_loss`: the reconstruction error with its gradients in one operation, against the reference's."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_reflect import NETWORKS, VARIANTS, Case, same
from torch import Tensor, nn

from lmser.baselines import EagerCLmser, EagerLmser
from lmser.models import CLmser, Lmser, reflection_loss
from lmser_kernels import _library, dispatch, reference, reflect_loss
from lmser_kernels.reflect import loss_ops


class LossCase(Case):
    """Of weights and biases, for a constant image."""

    def __init__(self, network: str, variant: str = "plain") -> None:
        super().__init__(network, variant)
        self.x.requires_grad_(False)

    def loss(self, impl: str = "native", **options: Any) -> Tensor:
        return reflect_loss(
            self.x, self.weights, self.biases, decoder_weights=self.back or None, impl=impl, **self.options | options
        )  # fmt: skip

    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.back, *self.biases]

    def randn_like_x(self) -> Tensor:
        return torch.randn(self.x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def found_and_gradients(case: LossCase, impl: str = "native", **options: Any) -> list[Tensor]:
    loss = case.loss(impl, **options)
    return [loss, *torch.autograd.grad(loss, case.parameters())]


@pytest.mark.parametrize("target", [False, True], ids=["itself", "target"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "no image"])
def test_values_and_gradients(network, variant, target):
    case = LossCase(network, variant)
    options = {"target": case.randn_like_x()} if target else {}
    same(found_and_gradients(case, **options), found_and_gradients(case, "reference", **options))
    with torch.no_grad():
        alone = case.loss(**options)
    assert not alone.requires_grad
    same([alone], [case.loss("reference", **options)])


def test_the_equation():
    case = LossCase("three edges", "reflections")
    reconstruction = reference.reflect(case.x, case.weights, case.biases, **case.options).reconstruction
    wanted = 0.5 * (case.x - reconstruction).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(case.loss(), wanted)
    torch.testing.assert_close(
        reference.reflect_loss(case.x, case.weights, case.biases, **case.options), wanted
    )


def test_no_image():
    case = LossCase("no image")
    loss, *gradients = found_and_gradients(case)
    assert loss.isnan()
    assert case.loss("reference").isnan()
    assert all(not g.any() for g in gradients)


@pytest.mark.parametrize("part", ["weights", "biases", "one weight"])
def test_gradients_of_a_part(part):
    case = LossCase("filtered", "reflections")
    wanted = found_and_gradients(case, "reference")[1:]
    parameters = case.parameters()
    asked = {"weights": case.weights, "biases": case.biases, "one weight": case.weights[:1]}[part]
    for t in parameters:
        t.requires_grad_(any(t is a for a in asked))
    case.loss().backward()
    for t, gradient in zip(parameters, wanted, strict=True):
        same([t.grad], [gradient if t.requires_grad else None])


def test_what_comes_from_above_scales_the_gradients():
    case = LossCase("three edges")
    once = found_and_gradients(case)[1:]
    same(torch.autograd.grad(-2.5 * case.loss() + 3, case.parameters()), [-2.5 * g for g in once])
    same(
        torch.autograd.grad(case.loss(), case.parameters(), torch.tensor(0.0).double()), [0 * g for g in once]
    )
    seeds = torch.tensor([1.0, -2.0]).double()
    both = torch.autograd.grad(case.loss(), case.parameters(), seeds, is_grads_batched=True)
    same(both, [torch.stack([g, -2 * g]) for g in once])


def test_gradients_are_handed_out_and_made_again_for_a_second_backward():
    case = LossCase("three edges")
    loss = case.loss()
    made = {g.data_ptr() for g in loss.grad_fn.gradients}
    loss.backward(retain_graph=True)
    once = [t.grad.clone() for t in case.parameters()]
    assert {t.grad.data_ptr() for t in case.parameters()} == made  # no copies
    loss.backward()
    same([t.grad for t in case.parameters()], [2 * g for g in once])


def test_what_was_changed_in_place_is_noticed():
    case = LossCase("three edges")
    loss = case.loss()
    loss.backward(retain_graph=True)
    with torch.no_grad():
        case.weights[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("target", [False, True], ids=["itself", "target"])
def test_gradients_of_what_is_reconstructed(target):
    case = LossCase("three edges", "reflections")
    options = {"target": case.randn_like_x().requires_grad_()} if target else {}
    case.x.requires_grad_(not target)
    inputs = [*case.parameters(), options["target"] if target else case.x]
    found, wanted = (
        torch.autograd.grad(case.loss(impl, **options), inputs) for impl in ("native", "reference")
    )
    same(found, wanted)


@pytest.mark.parametrize("variant", ["plain", "mixed top", "tanh"])
def test_second_derivatives(variant):
    case = LossCase("one image", variant)

    def twice(impl: str) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(2 * case.loss(impl), case.parameters(), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), case.parameters())

    same(twice("native"), twice("reference"), 1e-9)


@pytest.mark.parametrize("layout", ["channels-last", "strided"])
def test_layouts(layout):
    case = LossCase("three edges", "reflections")
    target = case.randn_like_x()
    if layout == "channels-last":
        case.x = case.x.contiguous(memory_format=torch.channels_last)
    else:
        case.x = torch.randn(5, 3, 26, 36, dtype=torch.float64)[:, :, ::2, ::2]
        target = torch.randn(5, 6, 18, 13, dtype=torch.float64)[:, ::2].transpose(2, 3)
        case.weights[1] = (
            case.weights[1].detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
        )
    same(found_and_gradients(case, target=target), found_and_gradients(case, "reference", target=target))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    case = LossCase("three edges")
    case.to(dtype)
    assert case.loss().dtype == torch.float32
    torch.testing.assert_close(case.loss(), case.loss("reference"), rtol=2e-2, atol=2e-2)


def test_float32_through_minimal_filtering_and_autocast():
    case = LossCase("filtered")
    case.options["activation"] = "tanh"
    wanted = found_and_gradients(case, "reference")
    case.to(torch.float32).x.requires_grad_(False)
    found = found_and_gradients(case)
    assert found[0].dtype == torch.float32
    for a, b in zip(found, wanted, strict=True):
        assert (a.double() - b).abs().max() < 1e-5 * b.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(case.loss("auto"), found[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("network", ["three edges", "filtered"])
def test_what_is_not_finite(network, value):
    case = LossCase(network)
    case.to(torch.float32).x.requires_grad_(False)
    case.x[0, 0, 4, 5] = value
    for a, b in zip(found_and_gradients(case), found_and_gradients(case, "reference"), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        torch.testing.assert_close(a[a.isfinite()], b[b.isfinite()], rtol=1e-4, atol=1e-4)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _large() -> LossCase:
    """More images than one piece of the batch, with a remainder."""
    case = LossCase("three edges")
    case.options["activation"] = "tanh"
    case.x = torch.randn(23, 3, 96, 90, generator=torch.Generator().manual_seed(1))
    case.to(torch.float32).x.requires_grad_(False)
    return case


def test_pieces_of_a_batch_and_bits_from_run_to_run(threads):
    case = _large()
    wanted = found_and_gradients(case, "reference")
    losses = []
    for count in (1, 2, 3):
        threads(count)
        first, second = found_and_gradients(case), found_and_gradients(case)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        for a, b in zip(first, wanted, strict=True):
            assert (a - b).abs().max() < 1e-4 * b.abs().max()
        losses.append(first[0])
        with torch.no_grad():
            losses.append(case.loss())
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_nothing_of_the_batch_is_kept_for_backward():
    case = _large()
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        case.loss()
    own = {t.data_ptr() for t in case.inputs()}
    assert {t.data_ptr() for t in kept} <= own


@pytest.mark.parametrize("network", ["three edges", "fully connected"])
def test_compiled(network):
    case = LossCase(network, "reflections")

    def step(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        return 2 * reflect_loss(x, weights, biases, impl="native", **case.options)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, wanted = (f(case.x, case.weights, case.biases) for f in (compiled, step))
    same([found], [wanted])
    same(*(torch.autograd.grad(loss, case.parameters()) for loss in (found, wanted)))
    with torch.no_grad():
        same([compiled(case.x, case.weights, case.biases)], [wanted])


def test_functional_transforms():
    case = LossCase("three edges")
    biases = [b.detach() for b in case.biases]
    found = torch.func.grad(lambda weights: reflect_loss(case.x, weights, biases, **case.options))(
        [w.detach() for w in case.weights]
    )
    same(found, found_and_gradients(case)[1:4])


@pytest.mark.native
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", ["one edge", "three edges", "fully connected", "filtered"])
def test_bits_without_the_dispatcher_are_those_of_the_operator(network, variant, monkeypatch):
    case = LossCase(network, variant)
    target = case.randn_like_x()
    assert dispatch.at_once("reflect_loss", "auto", *_arguments(case)) is not None
    found = found_and_gradients(case, target=target)
    monkeypatch.setattr(dispatch, "_immediate", {})
    monkeypatch.setattr(_library, "module", types.SimpleNamespace())
    for a, b in zip(found, found_and_gradients(case, target=target), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


def _arguments(case: LossCase, **options: Any) -> tuple[Any, ...]:
    all_of = {
        "x": case.x, "weights": case.weights, "back": case.back or None, "stride": case.options["stride"],
        "padding": None, "linear": (0, 0), "paired": True, "reflections": 1, "activation": "relu", "leak": 0.0,
        "biases": case.biases, "noise": None, "target": None, "slope": None,
    }  # fmt: skip
    return tuple({**all_of, **options}.values())


@pytest.mark.native
def test_what_is_left_to_the_operator():
    case = LossCase("three edges")
    with torch.no_grad():
        for changed in (
            {"target": case.x.float()}, {"target": case.x[:2]}, {"target": 3}, {"x": case.x[:0]}, {"weights": []},
            {"weights": [1, 2, 3]}, {"biases": None}, {"biases": case.biases[1:]}, {"stride": 0},
        ):  # fmt: skip
            assert loss_ops._immediate(*_arguments(case, **changed)) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.zeros(2, 3, 8, 7)}, ValueError, "target must have the shape of x"),
        ({"target": torch.zeros(2, 3, 8, 8).double()}, TypeError, "target must have the dtype of x"),
        ({"target": 1}, TypeError, "target must be a tensor"),
        ({"weights": []}, ValueError, "weights must have at least one"),
        ({"biases": None}, TypeError, "biases must be a sequence of tensors; got NoneType"),
        ({"reflections": 0}, ValueError, "reflections must be at least 1"),
        ({"activation": "swish"}, ValueError, "activation"),
        ({"impl": "cuda"}, ValueError, "impl must be one of"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "x": torch.zeros(2, 3, 8, 8),
        "weights": [torch.zeros(4, 3, 3, 3), torch.zeros(5, 4, 3, 3)],
        "biases": [torch.zeros(3), torch.zeros(4), torch.zeros(5)],
    }
    with pytest.raises(error, match=message):
        reflect_loss(**arguments | change)


# the models


def _networks() -> list[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return [
        (Lmser((12, 7, 5), num_classes=2, style_units=2), torch.rand(6, 3, 2, 2)),
        (Lmser((12, 7, 5), dcw=False, reflections=2), torch.rand(6, 12)),
        (CLmser(3, (8, 12), (1, 2), dpn=False), torch.rand(4, 3, 9, 10)),
        (CLmser(3, (8, 12), (1, 2), num_classes=3), torch.rand(4, 3, 9, 10)),
    ]


@pytest.mark.parametrize("index", range(4))
def test_the_loss_of_a_model_is_that_of_its_output(index):
    network, x = _networks()[index]
    network, x = network.double(), x.double()
    parameters = list(network.parameters())
    losses = [
        network.loss(x, generator=torch.Generator().manual_seed(1)),
        reflection_loss(network(x, generator=torch.Generator().manual_seed(1)), x),
    ]
    same(losses[:1], losses[1:])
    same(*(torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses))


def test_what_a_call_does_besides_is_done_for_the_loss():
    (network, x), *_ = _networks()
    calls: list[str] = []
    handle = network.register_forward_hook(lambda *_: calls.append("forward"))
    network.loss(x)
    assert calls == ["forward"]
    handle.remove()
    network.loss(x)
    assert calls == ["forward"]
    handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append("any"))
    try:
        network.loss(x)
    finally:
        handle.remove()
    assert "any" in calls

    class Doubled(Lmser):
        def forward(self, x: Tensor, **options: Any) -> Any:
            output = super().forward(x, **options)
            return output._replace(reconstruction=2 * output.reconstruction)

    doubled = Doubled((12, 7, 5))
    torch.testing.assert_close(
        doubled.loss(x), F.mse_loss(doubled(x).reconstruction, x, reduction="sum") / 12
    )


def test_eager_baselines_keep_their_own_loss(monkeypatch):
    def forbidden(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("a baseline took the fused loss")

    monkeypatch.setattr("lmser.models.reflection.reflect_loss", forbidden)
    EagerLmser((12, 7, 5)).loss(torch.rand(6, 12)).backward()
    EagerCLmser(3, (8, 12), (1, 2)).loss(torch.rand(4, 3, 9, 10)).backward()


def test_bad_images_are_refused_as_by_a_call():
    lmser, clmser = Lmser((12, 7, 5)), CLmser(3, (8,), (1,))
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 12\)"):
        lmser.loss(torch.rand(6, 13))
    with pytest.raises(ValueError, match="x: expected"):
        clmser.loss(torch.rand(4, 2, 9, 10))
