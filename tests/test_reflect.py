"""`reflect`: the passes as one operator against the passes layer by layer in eager PyTorch, values and all gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmser_kernels import reference, reflect

# batch, channels, sizes, kernel, strides
NETWORKS = {
    "one edge": (3, (3, 5), (7, 6), (3, 3), [2]),
    "three edges": (5, (3, 8, 13, 6), (13, 18), (3, 3), [1, 2, (2, 1)]),
    "one image": (1, (2, 4, 7), (9, 9), (3, 3), [1, 2]),
    "no image": (0, (2, 4, 7), (9, 9), (3, 3), [1, 2]),
    "fully connected": (11, (37, 20, 13, 10), (1, 1), (1, 1), [1, 1, 1]),
    "one fully connected": (1, (37, 20, 13), (1, 1), (1, 1), [1, 1]),
    "signal": (4, (2, 5, 9), (1, 31), (1, 5), [(1, 2), (1, 3)]),
    "wide kernel": (3, (1, 6, 4), (12, 11), (5, 5), [1, 2]),
    "pointwise": (3, (3, 6, 4), (5, 7), (1, 1), [1, 1]),
    "filtered": (3, (20, 40, 36), (12, 12), (3, 3), [1, 1]),
}
VARIANTS = {
    "plain": {},
    "reflections": {"reflections": 3},
    "free decoder": {"free": True, "reflections": 2},
    "unpaired": {"paired": False, "reflections": 2},
    "mixed top": {"linear": (1, 2), "noise": True, "reflections": 2},
    "linear top": {"linear": "all"},
    "tanh": {"activation": "tanh", "reflections": 2},
    "leaky": {"activation": "leaky_sigmoid", "slope": 0.3},
}


class Case:
    def __init__(self, network: str, variant: str = "plain", dtype: torch.dtype = torch.float64) -> None:
        batch, channels, size, kernel, strides = NETWORKS[network]
        options = dict(VARIANTS[variant])
        generator = torch.Generator().manual_seed(len(network) + 31 * len(variant))

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        def weights() -> list[Tensor]:
            shape = () if network.startswith("fully") else kernel
            return [
                randn(above, below, *shape) / (below * kernel[0] * kernel[1]) ** 0.5
                for below, above in itertools.pairwise(channels)
            ]

        self.x, self.weights = randn(batch, channels[0], *size), weights()
        self.back = weights() if options.pop("free", False) else []
        self.biases = [0.3 * randn(c) for c in channels]
        self.options = {"stride": strides, **options}
        if self.options.get("linear") == "all":
            self.options["linear"] = (channels[-1] - 1, 1)
        if options.get("noise"):
            batch, _, *size = self.run("reference", noise=None).code.shape
            self.options["noise"] = randn(batch, 2, *size)
        for tensor in self.inputs():
            tensor.requires_grad_()

    def inputs(self) -> list[Tensor]:
        return [self.x, *self.weights, *self.back, *self.biases]

    def run(self, impl: str, **options):
        return reflect(
            self.x, self.weights, self.biases, decoder_weights=self.back or None, impl=impl, **self.options | options
        )  # fmt: skip

    def to(self, dtype: torch.dtype) -> Case:
        for name in ("weights", "back", "biases"):
            setattr(self, name, [t.detach().to(dtype).requires_grad_() for t in getattr(self, name)])
        self.x = self.x.detach().to(dtype).requires_grad_()
        if isinstance(self.options.get("noise"), Tensor):
            self.options["noise"] = self.options["noise"].to(dtype)
        return self


def gradients(found, inputs: list[Tensor], **options) -> tuple[Tensor | None, ...]:
    """Of one fixed random combination of both results."""
    generator = torch.Generator().manual_seed(5)
    loss = sum(
        (o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype)).sum() for o in found
    )
    return torch.autograd.grad(loss, inputs, allow_unused=True, **options)


def same(found, wanted, tolerance: float = 1e-11) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_values_and_gradients(network, variant):
    case = Case(network, variant)
    found, wanted = case.run("native"), case.run("reference")
    same(found, wanted)
    same(gradients(found, case.inputs()), gradients(wanted, case.inputs()))
    with torch.no_grad():
        same(case.run("native"), wanted)


@pytest.mark.parametrize("network", ["three edges", "filtered"])
def test_each_gradient_alone(network):
    case = Case(network, "free decoder")
    wanted = gradients(case.run("reference"), case.inputs())
    for asked, gradient in zip(case.inputs(), wanted, strict=True):
        for tensor in case.inputs():
            tensor.requires_grad_(tensor is asked)
        same(gradients(case.run("native"), [asked]), [gradient])
    for part in (0, 1):  # a loss of one result
        for tensor in case.inputs():
            tensor.requires_grad_()
        found, wanted_part = (
            torch.autograd.grad(case.run(impl)[part].square().sum(), case.inputs(), allow_unused=True)
            for impl in ("native", "reference")
        )
        for a, b in zip(found, wanted_part, strict=True):
            if b is None:  # nothing flows: None or zero
                assert a is None or not a.any()
            else:
                same([a], [b])


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "strided"])
def test_layouts(layout):
    case = Case("three edges", "reflections")
    if layout == "channels-last":
        case.x = case.x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    if layout == "strided":
        wide = torch.randn(5, 3, 26, 36, dtype=torch.float64)
        case.x = wide[:, :, ::2, ::2].detach().requires_grad_()
        case.weights = [
            w.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for w in case.weights
        ]
    found, wanted = case.run("native"), case.run("reference")
    same(found, wanted)
    same(gradients(found, case.inputs()), gradients(wanted, case.inputs()))
    last = layout == "channels-last"
    assert found.reconstruction.is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    assert found.code.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("variant", ["plain", "reflections", "mixed top", "tanh"])
def test_float32_through_minimal_filtering(variant):
    case = Case("filtered", variant)
    if variant != "tanh":  # units within rounding of a kink may fall on either side of it
        case.options["activation"] = "identity"
    wanted = case.run("reference")
    wanted_gradients = gradients(wanted, case.inputs())
    case.to(torch.float32)
    found = case.run("native")
    same([t.double() for t in found], wanted, 1e-4)
    for a, b in zip(gradients(found, case.inputs()), wanted_gradients, strict=True):
        assert (a.double() - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_layer_by_layer(dtype):
    case = Case("three edges").to(dtype)
    found, wanted = case.run("native"), case.run("reference")
    same(found, wanted, 5e-2)
    assert found.reconstruction.dtype == dtype


def test_autocast():
    case = Case("three edges").to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert case.run("auto").reconstruction.dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("network", ["three edges", "filtered"])
def test_what_is_not_finite_goes_where_it_does_in_eager_pytorch(network, value):
    case = Case(network).to(torch.float32)
    with torch.no_grad():
        case.x[0, 0, 4, 5] = value
    found, wanted = case.run("native"), case.run("reference")
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.isfinite(), b.isfinite())
        clean = b.isfinite()
        torch.testing.assert_close(a[clean], b[clean], rtol=1e-4, atol=1e-4)
    assert found.reconstruction[1:].isfinite().all()


def test_code_sent_down():
    case = Case("three edges", "reflections")
    code = torch.randn(case.run("reference").code.shape, dtype=torch.float64, requires_grad=True)
    found, wanted = case.run("native", sent_down=code), case.run("reference", sent_down=code)
    same(found, wanted)
    assert found.code.equal(code)
    inputs = [*case.inputs(), code]
    same(gradients(found, inputs), gradients(wanted, inputs))


@pytest.mark.parametrize("variant", ["plain", "mixed top", "tanh"])
def test_finite_differences(variant):
    torch.manual_seed(0)
    weights = [torch.randn(3, 2, 3, 3).double() / 4, torch.randn(4, 3, 3, 3).double() / 5]
    biases = [torch.randn(c).double() for c in (2, 3, 4)]
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    options = {"reflections": 2, "stride": [1, 2], "activation": "tanh"}
    if variant == "mixed top":
        options |= {"linear": (1, 1), "noise": torch.randn(2, 1, 2, 3, dtype=torch.float64)}
    inputs = [t.requires_grad_() for t in (x, *weights, *biases)]

    def run(x, w1, w2, b0, b1, b2):
        return tuple(reflect(x, [w1, w2], [b0, b1, b2], impl="native", **options))

    torch.autograd.gradcheck(run, inputs, fast_mode=True)
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("network", ["three edges", "fully connected"])
def test_compiled(network):
    case = Case(network, "reflections")

    def step(x, weights, biases):
        return tuple(reflect(x, weights, biases, impl="native", **case.options))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, wanted = (f(case.x, case.weights, case.biases) for f in (compiled, step))
    same(found, wanted)
    same(gradients(found, case.inputs()), gradients(wanted, case.inputs()))


def test_exported_graphs_are_of_operations_that_run_anywhere():
    case = Case("three edges")

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(w.detach() for w in case.weights)
            self.biases = torch.nn.ParameterList(b.detach() for b in case.biases)

        def forward(self, x):
            return reflect(x, list(self.weights), list(self.biases), **case.options).reconstruction

    x = case.x.detach()
    network = Network()
    program = torch.export.export(network, (x,))
    assert "lmser.reflect" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x), network(x))


def test_functional_transforms():
    case = Case("three edges")
    weights, biases = [w.detach() for w in case.weights], [b.detach() for b in case.biases]

    def loss(x):
        return reflect(x, weights, biases, **case.options).reconstruction.square().sum()

    found = torch.func.grad(loss)(case.x.detach())
    (wanted,) = torch.autograd.grad(loss(case.x), case.x)
    torch.testing.assert_close(found, wanted)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Working memory for more images than one piece of the batch, with a remainder.
def _large() -> Case:
    case = Case("three edges")
    case.x = torch.randn(23, 3, 96, 90, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return case.to(torch.float32)


def test_bits_do_not_depend_on_threads_going_forward(threads):
    case = _large()
    found = []
    for count in (1, 2, 3):
        threads(count)
        with torch.no_grad():
            found.append(case.run("native"))
        found.append(case.run("native"))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_pieces_of_a_batch_and_bits_from_run_to_run(threads):
    case = _large()
    case.options["activation"] = "tanh"
    for count in (1, 2, 3):
        threads(count)
        first, second = (gradients(case.run("native"), case.inputs()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        wanted = gradients(case.run("reference"), case.inputs())
        for a, b in zip(first, wanted, strict=True):
            assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_backward_keeps_one_state_a_layer_and_pass():
    case = Case("three edges", "reflections")
    kept = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        case.run("native")
    own = {t.data_ptr() for t in case.inputs()}
    (states,) = [t for t in kept if t.data_ptr() not in own]
    values = [8 * 13 * 18, 13 * 7 * 9, 6 * 4 * 9]
    once = 2 * (values[0] + values[1]) + values[2]
    later = values[0] + 2 * values[1] + values[2]  # h_1 is that of the pass before
    assert states.numel() == 5 * (once + 2 * later)


def test_one_weight_gradient_for_both_directions_is_the_sum_of_two():
    tied, free = Case("three edges"), Case("three edges")
    free.back = [w.detach().clone().requires_grad_() for w in free.weights]
    found = gradients(tied.run("native"), tied.weights)
    parts = gradients(free.run("native"), [*free.weights, *free.back])
    same(found, [a + b for a, b in zip(parts[:3], parts[3:], strict=True)])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": []}, ValueError, "weights must have at least one"),
        ({"weights": torch.zeros(2, 2, 1, 1)}, TypeError, "weights must be a sequence of tensors"),
        ({"biases": []}, ValueError, "biases must be one for each of the 3 layers"),
        (
            {"biases": [torch.zeros(3), torch.zeros(4), torch.zeros(9)]},
            ValueError,
            r"biases\[2\] must have one value",
        ),
        (
            {"weights": [torch.zeros(4, 3, 3), torch.zeros(5, 4)]},
            ValueError,
            r"weights\[0\] must be 4-D.*or 2-D",
        ),
        ({"x": torch.zeros(2, 5, 8, 8)}, ValueError, r"weights\[0\] must take the 5 channels of layer 0"),
        ({"x": torch.zeros(2, 3, 8)}, ValueError, "x must be 4-D"),
        ({"x": torch.zeros(2, 3, 8, 8).double()}, TypeError, r"weights\[0\] must have the dtype of x"),
        ({"stride": [1]}, ValueError, "stride must be one for each of the 2 weights"),
        ({"padding": [1, -1]}, ValueError, r"padding\[1\] must be at least 0"),
        (
            {"padding": 0, "x": torch.zeros(2, 3, 4, 4)},
            ValueError,
            r"weights\[1\] must be no larger than layer 1",
        ),
        ({"reflections": 0}, ValueError, "reflections must be at least 1"),
        ({"reflections": 1.5}, TypeError, "reflections must be an int"),
        ({"linear": (3, 4)}, ValueError, "linear must fit into the 5 channels"),
        ({"noise": torch.zeros(2, 5, 1, 1)}, ValueError, "noise must have the shape of the last linear"),
        (
            {"sent_down": torch.zeros(1, 5, 8, 8)},
            ValueError,
            "sent_down must have the shape of the top layer",
        ),
        ({"decoder_weights": [torch.zeros(4, 3, 3, 3)]}, ValueError, "decoder_weights must be one for each"),
        (
            {"decoder_weights": [torch.zeros(4, 3, 1, 1), torch.zeros(5, 4, 3, 3)]},
            ValueError,
            r"decoder_weights\[0\] must have the shape of weights\[0\]",
        ),
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
        reflect(**arguments | change)


def test_reference_under_its_public_name():
    case = Case("three edges", "reflections")
    found = reference.reflect(case.x, case.weights, case.biases, **case.options)
    same(found, case.run("reference"))


def test_equations():
    """001 Eqs. (3)-(5) line by line, two layers and two reflections."""
    torch.manual_seed(0)
    x, w1, w2 = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3) / 5, torch.randn(5, 4, 3, 3) / 6
    b0, b1, b2 = torch.randn(3), torch.randn(4), torch.randn(5)
    found = reflect(x, [w1, w2], [b0, b1, b2], stride=[1, 2], reflections=2)
    y1 = F.conv2d(x, w1, b1, 1, 1)
    h2 = F.relu(F.conv2d(F.relu(y1), w2, b2, 2, 1))
    for _ in range(2):
        h1 = F.relu(y1 + F.conv_transpose2d(h2, w2, None, 2, 1, 1))
        code, h2 = h2, F.relu(F.conv2d(h1, w2, b2, 2, 1))
    torch.testing.assert_close(found.code, code)
    torch.testing.assert_close(
        found.reconstruction, F.conv_transpose2d(h1, w1, b0, 1, 1), rtol=1e-4, atol=1e-5
    )
