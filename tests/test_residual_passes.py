"""A residual block's two ways as single calls: the module's functions, the operators, and the layers one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmser.baselines import ResidualBlock
from lmser.baselines import residual as block_module
from lmser.baselines import residual_passes as passes
from lmser.inversion import inverted
from lmser.inversion.step import Activation, Step
from lmser_kernels import _library

pytestmark = pytest.mark.native
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def network(pool: int = 1, dtype: torch.dtype = torch.float64, **settings: Any) -> nn.Sequential:
    """Blocks behind an activation and behind each other, the last one down to a pixel."""
    torch.manual_seed(0)
    made = nn.Sequential(
        block_module.Conv2dAddAct(2, 5, 3, 1, 1, activation="relu"),
        ResidualBlock(5, 5, **settings),
        ResidualBlock(5, 17, pool=pool, **settings),
        nn.Flatten(),
        nn.Linear(17 * (8 // pool) * (6 // pool), 3),
    ).to(dtype)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.1)
    return made


def images(dtype: torch.dtype = torch.float64, layout: torch.memory_format = torch.channels_last) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 2, 8, 6).to(dtype).to(memory_format=layout)


def results(model: nn.Module, x: Tensor, order: int = 1) -> list[Tensor]:
    """Output, reconstruction, gradients of both errors, and with `order` 2 those of the gradients' squares."""
    x = x.clone().requires_grad_()
    found = inverted(model, x, method="gated")
    loss = (found.reconstructions[0] - x).square().sum() + found.output.logsumexp(1).sum()
    sources = [x, *model.parameters()]
    first = torch.autograd.grad(loss, sources, create_graph=order > 1)
    more = torch.autograd.grad(sum(g.square().sum() for g in first), sources) if order > 1 else ()
    return [found.output, *found.reconstructions, *first, *more]


def by_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "operators_for", lambda *_: None)


def by_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_at_once", lambda *_: None)


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        largest = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", [1, 2])
class TestSame:
    def test_calls_of_the_module_are_the_operators(self, monkeypatch, pool, dtype, layout):
        """Gradients may lie otherwise in memory, and then be summed in another order."""
        model, x = network(pool, dtype), images(dtype, layout)
        found = results(model, x)
        by_operators(monkeypatch)
        close(found, results(model, x), {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 0.01))

    def test_layers_one_by_one(self, monkeypatch, pool, dtype, layout):
        model, x = network(pool, dtype), images(dtype, layout)
        found = results(model, x)
        by_layers(monkeypatch)
        close(found, results(model, x), {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.05))


@pytest.mark.parametrize(
    "settings",
    [{"inhibitor": True}, {"activation": "leaky_relu"}, {"activation": "leaky_relu", "slope": 0.3}],
    ids=str,
)
def test_settings(monkeypatch, settings):
    model, x = network(2, **settings), images()
    found = results(model, x)
    by_layers(monkeypatch)
    close(found, results(model, x), 1e-12)


@pytest.mark.parametrize("pool", [1, 2])
def test_second_order(monkeypatch, pool):
    model, x = network(pool, activation="leaky_relu"), images()
    found = results(model, x, order=2)
    by_layers(monkeypatch)
    close(found, results(model, x, order=2), 1e-10)


@pytest.mark.parametrize("pool", [1, 2])
def test_triton(monkeypatch, pool):
    pytest.importorskip("triton")
    model, x = network(pool, torch.float32), images(torch.float32)
    wanted = results(model, x)
    for block in model[1:3]:
        block.inner.impl = block.outer.impl = "triton"
    seen = calls(monkeypatch)
    found = results(model, x)
    assert [given for _, given in seen] == [False] * 4
    close(found, wanted, 1e-5)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Names of what is asked of the module from now on, and whether it gave something."""
    seen = []
    real = passes._at_once

    def watched(ops: Any, name: str, *args: Any) -> Any:
        found = real(ops, name, *args)
        seen.append((name, found is not None))
        return found

    monkeypatch.setattr(passes, "_at_once", watched)
    return seen


def test_every_pass_is_a_call(monkeypatch):
    seen = calls(monkeypatch)
    results(network(2), images())
    ways = ("residual_up", "residual_down", "residual_down_backward", "residual_up_backward")
    assert seen == [(name, True) for name in ways]  # of both blocks


def test_a_gradient_to_be_differentiated_is_left_to_the_operators(monkeypatch):
    seen = calls(monkeypatch)
    model = network(2)
    loss = inverted(model, images(), method="gated").reconstructions[0].square().sum()
    torch.autograd.grad(loss, list(model.parameters())[:2], create_graph=True)
    backwards = [given for name, given in seen if name.endswith("backward")]
    assert backwards == [False] * 2


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "leaky_sigmoid"])
def test_activations_that_no_sign_tells(monkeypatch, activation):
    seen = calls(monkeypatch)
    model, x = network(activation=activation), images()
    found = results(model, x)
    assert not seen
    close(found[1:2], list(inverted(model, x, method="autograd").reconstructions), 1e-10)


def test_a_rest_that_no_window_takes_in(monkeypatch):
    seen = calls(monkeypatch)
    model = nn.Sequential(ResidualBlock(2, 3, pool=2), nn.Flatten()).double()
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    got = inverted(model, x, method="gated").reconstructions
    assert not seen
    close(list(got), list(inverted(model, x, method="autograd").reconstructions), 1e-12)


def test_layers_with_kernels_of_their_own(monkeypatch):
    """What one of them was told to take is taken."""
    seen = calls(monkeypatch)
    model, x = network(), images()
    wanted = results(model, x)
    seen.clear()
    for block in model[1:3]:
        block.outer.impl = "reference"
    found = results(model, x)
    assert not seen
    close(found, wanted, 1e-12)


def test_only_what_needs_a_gradient_gets_one():
    model, x = network(), images()
    model[1].inner.weight.requires_grad_(False)
    model[2].outer.bias.requires_grad_(False)
    inverted(model, x, method="gated").reconstructions[0].square().sum().backward()
    assert model[1].inner.weight.grad is None
    assert model[2].outer.bias.grad is None
    assert model[1].outer.weight.grad is not None


@pytest.mark.parametrize("frozen", [(1,), (2,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
def test_frozen_blocks(monkeypatch, frozen):
    """Below the lowest block, and above the highest, that something is wanted of there is nothing to do."""
    model, x = network(2), images()
    for position in frozen:
        model[position].requires_grad_(False)

    def gradients() -> list[Tensor | None]:
        model.zero_grad(set_to_none=True)
        found = inverted(model, x, method="gated")
        (found.reconstructions[0].square().sum() + found.output.logsumexp(1).sum()).backward()
        return [p.grad for p in model.parameters()]

    found = gradients()
    by_layers(monkeypatch)
    wanted = gradients()
    assert [g is None for g in found] == [g is None for g in wanted]
    close([g for g in found if g is not None], [g for g in wanted if g is not None], 1e-12)


def test_blocks_that_are_not_alike_go_by_themselves(monkeypatch):
    torch.manual_seed(0)
    settings = [
        {},
        {},
        {"activation": "leaky_relu"},
        {"inhibitor": True},
        {"inhibitor": True},
        {"activation": "tanh"},
    ]
    model = nn.Sequential(
        *(ResidualBlock(3, 3, **s) for s in settings), nn.Flatten(), nn.Linear(48, 2)
    ).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    seen = calls(monkeypatch)
    found = results(model, x)
    assert [name for name, _ in seen] == [
        f"residual_{way}" for way in ("up", "down", "down_backward", "up_backward") for _ in range(3)
    ]
    by_layers(monkeypatch)
    close(found, results(model, x), 1e-11)


@pytest.mark.parametrize(
    ("blocks", "x", "error"),
    [
        ([ResidualBlock(3, 4), ResidualBlock(4, 4)], torch.randn(2, 5, 8, 8), "5"),
        ([ResidualBlock(3, 4), ResidualBlock(5, 4)], torch.randn(2, 3, 8, 8), "4"),
        ([ResidualBlock(3, 4), ResidualBlock(4, 4)], torch.randn(3, 8, 8), "4-D"),
    ],
)
def test_what_does_not_fit_is_said_by_the_layers(blocks, x, error):
    with pytest.raises(ValueError, match=f"^x .*{error}"):
        inverted(nn.Sequential(*blocks), x, method="gated")


class Doubled(ResidualBlock):
    """A block with a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)

    def gated(self, x: Tensor, f: Activation | None) -> Step:
        step = super().gated(x, f)
        return Step(2 * step.output, None, lambda g: step.pull(2 * g))


def test_subclasses_keep_their_own_way():
    torch.manual_seed(0)
    model = nn.Sequential(Doubled(2, 3), Doubled(3, 3), nn.Flatten()).double()
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    got = inverted(model, x, method="gated")
    close(
        [got.output, *got.reconstructions],
        [model(x), *inverted(model, x, method="autograd").reconstructions],
        1e-12,
    )


def test_without_gradients_and_under_autocast():
    model, x = network(dtype=torch.float32), images(torch.float32)
    wanted = inverted(model, x, method="gated").reconstructions[0]
    with torch.no_grad():
        close([inverted(model, x, method="gated").reconstructions[0]], [wanted.detach()], 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        cast = inverted(model, x, method="gated").reconstructions[0]
    close([cast.float()], [wanted], 0.1)


def test_values_that_are_not_finite(monkeypatch):
    """Minimal filtering gives way to the direct sum, whose results the 1x1 convolution is added to."""
    model = nn.Sequential(ResidualBlock(40, 40), nn.Flatten(), nn.Linear(40 * 12 * 12, 2)).float()
    x = torch.randn(2, 40, 12, 12)
    x[0, 3, 5, 5], x[1, 7, 2, 9] = float("nan"), float("inf")
    found = results(model, x)
    by_layers(monkeypatch)
    for one, other in zip(found, results(model, x), strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        finite = one.isfinite() & other.isfinite()
        torch.testing.assert_close(one[finite], other[finite], rtol=1e-4, atol=1e-4)


class TestArguments:
    """What does not fit is left to the operators."""

    def up(self, **changed: Any) -> Any:
        values = {
            "x": torch.randn(2, 3, 4, 4), "inner": torch.randn(5, 3, 3, 3), "inner_bias": torch.randn(5),
            "outer": torch.randn(5, 3, 1, 1), "outer_bias": torch.randn(5), "padding": (1, 1), "pool": (2, 2),
            "activation": "relu", "slope": 0.0,
        } | changed  # fmt: skip
        # Of one block each but what is a list already.
        of_blocks = ("inner", "inner_bias", "outer", "outer_bias", "padding", "pool")
        for name in of_blocks:
            values[name] = values[name] if isinstance(values[name], list) else [values[name]]
        return _library.module.residual_up(*values.values())

    def test_what_fits(self):
        h, r = self.up()
        assert h.shape == r.shape == (2, 5, 2, 2)
        h, r = self.up(inner_bias=[], outer_bias=[])
        assert h.shape == r.shape == (2, 5, 2, 2)

    def test_two_blocks(self):
        found = self.up(
            inner=[torch.randn(5, 3, 3, 3), torch.randn(7, 5, 3, 3)], inner_bias=[],
            outer=[torch.randn(5, 3, 1, 1), torch.randn(7, 5, 1, 1)], outer_bias=[],
            padding=[(1, 1), (1, 1)], pool=[(2, 2), (1, 2)],
        )  # fmt: skip
        assert [tuple(t.shape) for t in found] == [(2, 5, 2, 2), (2, 7, 2, 1)] * 2

    @pytest.mark.parametrize(
        "changed",
        [
            {"x": torch.randn(2, 3, 5, 4)},
            {"x": torch.randn(2, 4, 4, 4)},
            {"x": torch.randn(0, 3, 4, 4)},
            {"x": torch.randn(2, 3, 4, 4).double()},
            {"inner": torch.randn(6, 3, 3, 3)},
            {"inner": torch.randn(5, 3, 5, 5)},
            {"outer": torch.randn(5, 3, 3, 3)},
            {"outer": torch.randn(5, 4, 1, 1)},
            {"outer_bias": torch.randn(4)},
            {"inner_bias": torch.randn(6)},
            {"padding": (0, 0)},
            {"padding": []},
            {"padding": [(1, 1), (1, 1)]},
            {"outer": []},
            {"inner": [], "outer": [], "inner_bias": [], "outer_bias": [], "padding": [], "pool": []},
            {
                "inner": [torch.randn(5, 3, 3, 3)] * 2,
                "outer": [torch.randn(5, 3, 1, 1)] * 2,
                "inner_bias": [],
                "outer_bias": [],
                "padding": [(1, 1)] * 2,
                "pool": [(2, 2)] * 2,
            },
            {"inner_bias": [torch.randn(5)] * 2},
            {"pool": (0, 2)},
            {"activation": "swish"},
            {"slope": None},
        ],
    )
    def test_what_does_not(self, changed):
        assert self.up(**changed) is None
