"""The layers: equal to `torch.nn`'s followed by the eager steps, from the same start and the same state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmser_kernels import settle
from lmser_kernels.nn import AddAct, Conv2dAddAct, ConvTranspose2dAddAct, Settle, TiedConv2d, TiedLinear

pytestmark = pytest.mark.operators


def same_start(make_ours, make_theirs):
    torch.manual_seed(3)
    ours = make_ours()
    torch.manual_seed(3)
    theirs = make_theirs()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    return ours, theirs


class TestConv2dAddAct:
    def test_is_a_convolution_then_the_rest(self, impl):
        ours, theirs = same_start(
            lambda: Conv2dAddAct(3, 5, (3, 2), 2, 1, activation="relu", pool=2, impl=impl),
            lambda: nn.Conv2d(3, 5, (3, 2), 2, 1),
        )
        x = torch.randn(2, 3, 12, 11)
        linear = theirs(F.avg_pool2d(x, 2))
        add = torch.randn_like(linear)
        torch.testing.assert_close(ours(x), F.relu(linear))
        torch.testing.assert_close(ours(x, add), F.relu(linear + add))

    def test_loads_the_state_of_a_convolution(self):
        theirs = nn.Conv2d(3, 5, 3)
        ours = Conv2dAddAct(3, 5, 3)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 3, 6, 6)
        torch.testing.assert_close(ours(x), theirs(x))

    @pytest.mark.parametrize(("padding", "size"), [("same", 9), ("valid", 5), ((1, 2), (7, 9))])
    def test_padding_by_name(self, padding, size):
        ours, theirs = same_start(
            lambda: Conv2dAddAct(2, 2, 5, padding=padding), lambda: nn.Conv2d(2, 2, 5, padding=padding)
        )
        x = torch.randn(1, 2, 9, 9)
        assert ours(x).shape[2:] == torch.Size((size, size) if isinstance(size, int) else size)
        torch.testing.assert_close(ours(x), theirs(x))

    def test_without_bias(self):
        same_start(lambda: Conv2dAddAct(2, 2, 1, bias=False), lambda: nn.Conv2d(2, 2, 1, bias=False))

    def test_device_and_dtype(self):
        layer = Conv2dAddAct(2, 2, 1, device="meta", dtype=torch.float64)
        assert layer.weight.device.type == layer.bias.device.type == "meta"
        assert layer.weight.dtype == layer.bias.dtype == torch.float64

    def test_repr(self):
        layer = Conv2dAddAct(
            2, 4, 3, 2, 1, bias=False, activation="leaky_relu", slope=0.1, pool=2, impl="reference"
        )
        assert repr(layer) == (
            "Conv2dAddAct(2, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False, "
            "activation='leaky_relu', slope=0.1, impl='reference', pool=(2, 2))"
        )

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"dilation": 2}, ValueError, "dilation must be 1"),
            ({"groups": 2}, ValueError, "groups must be 1"),
            ({"padding_mode": "reflect"}, ValueError, "padding_mode must be 'zeros'"),
            ({"padding": "full"}, ValueError, "padding must be an int, .* got 'full'"),
            ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1"),
            ({"padding": "same", "kernel_size": 2}, ValueError, "padding='same' needs an odd kernel_size"),
            ({"in_channels": 0}, ValueError, "in_channels must be a positive int; got 0"),
            ({"out_channels": 1.5}, ValueError, "out_channels must be a positive int; got 1.5"),
            ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
            ({"activation": "elu"}, ValueError, "activation must be one of"),
            ({"slope": 0.1}, ValueError, "slope is for"),
            ({"impl": "fast"}, ValueError, "impl must be one of"),
            ({"pool": 0}, ValueError, "pool must be at least 1"),
        ],
    )
    def test_refuses(self, arguments, error, match):
        with pytest.raises(error, match=match):
            Conv2dAddAct(**{"in_channels": 2, "out_channels": 2, "kernel_size": 3} | arguments)


class TestConvTranspose2dAddAct:
    def test_is_a_transposed_convolution_then_the_rest(self, impl):
        ours, theirs = same_start(
            lambda: ConvTranspose2dAddAct(
                5, 3, (3, 2), 2, 1, activation="tanh", output_padding=(1, 0), impl=impl
            ),
            lambda: nn.ConvTranspose2d(5, 3, (3, 2), 2, 1, output_padding=(1, 0)),
        )
        z = torch.randn(2, 5, 4, 5)
        linear = theirs(z)
        add, gate = torch.randn_like(linear), torch.randn_like(linear)
        torch.testing.assert_close(ours(z), torch.tanh(linear))
        torch.testing.assert_close(ours(z, add, gate=gate), torch.tanh(linear + add) * (gate > 0))

    def test_output_size(self, impl):
        layer = ConvTranspose2dAddAct(5, 3, 3, 2, 1, upsample=2, impl=impl)
        z = torch.randn(1, 5, 4, 4)
        assert layer(z).shape == (1, 3, 14, 14)
        assert layer(z, output_size=(8, 7)).shape == (1, 3, 16, 14)

    def test_output_padding_must_be_less_than_the_stride(self):
        with pytest.raises(ValueError, match=r"output_padding must be less than the stride \(1, 1\); got 1"):
            ConvTranspose2dAddAct(2, 2, 3, output_padding=1)

    def test_repr(self):
        layer = ConvTranspose2dAddAct(4, 2, 3, 2, output_padding=1, upsample=(1, 2))
        assert repr(layer) == (
            "ConvTranspose2dAddAct(4, 2, kernel_size=(3, 3), stride=(2, 2), activation='identity', "
            "output_padding=(1, 1), upsample=(1, 2))"
        )


class TestTiedConv2d:
    def test_both_directions_of_one_weight(self, impl):
        layer, theirs = same_start(
            lambda: TiedConv2d(3, 5, 3, 2, 1, activation="relu", impl=impl), lambda: nn.Conv2d(3, 5, 3, 2, 1)
        )
        x = torch.randn(2, 3, 9, 8)
        h = layer(x)
        torch.testing.assert_close(h, F.relu(theirs(x)))
        below, gate = torch.randn(3), torch.randn(2, 3, 9, 8)
        linear = F.conv_transpose2d(h, theirs.weight, below, 2, 1, (0, 1))
        got = layer.transpose(h, x, (9, 8), bias=below, gate=gate)
        torch.testing.assert_close(got, F.relu(linear + x) * (gate > 0))
        y, u = layer.drives(x, h)
        torch.testing.assert_close(y, F.conv2d(x, theirs.weight, None, 2, 1))
        torch.testing.assert_close(u, F.conv_transpose2d(h, theirs.weight, None, 2, 1, (0, 1)))

    def test_one_gradient_for_both_uses(self, impl):
        layer = TiedConv2d(3, 5, 3, padding=1, activation="tanh", impl=impl).double()
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        layer.transpose(layer(x)).sum().backward()
        weight = layer.weight.detach().clone().requires_grad_()
        h = torch.tanh(F.conv2d(x, weight, layer.bias, padding=1))
        torch.tanh(F.conv_transpose2d(h, weight, padding=1)).sum().backward()
        torch.testing.assert_close(layer.weight.grad, weight.grad)


class TestTiedLinear:
    def test_both_directions_of_one_weight(self, impl):
        layer, theirs = same_start(
            lambda: TiedLinear(7, 4, activation="sigmoid", impl=impl), lambda: nn.Linear(7, 4)
        )
        x, add, below = torch.randn(3, 7), torch.randn(3, 4), torch.randn(7)
        h = layer(x, add)
        torch.testing.assert_close(h, torch.sigmoid(theirs(x) + add))
        torch.testing.assert_close(
            layer.transpose(h, x, bias=below), torch.sigmoid(h @ theirs.weight + below + x)
        )

    def test_gradients(self, impl):
        layer = TiedLinear(7, 4, activation="tanh", impl=impl).double()
        x = torch.randn(5, 7, dtype=torch.float64)
        layer.transpose(layer(x.t().contiguous().t())).square().sum().backward()
        weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
        torch.tanh(torch.tanh(x @ weight.t() + bias) @ weight).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, weight.grad)
        torch.testing.assert_close(layer.bias.grad, bias.grad)

    def test_empty_batch(self, impl):
        layer = TiedLinear(7, 4, impl=impl)
        assert layer.transpose(layer(torch.zeros(0, 7))).shape == (0, 7)

    @pytest.mark.parametrize(
        ("x", "error", "match"),
        [
            (torch.zeros(7), ValueError, r"x must be 2-D, \(N, features\); got shape \(7,\)"),
            (torch.zeros(2, 6), ValueError, "x must have the weight's C_in = 7 channels"),
            ([1.0], TypeError, "x must be a tensor; got list"),
        ],
    )
    def test_refuses(self, x, error, match):
        with pytest.raises(error, match=match):
            TiedLinear(7, 4)(x)
        with pytest.raises(ValueError, match="out_features must be a positive int"):
            TiedLinear(7, 0)

    def test_repr(self):
        assert repr(TiedLinear(7, 4, bias=False)) == "TiedLinear(7, 4, bias=False, activation='identity')"


class TestAddAct:
    def test_adds_and_activates(self, impl):
        y, u = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(AddAct(impl=impl)(y, u), F.relu(y + u))
        torch.testing.assert_close(AddAct("tanh", impl=impl)(y), torch.tanh(y))

    def test_bias(self, impl):
        layer = AddAct("leaky_relu", 0.3, channels=3, impl=impl)
        assert list(layer.state_dict()) == ["bias"]
        assert not layer.bias.any()
        nn.init.normal_(layer.bias)
        y = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(layer(y), F.leaky_relu(y + layer.bias.view(1, -1, 1, 1), 0.3))

    def test_repr(self):
        assert (
            repr(AddAct("leaky_relu", 0.3, channels=3))
            == "AddAct(activation='leaky_relu', slope=0.3, channels=3)"
        )
        assert repr(AddAct()) == "AddAct(activation='relu')"


class TestSettle:
    def states(self, *shapes):
        return [torch.randn(2, *shape) for shape in shapes]

    def test_is_the_operation_with_its_settings(self):
        layer = Settle((3, 5, 4), 3, pools=(1, 2), activation="leaky_sigmoid", slope=0.3, symmetric=False)
        layer.readouts, layer.max_steps = True, 7
        states = self.states((3, 4, 6), (5, 4, 6), (4, 2, 3))
        evidence, external = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
        mask = torch.rand(2, 3, 4, 6) < 0.5
        got = layer(states, evidence, mask, external=external, order="odd_even", strength=0.5)
        expected = settle(
            states, list(layer.weights), list(layer.biases), evidence=evidence, mask=mask, external=external,
            strength=0.5, pools=(1, 2), activation="leaky_sigmoid", slope=0.3, order="odd_even", max_steps=7,
            reverse_weights=list(layer.reverse_weights), readouts=True,
        )  # fmt: skip
        for a, b in zip(got.states, expected.states, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(got.readouts, expected.readouts)
        assert int(got.steps) == int(expected.steps) <= 7

    def test_starts_as_convolutions_do(self):
        layer = Settle((64, 32), 3)
        for tensor, fan_in in ((layer.weights[0], 576), (layer.biases[1], 576), (layer.biases[0], 288)):
            bound = fan_in**-0.5
            assert tensor.abs().max() <= bound
            assert tensor.abs().max() > 0.8 * bound

    def test_state_dict(self):
        layer = Settle((3, 5, 4), symmetric=False)
        assert list(layer.state_dict()) == [
            "weights.0", "weights.1", "biases.0", "biases.1", "biases.2", "reverse_weights.0", "reverse_weights.1",
        ]  # fmt: skip
        assert list(Settle((3, 5), bias=False).state_dict()) == ["weights.0"]

    @pytest.mark.parametrize("backward", ["bptt", "implicit"])
    def test_gradients_reach_every_parameter(self, backward):
        layer = Settle((3, 5, 4), backward=backward, theta=1e-4).double()
        states = [t.double() for t in self.states((3, 1, 1), (5, 1, 1), (4, 1, 1))]
        found = layer(states, states[0], torch.rand(2, 3, 1, 1) < 0.5)
        sum(h.square().sum() for h in found.states).backward()
        assert all(p.grad.abs().max() > 0 for p in layer.parameters())

    def test_repr(self):
        assert repr(Settle((3, 5), 3, pools=(2,), bias=False)).splitlines()[1].strip() == (
            "3-5, kernel_size=(3, 3), pools=((2, 2),), bias=False, activation='tanh', order='up_down', "
            "theta=0.01, max_steps=100, backward='bptt'"
        )

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"channels": (3,)}, "channels must name at least two layers"),
            ({"channels": (3, 0)}, "channels must be positive ints; got 0"),
            ({"pools": (1, 2)}, "pools must have one window for each of the 1 edges; got 2"),
            ({"pools": (0,)}, r"pools\[0\] must be at least 1"),
            ({"kernel_size": 0}, "kernel_size must be at least 1"),
            ({"order": "random"}, "order must be one of"),
            ({"backward": "none"}, "backward must be one of"),
            ({"unconverged": "stop"}, "unconverged must be one of"),
            ({"max_steps": 0}, "max_steps must be at least 1"),
            ({"adjoint_theta": -1.0}, "adjoint_theta must not be negative"),
            ({"slope": 0.1}, "slope is for"),
        ],
    )
    def test_refuses(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            Settle(**{"channels": (3, 5)} | arguments)

    def test_refuses_a_setting_it_does_not_have(self):
        with pytest.raises(TypeError, match=r"forward\(\) takes strength, .* got pools"):
            Settle((3, 5))(self.states((3, 1, 1), (5, 1, 1)), pools=(1,))


def test_layers_train(impl, device):
    """A small tied autoencoder learns to reconstruct: gradients of both directions meet in one step."""
    edge = TiedConv2d(2, 8, 3, stride=2, padding=1, activation="tanh", impl=impl, device=device)
    out = ConvTranspose2dAddAct(8, 2, 3, stride=2, padding=1, output_padding=1, impl=impl, device=device)
    optimiser = torch.optim.Adam([*edge.parameters(), *out.parameters()], lr=0.01)
    x = torch.randn(4, 2, 8, 8, device=device)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(out(edge(x), add=edge.transpose(edge(x), output_size=8)), x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
