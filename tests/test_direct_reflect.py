"""The passes of a reflection network without PyTorch's dispatcher: the operators' bits, and only where it is allowed."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from test_reflect import NETWORKS, VARIANTS, Case, gradients
from torch import Tensor, nn

from lmser.models import Lmser
from lmser_kernels import _library, dispatch, reflect
from lmser_kernels.reflect import ops

pytestmark = pytest.mark.native


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the module's functions that took a call."""
    taken: list[str] = []

    def function(name: str) -> Any:
        real = getattr(_library.module, name)

        def counted(*args: Any) -> Any:
            results = real(*args)
            if results is not None:
                taken.append(name)
            return results

        return counted

    names = ("reflect", "reflect_backward")
    monkeypatch.setattr(_library, "module", types.SimpleNamespace(**{name: function(name) for name in names}))
    return taken


def by_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_immediate", {})
    monkeypatch.setattr(_library, "module", types.SimpleNamespace())


def results(case: Case, **options: Any) -> list[Tensor | None]:
    found = case.run("native", **options)
    return [*found, *gradients(found, case.inputs())]


def same_bits(found: list[Tensor | None], wanted: list[Tensor | None]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.stride() == other.stride()
            assert torch.equal(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "no image"])
def test_bits_of_the_operators(network, variant, calls, monkeypatch):
    case = Case(network, variant)
    found = results(case)
    assert calls == ["reflect", "reflect_backward"]
    with torch.no_grad():
        same_bits(list(case.run("native")), found[:2])
    assert calls[2:] == ["reflect"]
    by_operators(monkeypatch)
    same_bits(results(case), found)
    assert len(calls) == 3


@pytest.mark.parametrize("layout", ["channels-last", "strided"])
def test_layouts(layout, calls, monkeypatch):
    case = Case("three edges").to(torch.float32)
    if layout == "channels-last":
        case.x = case.x.detach().to(memory_format=torch.channels_last).requires_grad_()
    else:
        wide = torch.randn(case.x.shape[0], 4, case.x.shape[2], 2 * case.x.shape[3])
        case.x = wide[:, 1:, :, ::2].requires_grad_()
        case.weights[0] = torch.randn(8, 6, 3, 3)[:, ::2].requires_grad_()
    found = results(case)
    assert calls == ["reflect", "reflect_backward"]
    by_operators(monkeypatch)
    same_bits(results(case), found)


def test_large_states_and_gradients(calls, monkeypatch):
    """Beyond what PyTorch's allocator is asked for: a flat list of states, and a matrix."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(600, 700, generator=generator, requires_grad=True)
    x = torch.randn(500, 700, 1, 1, generator=generator)
    biases = [torch.zeros(700), torch.zeros(600, requires_grad=True)]

    def run() -> list[Tensor | None]:
        found = reflect(x, [weight], biases, activation="tanh")
        return [*found, *torch.autograd.grad(found.reconstruction.square().sum(), [weight, biases[1]])]

    found = run()
    assert calls == ["reflect", "reflect_backward"]
    by_operators(monkeypatch)
    same_bits(run(), found)


@pytest.mark.parametrize("stride", [2, (2, 2), [2, (2, 2)], [[2, 2], (2, 2)]], ids=str)
@pytest.mark.parametrize("padding", [None, 1, [(1, 1), 1]], ids=str)
def test_ways_to_say_strides_and_paddings(stride, padding, calls):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, weights, biases = (
        randn(2, 3, 9, 9),
        (randn(4, 3, 3, 3), randn(5, 4, 3, 3)),
        [randn(3), randn(4), randn(5)],
    )
    inputs = [x, *weights, *biases]
    stride = list(stride) if isinstance(stride, list) else stride
    options = {"stride": stride, "padding": padding}
    found = reflect(x, weights, biases, **options)
    if isinstance(stride, list):
        stride[0] = 1  # the caller's own, to change before the gradient is asked for
    kept = gradients(found, inputs)
    assert calls == ["reflect", "reflect_backward"]
    wanted = reflect(x, weights, biases, stride=2, padding=1, impl="reference")
    for one, other in zip(kept, gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other)


def refused(case: Case, **options: Any) -> bool:
    with torch.no_grad():
        return ops._immediate(*arguments(case, **options)) is None


def arguments(case: Case, **options: Any) -> tuple[Any, ...]:
    all_of = {
        "x": case.x, "weights": case.weights, "back": None, "stride": case.options["stride"], "padding": None,
        "linear": (0, 0), "paired": True, "reflections": 1, "activation": "relu", "leak": 0.0,
        "biases": case.biases, "noise": None, "slope": None,
    }  # fmt: skip
    return tuple({**all_of, **options}.values())


def test_what_is_not_for_this_way():
    case = Case("three edges")
    assert not refused(case)
    assert not refused(case, weights=tuple(case.weights), biases=tuple(case.biases))
    assert refused(case, x=case.x.float())
    assert refused(case, x=case.x[:0])
    assert refused(case, x=case.x[:, :2])
    assert refused(case, x=case.x.numpy(force=True))
    assert refused(case, weights=[])
    assert refused(case, weights=nn.ParameterList(case.weights))
    assert refused(case, weights=case.weights[:2])
    assert refused(case, weights=[*case.weights[:2], case.weights[2][:, 1:]])
    assert refused(case, weights=[*case.weights[:2], case.weights[2][0]])
    assert refused(case, back=[])
    assert refused(case, back=case.weights[:2])
    assert refused(case, back=[*case.weights[:2], case.weights[2][1:]])
    assert refused(case, biases=case.biases[1:])
    assert refused(case, biases=[*case.biases[:3], case.biases[3][1:]])
    assert refused(case, stride=0)
    assert refused(case, stride=True)
    assert refused(case, stride=None)
    assert refused(case, stride=[1, 2])
    assert refused(case, padding=-1)
    assert refused(case, padding=0, stride=20, x=case.x[:, :, :2])
    assert refused(case, linear=(4, 3))
    assert refused(case, linear=(-1, 0))
    assert refused(case, paired=1)
    assert refused(case, reflections=0)
    assert refused(case, reflections=True)
    assert refused(case, reflections=1 << 70)
    assert refused(case, activation="gelu")
    assert refused(case, noise=torch.zeros(5, 1, 4, 9, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert dispatch.at_once("reflect", "auto", *arguments(case)) is None
    assert dispatch.at_once("reflect", "reference", *arguments(case)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_weights": []}, "decoder_weights must be one for each of the 3 weights; got 0"),
        ({"noise": 3}, "noise must be a tensor; got int"),
        ({"stride": True}, "stride must be an int"),
        ({"reflections": True}, "reflections must be an int"),
    ],
)
def test_what_is_wrong_is_said_as_before(options, message):
    case = Case("three edges")
    with pytest.raises((TypeError, ValueError), match=message):
        reflect(case.x, case.weights, case.biases, **{**case.options, **options})


def test_noise_that_asks_for_a_gradient_is_a_constant():
    case = Case("three edges", "mixed top")
    noise = case.options["noise"].clone().requires_grad_()
    for tensor in case.inputs():
        tensor.requires_grad_(False)
    assert not case.run("native", noise=noise).reconstruction.requires_grad


def test_a_second_derivative(calls, monkeypatch):
    case = Case("fully connected", "tanh")

    def twice() -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(
            case.run("native").reconstruction.square().sum(), case.weights[0], create_graph=True
        )
        return torch.autograd.grad(first.square().sum(), case.inputs()[:3])

    found = twice()
    by_operators(monkeypatch)
    same_bits(list(twice()), list(found))


def test_a_gradient_of_a_part(calls):
    case = Case("fully connected")
    case.x = case.x.detach()
    for bias in case.biases:
        bias.requires_grad_(False)
    found = torch.autograd.grad(case.run("native").code.sum(), case.weights)
    wanted = torch.autograd.grad(case.run("reference").code.sum(), case.weights)
    assert calls == ["reflect", "reflect_backward"]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_network_whose_weights_are_no_parameters():
    network = Lmser((6, 4, 3)).double()
    x = torch.rand(5, 6, dtype=torch.float64)
    wanted = network(x).reconstruction
    nn.utils.parametrize.register_parametrization(network.weights, "0", nn.Identity())
    torch.testing.assert_close(network(x).reconstruction, wanted)
    other = {"weights.1": 2 * network.weights[1]}
    found = torch.func.functional_call(network, other, (x,)).reconstruction
    assert not torch.allclose(found, wanted)
