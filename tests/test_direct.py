"""The way into the CPU kernels without PyTorch's dispatcher: the operators' bits, and only where it is allowed."""

from __future__ import annotations

import copy
import gc
import io
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lmser_kernels
from lmser_kernels import (
    _library,
    add_act,
    conv2d_add_act,
    conv_transpose2d_add_act,
    dispatch,
    max_pool2d_act,
    max_unpool2d,
    tied_conv2d,
)

pytestmark = pytest.mark.native
ONE, TWO = (1, 1), (2, 2)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")


def made(*shape: int, layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> Tensor:
    if layout == "channels_last":
        return torch.randn(shape).to(dtype, memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.randn(shape[0], shape[1] + 1, shape[2], 2 * shape[3]).to(dtype)[:, 1:, :, ::2]
    if layout == "expanded":
        return torch.randn(1, *shape[1:]).to(dtype).expand(shape)
    return torch.randn(shape).to(dtype)


def places(*shape: int) -> Tensor:
    """Of windows of four."""
    return torch.randint(4, shape, dtype=torch.uint8)


def calls(layout: str, dtype: torch.dtype) -> dict[str, list[tuple[Any, ...]]]:
    """Of every operator with such a way, some calls."""

    def t(*shape: int) -> Tensor:
        return made(*shape, layout=layout, dtype=dtype)

    weight, bias, upper = t(4, 3, 3, 3), made(4, dtype=dtype), made(3, dtype=dtype)
    x, z, below, above = t(2, 3, 8, 7), t(2, 4, 4, 4), t(2, 3, 8, 7), t(2, 4, 4, 4)
    wide, every = t(2, 3, 16, 14), [True] * 4
    return {
        "conv2d_add_act": [
            (x, weight, above, bias, TWO, ONE, ONE, "relu", 0.0, False),
            (x, weight, None, None, TWO, ONE, ONE, "leaky_sigmoid", 0.2, True),
            (wide, weight, above, None, TWO, ONE, TWO, "tanh", 0.0, True),
            (t(1, 1, 1, 1), t(1, 1, 1, 1), None, None, ONE, (0, 0), ONE, "sigmoid", 0.0, False),
        ],
        "conv2d_add_act_backward": [
            (above, z, z, x, weight, TWO, ONE, ONE, "tanh", 0.0, every),
            (above, None, z, wide, weight, TWO, ONE, TWO, "relu", 0.0, [True, False, False, True]),
        ],
        "conv_transpose2d_add_act": [
            (z, weight, below, upper, None, TWO, ONE, (8, 7), ONE, "relu", 0.0, False, 0.0, None, 0.0, False),
            (z, weight, wide, None, wide, TWO, ONE, (8, 7), TWO, "leaky_relu", 0.1, True, 0.3, above, 0.2, True),
            (t(2, 4, 1, 1), weight, t(2, 3, 3, 3), None, None, ONE, (0, 0), (3, 3), ONE, "tanh", 0.0, False, 0.0,
             None, 0.0, False),
        ],
        "conv_transpose2d_add_act_backward": [
            (below, x, x, z, weight, None, TWO, ONE, ONE, "tanh", 0.0, every, 0.0, None, 0.0, False),
            (wide, None, wide, z, weight, wide, TWO, ONE, TWO, "relu", 0.0, every, 0.3, above, 0.2, True),
        ],
        "tied_conv2d": [(x, z, weight, TWO, ONE)],
        "tied_conv2d_weight_grad": [
            (x, z, None, None, (3, 3), TWO, ONE),
            (x, z, below, above, (3, 3), TWO, ONE),
        ],
        "add_act": [(x, below, upper, "relu", 0.0), (x, None, None, "leaky_relu", 0.1)],
        "add_act_backward": [(x, below, "tanh", 0.0, True), (x, below, "identity", 0.0, False)],
        "max_pool2d_act": [
            (x, TWO, TWO, (0, 0), "relu", 0.0),
            (x, (3, 2), (1, 2), ONE, "identity", 0.0),
            (t(70, 3, 8, 7), (8, 7), TWO, (0, 0), "tanh", 0.0),
        ],
        "max_unpool2d": [
            (made(2, 3, 4, 3, layout=layout, dtype=dtype), places(2, 4, 3, 3), None, (8, 7), TWO, TWO, (0, 0),
             "identity", 0.0),
            (made(2, 3, 4, 3, layout=layout, dtype=dtype), places(2, 4, 3, 3), t(2, 3, 4, 3), (8, 7), TWO, TWO,
             (0, 0), "leaky_relu", 0.2),
            (t(2, 3, 1, 1), places(2, 1, 1, 3), None, (4, 4), (4, 4), ONE, (0, 0), "identity", 0.0),
        ],
        "max_select2d": [
            (x, places(2, 4, 3, 3), None, TWO, TWO, (0, 0), "identity", 0.0),
            (x, places(2, 4, 3, 3), t(2, 3, 4, 3), TWO, TWO, (0, 0), "tanh", 0.0),
        ],
    }  # fmt: skip


def same(found: Tensor | None, wanted: Tensor, name: str) -> None:
    if found is None:
        assert wanted.numel() == 0, name
        return
    assert found.dtype == wanted.dtype, name
    assert found.stride() == wanted.stride(), name
    bits, other = (t.contiguous().flatten().view(torch.uint8) for t in (found, wanted))
    assert torch.equal(bits, other), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_and_layout_of_the_operators(layout, dtype):
    for name, some in calls(layout, dtype).items():
        for arguments in some:
            found = getattr(_library.module, name)(*arguments)
            wanted = getattr(torch.ops.lmser, name)(*arguments)
            assert type(found) is type(wanted), name
            for one, other in zip(flat(found), flat(wanted), strict=True):
                same(one, other, name)


PUBLIC: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "conv2d_add_act": lambda x, w, z: conv2d_add_act(x, w, z, stride=2, padding=1, activation="tanh"),
    "conv_transpose2d_add_act": lambda x, w, z: conv_transpose2d_add_act(
        z, w, x, stride=2, padding=1, output_size=x.shape[2:], activation="relu"
    ),
    "smallest": lambda x, w, z: conv_transpose2d_add_act(z, w, stride=2, padding=1, activation="sigmoid"),
    "tied_conv2d": lambda x, w, z: tied_conv2d(x, z, w, stride=2, padding=1),
    "add_act": lambda x, w, z: add_act(x, 2 * x, activation="leaky_relu"),
    "max_pool2d_act": lambda x, w, z: max_pool2d_act(x, 2, activation="tanh"),
    "max_unpool2d": lambda x, w, z: max_unpool2d(
        z * 2,
        max_pool2d_act(z.new_zeros(z.shape).repeat(1, 1, 2, 2), 2, return_places=True)[1],
        2,
        output_size=(2 * z.shape[2], 2 * z.shape[3]),
    ),
}


def operands(requires_grad: bool = False, scale: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((2, 3, 8 * scale, 7 * scale), (4, 3, 3, 3), (2, 4, 4 * scale, (7 * scale + 1) // 2))
    x, w, z = (torch.randn(s, requires_grad=requires_grad) for s in shapes)
    return x, w, z


def flat(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


class Seen(TorchDispatchMode):
    """Collects the operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    def ours(self) -> list[str]:
        return [name for name in self.names if name.startswith("lmser::")]


@pytest.mark.parametrize("name", PUBLIC)
class TestGradients:
    def gradients(self, name: str, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        results = flat(PUBLIC[name](*inputs))
        loss = sum((r * torch.linspace(-1, 1, r.numel()).view(r.shape)).sum() for r in results)
        first = torch.autograd.grad(
            loss, inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        second = torch.autograd.grad(
            sum(g.square().sum() for g in first), inputs, allow_unused=True, materialize_grads=True
        )
        return [*results, *first, *second]

    @pytest.mark.parametrize("scale", [1, 64], ids=["small", "large"])
    def test_are_those_of_the_operators(self, name, scale):
        inputs = operands(True, scale)
        found = self.gradients(name, inputs)
        with Seen() as seen:
            wanted = self.gradients(name, inputs)
        assert len(seen.ours()) > 1
        for one, other in zip(found, wanted, strict=True):
            same(one.detach(), other.detach(), name)

    def test_only_what_needs_them_gets_them(self, name):
        x, w, z = operands()
        for grads in (False, True):
            with torch.set_grad_enabled(grads):
                assert all(not r.requires_grad and r.grad_fn is None for r in flat(PUBLIC[name](x, w, z)))
        with torch.inference_mode():
            assert all(r.is_inference() for r in flat(PUBLIC[name](x, w, z)))

    def test_nothing_is_kept_alive(self, name):
        gc.collect()
        gc.disable()
        try:
            results = flat(PUBLIC[name](*operands(True)))
            results[0].sum().backward()
            alive = [weakref.ref(r) for r in results]
            del results
            assert all(ref() is None for ref in alive)
        finally:
            gc.enable()


def test_gradients_flow_to_the_first_tensors_alone():
    """What is recorded without the dispatcher gives no gradient to a tensor behind the settings."""
    found = set(dispatch._immediate) - {"reflect", "reflect_loss"}  # which record in their own way
    assert {"conv2d_add_act_backward", "tied_conv2d_weight_grad", "max_select2d"} <= found
    for name in found:
        operator = dispatch.compiled.raw(name)
        later = operator._schema.arguments[dispatch._leading_tensors(operator) :]
        assert {a.name for a in later if "Tensor" in str(a.type)} <= {"input_gate"}, name


def taken(x: Tensor, other: Tensor | None = None) -> bool:
    return _library.module.add_act(x, x if other is None else other, None, "relu", 0.0) is not None


class Subclass(torch.Tensor):
    pass


class TestOnlyPlainCalls:
    """What is not for this way is left to the operator, which then does what it always did."""

    def test_plain_ones_are_taken(self):
        assert taken(torch.ones(1, 2, 3, 4))
        assert taken(torch.nn.Parameter(torch.ones(1, 2, 3, 4)))

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param(lambda x: x.as_subclass(Subclass), id="subclass"),
            pytest.param(lambda x: x.to_sparse(), id="sparse"),
            pytest.param(lambda x: x.to("meta"), id="meta"),
            pytest.param(lambda x: x.double(), id="dtype"),
            pytest.param(lambda x: x.int(), id="integers"),
            pytest.param(lambda x: x[0], id="three dimensions"),
            pytest.param(lambda x: x[:, :0], id="empty"),
            pytest.param(lambda x: torch.complex(x, x).conj().imag, id="negated view"),
            pytest.param(lambda x: torch._efficientzerotensor(x.shape), id="no memory"),
            pytest.param(lambda x: x.numpy(), id="no tensor"),
        ],
    )
    def test_others_are_not(self, other):
        x = torch.ones(1, 2, 3, 4)
        assert not taken(x, other(x))
        assert not taken(other(x), x)

    def test_a_negated_view_keeps_its_sign(self):
        x = torch.randn(1, 2, 3, 4)
        negated = torch.complex(x, x).conj().imag
        assert negated.is_neg()
        assert torch.equal(add_act(negated, activation="identity"), -x)

    def test_large_results_come_from_the_store(self):
        lmser_kernels.empty_cache()
        x = torch.randn(2, 3, 512, 512).to(memory_format=torch.channels_last)
        found = _library.module.add_act(x, None, None, "identity", 0.0)
        same(found, x, "add_act")
        assert type(found) is Tensor
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert not found.requires_grad
        assert _library.module.idle_bytes() == 0
        address, view = found.data_ptr(), found[1]
        del found
        assert _library.module.idle_bytes() == 0  # the view keeps it
        assert torch.equal(view, x[1])
        del view
        assert _library.module.idle_bytes() >= x.numel() * 4
        assert _library.module.add_act(x, None, None, "identity", 0.0).data_ptr() == address
        lmser_kernels.empty_cache()

    def test_small_results_own_their_memory(self):
        x = torch.randn(2, 3, 5, 7)
        found = _library.module.add_act(x, None, None, "identity", 0.0)
        assert type(found) is Tensor
        assert found._version == 0
        assert found._base is None
        assert found.untyped_storage().nbytes() == x.numel() * 4
        others = [_library.module.add_act(x + i, None, None, "identity", 0.0) for i in range(8)]
        view, copied = found[1], copy.deepcopy(found)
        saved = io.BytesIO()
        torch.save(found, saved)
        del found, others
        again = [_library.module.add_act(x - i, None, None, "identity", 0.0) for i in range(8)]
        assert torch.equal(view, x[1])
        assert torch.equal(copied, x)
        saved.seek(0)
        assert torch.equal(torch.load(saved), x)
        assert all(torch.equal(r, x - i) for i, r in enumerate(again))

    def test_what_cannot_be_had_is_said_by_the_operator(self):
        x = torch.ones(1, 1, 1, 1).expand(1 << 20, 1 << 20, 4, 1)
        assert _library.module.add_act(x, None, None, "identity", 0.0) is None
        with pytest.raises(MemoryError):
            add_act(x, activation="identity")

    @pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3, 4, 5, 6, 7)])
    def test_a_wrong_number_of_arguments_is_not_for_it(self, arguments):
        assert _library.module.add_act(*arguments) is None

    @pytest.mark.parametrize("name", PUBLIC)
    def test_dispatch_modes_see_the_operator(self, name):
        with Seen() as seen:
            PUBLIC[name](*operands())
        assert seen.ours()

    def test_function_modes_see_the_operator(self):
        names = []

        class Mode(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                names.append(str(func))
                return func(*args, **(kwargs or {}))

        x = torch.ones(1, 2, 3, 4)
        with Mode():
            add_act(x, x)
        assert any("lmser.add_act" in name for name in names)

    def test_the_profiler_sees_the_operator(self):
        x = torch.ones(1, 2, 3, 4)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            add_act(x, x)
        assert any(event.key == "lmser::add_act" for event in profile.key_averages())

    def test_traces_hold_the_operator(self):
        x = torch.ones(1, 2, 3, 4)
        for pre_dispatch in (False, True):
            graph = make_fx(lambda x: add_act(x, x), pre_dispatch=pre_dispatch)(x).graph
            assert any("lmser.add_act" in str(node.target) for node in graph.nodes)
        traced = torch.jit.trace(lambda x: add_act(x, x), x)
        assert "lmser::add_act" in str(traced.graph)

    def test_autocast_casts_first(self):
        x = torch.ones(1, 2, 3, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert add_act(x, x).dtype == torch.bfloat16

    def test_transforms_are_not_bypassed(self):
        x = torch.randn(1, 2, 3, 4)
        gradient = torch.func.grad(lambda x: add_act(x, x, activation="identity").sum())(x)
        assert torch.equal(gradient, torch.full_like(x, 2))


def test_without_the_protocol_the_operators_are_taken():
    script = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
from lmser_kernels import _library, add_act
assert _library.available and not hasattr(_library.module, "add_act")
x = torch.ones(1, 2, 3, 4, requires_grad=True)
h = add_act(x, x)
h.sum().backward()
assert torch.equal(h, x + x) and torch.equal(x.grad, torch.full_like(x, 2))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_small_call_stays_short():
    """Function calls, Python's and C's, between the public name and the kernel: time would depend on the machine."""
    x, w, z = operands()
    events: list[str] = []

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            events.append(argument.__name__ if event == "c_call" else frame.f_code.co_name)

    for gradients, most in ((False, 16), (True, 24)):
        w.requires_grad_(gradients)
        for _ in range(2):
            events.clear()
            sys.setprofile(watch)
            try:
                conv2d_add_act(x, w, z, stride=2, padding=1, activation="relu")
            finally:
                sys.setprofile(None)
        assert "conv2d_add_act" in events
        assert len(events) - 1 <= most, events  # the last is setprofile
