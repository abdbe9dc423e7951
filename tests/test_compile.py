"""Everything traces in one graph: `torch.compile` with static and dynamic sizes, `torch.export`."""

from __future__ import annotations

import pytest
import torch

from lmser_kernels import add_act, conv2d_add_act, conv_transpose2d_add_act, tied_conv2d
from lmser_kernels.nn import TiedConv2d, TiedLinear


def network(x, weight, bias, impl):
    """Every operation once, up and down."""
    h, y = conv2d_add_act(
        x, weight, None, bias, stride=2, padding=1, activation="tanh", return_drive=True, impl=impl
    )
    geometry = {"stride": 2, "padding": 1, "output_size": x.shape[2:]}
    below = conv_transpose2d_add_act(
        h, weight, x, gate=x, activation="leaky_sigmoid", slope=0.1, impl=impl, **geometry
    )
    up, down = tied_conv2d(below, y, weight, stride=2, padding=1, impl=impl)
    return add_act(up, h, bias, activation="sigmoid", impl=impl), down


def operands(size=9, batch=2):
    shapes = ((batch, 3, size, size + 1), (4, 3, 3, 3), (4,))
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


def values_and_gradients(function, inputs, impl):
    above, below = function(*inputs, impl)
    return above, below, *torch.autograd.grad(above.square().sum() + below.sum(), inputs)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class TestCompile:
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_one_graph(self, impl, dynamic):
        compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for size in (9, 12):
            inputs = operands(size)
            got = values_and_gradients(compiled, inputs, impl)
            torch.testing.assert_close(got, values_and_gradients(network, inputs, impl))

    @pytest.mark.native
    def test_dynamic_sizes_do_not_compile_again(self):
        compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
        with torch.compiler.set_stance("default"):
            compiled(*operands(9), "native")
        with torch.compiler.set_stance("fail_on_recompile"):
            for size, batch in ((12, 2), (30, 5), (7, 3)):
                inputs = operands(size, batch)
                torch.testing.assert_close(compiled(*inputs, "native"), network(*inputs, "native"))

    @pytest.mark.native
    def test_operators_stay_whole_in_the_graph(self):
        graphs = []

        def keep(graph, _):
            graphs.append(graph)
            return graph

        torch.compile(network, fullgraph=True, backend=keep)(*operands(), "native")
        (graph,) = graphs
        calls = [str(node.target) for node in graph.graph.nodes if "lmser" in str(node.target)]
        assert calls == [
            "lmser.conv2d_add_act.default",
            "lmser.conv_transpose2d_add_act.default",
            "lmser.tied_conv2d.default",
            "lmser.add_act.default",
        ]

    @pytest.mark.native
    def test_layers(self):
        conv, linear = TiedConv2d(3, 4, 3, padding=1, activation="relu"), TiedLinear(6, 5, activation="tanh")
        x, rows = torch.randn(2, 3, 8, 8), torch.randn(7, 6)

        def call(x, rows):
            return conv.transpose(conv(x), add=x), linear.transpose(linear(rows), add=rows)

        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, rows), call(x, rows))

    @pytest.mark.native
    def test_under_autocast(self):
        def call(x, weight, bias):
            with torch.autocast("cpu", torch.bfloat16):
                return conv2d_add_act(x, weight, None, bias, activation="relu", impl="native")

        inputs = operands()
        result = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result, call(*inputs))

    def test_bad_arguments_still_raise(self, impl):
        def call(x, weight):
            return conv2d_add_act(x, weight, impl=impl)

        # Without fullgraph a failing trace runs eagerly, where the error is the function's own.
        compiled = torch.compile(call, backend="eager")
        with pytest.raises(ValueError, match="x must have the weight's C_in"):
            compiled(torch.randn(1, 2, 5, 5), torch.randn(4, 3, 3, 3))

    @pytest.mark.slow
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_inductor(self, impl, dynamic):
        compiled = torch.compile(network, fullgraph=True, dynamic=dynamic)
        for size in (9, 12):
            inputs = operands(size)
            got = values_and_gradients(compiled, inputs, impl)
            torch.testing.assert_close(got, values_and_gradients(network, inputs, impl), rtol=1e-4, atol=1e-4)


class Module(torch.nn.Module):
    def __init__(self, impl):
        super().__init__()
        self.edge = TiedConv2d(3, 4, 3, stride=2, padding=1, activation="tanh", impl=impl)

    def forward(self, x):
        return self.edge.transpose(self.edge(x), add=x, output_size=x.shape[2:])


class TestExport:
    @pytest.mark.parametrize("strict", [False, True])
    def test_static(self, impl, strict):
        module, x = Module(impl), torch.randn(2, 3, 9, 8)
        program = torch.export.export(module, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), module(x))
        if impl == "native":
            targets = {str(node.target) for node in program.graph.nodes}
            assert {"lmser.conv2d_add_act.default", "lmser.conv_transpose2d_add_act.default"} <= targets

    @pytest.mark.native
    @pytest.mark.parametrize("strict", [False, True])
    def test_dynamic(self, strict):
        module = Module("native")
        dynamic = {"x": {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("height", min=4)}}
        program = torch.export.export(
            module, (torch.randn(2, 3, 9, 8),), dynamic_shapes=dynamic, strict=strict
        )
        for batch, height in ((2, 9), (5, 16), (3, 5)):
            x = torch.randn(batch, 3, height, 8)
            torch.testing.assert_close(program.module()(x), module(x))

    @pytest.mark.native
    def test_saved_and_loaded(self, tmp_path):
        module, x = Module("native"), torch.randn(2, 3, 9, 8)
        torch.export.save(torch.export.export(module, (x,)), tmp_path / "edge.pt2")
        loaded = torch.export.load(tmp_path / "edge.pt2").module()
        torch.testing.assert_close(loaded(x), module(x))
