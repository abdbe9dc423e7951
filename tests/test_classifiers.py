"""FCN and CNN: the first pass up of the reflection network of the same layers, and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmser import CLmser, Lmser
from lmser.baselines import CNN, FCN


def test_fcn_is_the_first_pass_of_lmser(impl):
    reflection = Lmser((12, 7, 5, 3), num_classes=3, dtype=torch.float64, impl=impl)
    network = FCN((12, 7, 5, 3), dtype=torch.float64, impl=impl)
    with torch.no_grad():
        for layer, weight, bias in zip(network.layers, reflection.weights, reflection.biases, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(network(x), reflection(x).logits)


@pytest.mark.parametrize(("size", "channels"), [((9, 8), (4, 6, 8)), ((8, 8), (4, 6, 3)), ((4, 4), (3,))])
def test_cnn_is_the_first_pass_of_clmser(size, channels, impl):
    strides = (1, 2, 2)[: len(channels)]
    reflection = CLmser(2, channels, strides, num_classes=3, dtype=torch.float64, impl=impl)
    network = CNN(2, channels, strides, 3, dtype=torch.float64, impl=impl)
    with torch.no_grad():
        for layer, weight, bias in zip(network.layers, reflection.weights, reflection.biases, strict=True):
            layer.weight.copy_(weight[: layer.out_channels])
            layer.bias.copy_(bias[: layer.out_channels])
    x = torch.randn(4, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(network(x), reflection(x).logits)


def test_the_usual_head(impl):
    network = CNN(2, (4, 6), (1, 2), 3, head="linear", size=(9, 7), activation="tanh", impl=impl)
    p = dict(network.named_parameters())
    x = torch.randn(5, 2, 9, 7)
    first = torch.tanh(F.conv2d(x, p["layers.0.weight"], p["layers.0.bias"], 1, 1))
    second = torch.tanh(F.conv2d(first, p["layers.1.weight"], p["layers.1.bias"], 2, 1))
    expected = F.linear(second.flatten(1), p["readout.weight"], p["readout.bias"])
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(
        network(x.contiguous(memory_format=torch.channels_last)), expected, msg="layout of the input"
    )


def test_starts_as_pytorchs_layers():
    torch.manual_seed(3)
    network = FCN((6, 5, 4))
    torch.manual_seed(3)
    for mine, theirs in zip(network.layers, [nn.Linear(6, 5), nn.Linear(5, 4)], strict=True):
        assert torch.equal(mine.weight, theirs.weight)
        assert torch.equal(mine.bias, theirs.bias)
    torch.manual_seed(3)
    cnn = CNN(2, (4, 6), (1, 2), 3, head="linear", size=8)
    torch.manual_seed(3)
    theirs = [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6 * 16, 3)]
    for mine, layer in zip([*cnn.layers, cnn.readout], theirs, strict=True):
        assert torch.equal(mine.weight, layer.weight)
        assert torch.equal(mine.bias, layer.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss(dtype):
    network, x, y = FCN((6, 5, 3), dtype=dtype), torch.randn(4, 6, dtype=dtype), torch.tensor([0, 2, 1, 2])
    logits = network(x).float()
    by_hand = (logits.exp().sum(1).log() - logits[range(4), y]).mean()
    assert network.loss(x, y).dtype is torch.float32
    torch.testing.assert_close(network.loss(x, y), by_hand)
    torch.testing.assert_close(network.loss(x, F.one_hot(y, 3).float()), by_hand)


@pytest.mark.parametrize(
    "network",
    [
        FCN((64, 20, 3)),
        CNN(1, (8, 12), (1, 2), 3),
        CNN(1, (8, 12), (1, 2), 3, head="linear", size=8),
    ],
    ids=["FCN", "CNN", "CNN with a linear head"],
)
def test_learns(network):
    x = torch.rand(12, 1, 8, 8)
    y = torch.arange(12) % 3
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = network.loss(x, y)
        loss.backward()
        optimizer.step()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in network.parameters())
    assert loss.item() < 0.3
    x.requires_grad_()
    network.loss(x, y).backward()
    assert float(x.grad.abs().max()) > 0  # what an adversary needs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FCN((784,)), "sizes: expected at least two layers"),
        (lambda: FCN((784, 0)), "sizes: expected at least 1, got 0"),
        (lambda: FCN((6, 3), activation="rely"), "rely"),
        (lambda: CNN(0, (4,), (1,), 3), "in_channels: expected at least 1"),
        (lambda: CNN(1, (), (), 3), "channels: expected at least one layer"),
        (lambda: CNN(1, (4, 4.0), (1, 1), 3), "channels: expected an int, got 4.0"),
        (lambda: CNN(1, (4, 4), (1,), 3), "strides: expected one for each of the 2 layers, got 1"),
        (lambda: CNN(1, (4,), ((1, 0),), 3), "strides: expected at least 1, got 0"),
        (lambda: CNN(1, (4,), (1,), 5), "num_classes: 5 class units do not fit into a top layer of 4"),
        (lambda: CNN(1, (4,), (1,), 0, head="linear", size=8), "num_classes: expected at least 1, got 0"),
        (lambda: CNN(1, (4,), (1,), 3, head="max"), "head: expected one of 'mean', 'linear', got 'max'"),
        (lambda: CNN(1, (4,), (1,), 3, head="linear"), "size: expected with head='linear' and only there"),
        (lambda: CNN(1, (4,), (1,), 3, size=8), "size: expected with head='linear' and only there"),
    ],
)
def test_refuses_bad_arguments(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_refuses_bad_input():
    with pytest.raises(
        ValueError, match=r"x: expected shape \(N, 6\) or one that flattens to it, got \(6,\)"
    ):
        FCN((6, 3))(torch.randn(6))
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 1, H, W\), got \(2, 3, 8, 8\)"):
        CNN(1, (4,), (1,), 3)(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"x: expected images of \(8, 8\), got \(8, 9\)"):
        CNN(1, (4,), (1,), 3, head="linear", size=8)(torch.randn(2, 1, 8, 9))
