"""`invert` by the gated pass and by autograd: equal in value and gradient, for the twelve topologies and any network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmser import invert
from lmser.baselines import CNN, FCN, TOPOLOGIES, InhibitorConv2d, ResidualBlock, ResNet, SmallCNN
from lmser.benchmarks.inversion import eager_copy
from lmser.inversion import has_rules, inverted
from lmser_kernels.nn import Conv2dAddAct, MaxPool2dAct, TiedConv2d, TiedLinear


def drawn(network, dtype=torch.float64):
    """The network with random biases, so that none is zero."""
    network = network.to(dtype)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.1)
    return network


def found(network, x, method, layers=()):
    """Output, reconstructions, and the gradient of all errors of reconstruction with respect to parameters and x."""
    x = x.clone().requires_grad_()
    result = inverted(network, x, layers=layers, method=method)
    pairs = zip(result.reconstructions, result.states, strict=True)
    loss = sum((r - z).square().sum() for r, z in pairs) + result.output.logsumexp(1).sum()
    gradients = torch.autograd.grad(loss, [x, *network.parameters()])
    return (result.output, *result.reconstructions, *gradients)


def same(first, second, tolerance=1e-10):
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape
        largest = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * largest)


def test_there_are_twelve_topologies():
    from lmser.experiments.paper import paper_table

    assert set(TOPOLOGIES) == set(paper_table("003", "table 2"))


@pytest.mark.parametrize("name", TOPOLOGIES)
class TestTopologies:
    def test_gated_equals_autograd(self, name):
        network = drawn(TOPOLOGIES[name]())
        x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
        assert has_rules(network)
        same(found(network, x, "gated"), found(network, x, "autograd"))

    def test_gated_equals_autograd_at_every_layer(self, name):
        network = drawn(TOPOLOGIES[name](in_channels=2, num_classes=3))
        x = torch.rand(1, 2, 28, 28, dtype=torch.float64)
        layers = list(network)[1:]
        same(found(network, x, "gated", layers), found(network, x, "autograd", layers))

    def test_equals_plain_torch(self, name):
        """The reference that shares nothing with the fused layers."""
        network = drawn(TOPOLOGIES[name]())
        if "U" in name:  # plain layers have no inhibition: its weights stand in
            plain = TOPOLOGIES[name.removeprefix("U").replace("UCNN", "CNN") + "mean"]().double()
            pairs = zip(network.modules(), plain.modules(), strict=True)
            for ours, theirs in ((a, b) for a, b in pairs if isinstance(a, Conv2dAddAct)):
                inhibited = isinstance(ours, InhibitorConv2d)
                theirs.weight.data = ours.inhibited_weight() if inhibited else ours.weight.data
        else:
            plain = network
        x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
        reference = eager_copy(plain).double()
        source = x.clone().requires_grad_()
        output = reference(source)
        (wanted,) = torch.autograd.grad(output, source, output)
        torch.testing.assert_close(network(x), output)
        torch.testing.assert_close(invert(network, x, method="gated"), wanted)


def test_is_the_transpose_of_the_jacobian():
    network = drawn(SmallCNN(size=20))
    x = torch.rand(1, 1, 20, 20, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(network, x).view(10, -1)
    wanted = (jacobian.T @ network(x)[0]).view_as(x)
    torch.testing.assert_close(invert(network, x), wanted)


def test_a_linear_network_is_its_gram_matrix():
    """003 Sect. 2: of W x it is Wᵀ W x."""
    layer = TiedLinear(6, 4, bias=False, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(invert(nn.Sequential(layer), x), x @ layer.weight.T @ layer.weight)


class PlainBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return x + F.gelu(self.norm(self.conv(x)))


NETWORKS = {
    "plain layers": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, 2, 1), nn.LeakyReLU(0.2), nn.MaxPool2d(3, 2, 1), nn.Conv2d(5, 4, 2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Identity(), nn.Linear(6, 3),
    ),
    "global mean": lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "average pool that leaves a rest": lambda: nn.Sequential(
        Conv2dAddAct(3, 4, 3, activation="leaky_relu"), Conv2dAddAct(4, 3, 1, pool=(2, 3)), nn.Flatten(),
    ),
    "every activation": lambda: nn.Sequential(
        Conv2dAddAct(3, 4, 3, activation="tanh"), TiedConv2d(4, 4, 3, 2, 1, activation="leaky_sigmoid", slope=0.1),
        Conv2dAddAct(4, 4, 1, activation="sigmoid"), MaxPool2dAct(2, activation="leaky_relu"), nn.Flatten(),
        TiedLinear(16, 5, activation="relu"), TiedLinear(5, 2),
    ),
    "overlapping windows behind an activation": lambda: nn.Sequential(
        Conv2dAddAct(3, 4, 3, activation="relu"), MaxPool2dAct(3, 1, 1, activation="tanh"), MaxPool2dAct(3, 2), nn.Flatten(),
    ),
    "begins with nothing": lambda: nn.Sequential(
        nn.Identity(), nn.AvgPool2d([2, 3]), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(),
    ),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Flatten())),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_rules(name):
    torch.manual_seed(0)
    network = drawn(NETWORKS[name]())
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64)
    assert has_rules(network)
    same(found(network, x, "gated"), found(network, x, "autograd"))
    layers = list(network)[1:]
    same(found(network, x, "gated", layers), found(network, x, "autograd", layers))
    some = layers[1::2]
    if some:
        same(found(network, x, "gated", some), found(network, x, "autograd", some))


@pytest.mark.parametrize(
    "network", [PlainBlock(), CNN(3, (4, 5), (1, 2), 5), nn.Sequential(PlainBlock(), nn.Flatten())]
)
def test_without_rules_autograd_is_taken(network):
    assert not has_rules(network)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(invert(network, x), invert(network, x, method="autograd"))
    with pytest.raises(TypeError, match="has no rule for the way down"):
        invert(network, x, method="gated")


def test_settings_without_a_rule_are_not_guessed():
    for layer in (
        nn.Conv2d(2, 2, 3, dilation=2), nn.Conv2d(2, 2, 3, padding="same"), nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, 1), nn.Flatten(0), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.MaxPool2d(16),
    ):  # fmt: skip
        assert not has_rules(nn.Sequential(layer))


def test_hooks_are_not_gone_past():
    network = SmallCNN()
    network[0].register_forward_hook(lambda module, inputs, output: output * 0)
    assert not has_rules(network)
    assert not invert(network, torch.rand(1, 1, 28, 28)).any()


@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 3, 4, 5), (0, 5), (0, 7, 5)])
def test_rows_of_any_number_of_dimensions(shape):
    network = drawn(nn.Sequential(nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    x = torch.randn(shape, dtype=torch.float64)
    same(*(inverted(network, x, method=method).reconstructions for method in ("gated", "autograd")))


def test_a_layer_that_comes_twice():
    relu, linear = nn.ReLU(), nn.Linear(4, 4)
    network = drawn(nn.Sequential(linear, relu, linear, nn.Sequential(relu), nn.Linear(4, 3)))
    x = torch.randn(2, 4, dtype=torch.float64)
    same(found(network, x, "gated"), found(network, x, "autograd"))


@pytest.mark.parametrize("inside", ["inner", "outer"])
def test_hooks_within_a_block_are_not_gone_past(inside):
    network = nn.Sequential(ResidualBlock(2, 3, inhibitor=True), nn.Flatten())
    getattr(network[0], inside).register_forward_hook(lambda module, inputs, output: output * 2)
    x = torch.rand(1, 2, 4, 4)
    assert not has_rules(network)
    torch.testing.assert_close(invert(network, x), invert(network, x, method="autograd"))
    with pytest.raises(TypeError, match="ResidualBlock has no rule"):
        invert(network, x, method="gated")


def test_a_replaced_forward_is_not_gone_past():
    network = nn.Sequential(nn.Linear(4, 3))
    network[0].forward = lambda x: F.linear(x, 2 * network[0].weight)
    x = torch.rand(2, 4)
    torch.testing.assert_close(invert(network, x), 4 * x @ network[0].weight.T @ network[0].weight)


def test_an_attribute_called_gated_is_no_rule():
    class Unit(nn.Linear):
        gated = True

    unit = Unit(4, 3)
    x = torch.rand(2, 4)
    assert not has_rules(unit)
    torch.testing.assert_close(invert(unit, x), unit(x) @ unit.weight)


def test_an_overridden_sequence_is_not_taken_for_one():
    class Twice(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    assert not has_rules(Twice(nn.Conv2d(1, 1, 1)))


def test_dropout_drops_the_same_both_ways():
    network = drawn(
        nn.Sequential(nn.Flatten(), TiedLinear(12, 30, activation="relu"), nn.Dropout(0.5), TiedLinear(30, 3))
    )
    x = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    results = []
    for method in ("gated", "autograd"):
        torch.manual_seed(3)
        results.append(found(network.train(), x, method))
    same(*results)
    network.eval()
    same(found(network, x, "gated"), found(network, x, "autograd"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_layouts(dtype, layout):
    network = drawn(SmallCNN(pooling="max"), dtype)
    x = torch.rand(3, 1, 28, 28).to(dtype).to(memory_format=layout)
    got, wanted = (invert(network, x, method=method) for method in ("gated", "autograd"))
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


def test_no_gradients_where_none_are_asked_for():
    network = SmallCNN()
    x = torch.rand(2, 1, 28, 28)
    for method in ("gated", "autograd"):
        with torch.no_grad():
            got = inverted(network, x, method=method)
        assert not got.output.requires_grad
        assert not got.reconstructions[0].requires_grad
        assert not x.requires_grad
        with torch.inference_mode():
            torch.testing.assert_close(invert(network, x * 1, method=method), got.reconstructions[0])
            found = inverted(network, x * 1, layers=[network[1]], method=method)
        assert len(found.reconstructions) == 2


class TestLayers:
    """One reconstruction for x and one for each layer, in their order, by either method."""

    def network(self):
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()

    @pytest.mark.parametrize("training", [False, True])
    def test_where_a_layer_gives_its_input(self, training):
        network, x = self.network().train(training), torch.rand(2, 4, dtype=torch.float64)
        results = []
        for method in ("gated", "autograd"):
            torch.manual_seed(0)
            results.append(inverted(network, x, layers=list(network), method=method))
        for result in results:
            assert len(result.states) == len(result.reconstructions) == 5
        same(results[0].states + results[0].reconstructions, results[1].states + results[1].reconstructions)

    def test_in_any_order(self):
        network, x = self.network().eval(), torch.rand(2, 4, dtype=torch.float64)
        backwards = inverted(network, x, layers=[network[3], network[1]])
        forwards = inverted(network, x, layers=[network[1], network[3]], method="gated")
        for got, want in (
            (backwards.states, forwards.states),
            (backwards.reconstructions, forwards.reconstructions),
        ):
            same((got[0], got[2], got[1]), want)

    def test_changed_in_place(self):
        network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True))
        with pytest.raises(ValueError, match="layers: expected inputs that nothing changes in place"):
            inverted(network, torch.randn(2, 4), layers=[network[1]])

    def test_one_called_twice_and_one_never(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x):
                return self.first(self.first(x))

        network = Twice()
        with pytest.raises(ValueError, match="each to be called once by the model, got 2 calls of 2"):
            inverted(network, torch.rand(2, 4), layers=[network.first, network.second])

    def test_called_with_more_than_a_tensor(self):
        class Named(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(4, 4)

            def forward(self, x):
                return self.first(input=x)

        network = Named()
        with pytest.raises(ValueError, match="layers: expected Linear to be called with one tensor"):
            inverted(network, torch.rand(2, 4), layers=[network.first])


def test_empty_batch():
    for method in ("gated", "autograd"):
        assert invert(ResNet(1, 4), torch.rand(0, 1, 28, 28), method=method).shape == (0, 1, 28, 28)


def test_compiles():
    network = SmallCNN()
    x = torch.rand(2, 1, 28, 28)
    made = torch.compile(lambda x: invert(network, x, method="gated"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(made(x), invert(network, x))


class TestErrors:
    def test_input(self):
        with pytest.raises(TypeError, match="x: expected a floating tensor"):
            invert(SmallCNN(), torch.zeros(1, 1, 28, 28, dtype=torch.uint8))

    def test_method(self):
        with pytest.raises(ValueError, match="method: expected one of auto, gated, autograd"):
            invert(SmallCNN(), torch.rand(1, 1, 28, 28), method="fast")

    def test_layers(self):
        network = SmallCNN()
        x = torch.rand(1, 1, 28, 28)
        with pytest.raises(ValueError, match=r"children of an nn\.Sequential, in order"):
            inverted(network, x, layers=[network[2], network[1]], method="gated")
        with pytest.raises(ValueError, match="each to be called once"):
            inverted(network, x, layers=[nn.Flatten()])

    @pytest.mark.parametrize(
        "change", [{"pooling": "sum"}, {"num_classes": 0}, {"in_channels": "1"}, {"size": 19}]
    )
    def test_topology(self, change):
        (name,) = change
        with pytest.raises(ValueError, match=f"{name}: expected"):
            SmallCNN(**change)

    @pytest.mark.parametrize("name", ["SmallCNNmean", "SmallCNNmax", "LargeUCNN", "Resnet3-16mean"])
    def test_images_of_another_size(self, name):
        network = TOPOLOGIES[name]()
        for use in (network, lambda x: invert(network, x)):
            with pytest.raises(ValueError, match="x: expected images of the `size`"):
                use(torch.rand(1, 1, 64, 64))

    def test_residual(self):
        with pytest.raises(ValueError, match="depth: expected a positive int"):
            ResNet(0, 8)


def test_fully_connected_classifier():
    network = drawn(FCN((12, 7, 3)))
    x = torch.rand(2, 12, dtype=torch.float64)
    same(found(network.layers, x, "gated"), found(network, x, "autograd"))
