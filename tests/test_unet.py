"""The U-Net of 001 Table 4: what it computes, and that it has the sizes it is compared at."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmser import CLmser
from lmser.baselines import UNet


@pytest.mark.parametrize("size", [(16, 16), (17, 13), (9, 22)])
def test_sizes_whatever_the_parity(size):
    network = UNet(3, (4, 6, 8), (1, 2, 2))
    output = network(torch.randn(2, 3, *size))
    assert output.reconstruction.shape == (2, 3, *size)
    assert output.logits is None
    assert output.code.shape == CLmser(3, (4, 6, 8), (1, 2, 2))(torch.randn(2, 3, *size)).code.shape


def test_equation():
    network = UNet(2, (3, 4), (1, 2), dtype=torch.float64)
    p = dict(network.named_parameters())
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    first = F.relu(F.conv2d(x, p["down.0.weight"], p["down.0.bias"], 1, 1))
    second = F.relu(F.conv2d(first, p["down.1.weight"], p["down.1.bias"], 2, 1))
    rising = F.relu(F.conv_transpose2d(second, p["up.1.weight"], p["up.1.bias"], 2, 1, (0, 1)))
    joined = F.relu(F.conv2d(torch.cat((first, rising), 1), p["fuse.0.weight"], p["fuse.0.bias"], 1, 1))
    expected = F.conv_transpose2d(joined, p["up.0.weight"], p["up.0.bias"], 1, 1)
    output = network(x)
    torch.testing.assert_close(output.reconstruction, expected)
    torch.testing.assert_close(output.code, second)
    torch.testing.assert_close(network.loss(x), 0.5 * (x - expected).square().sum() / 2)


def test_every_parameter_is_used():
    network = UNet(3, (4, 6, 8), (1, 2, 2))
    network.loss(torch.randn(2, 3, 12, 12)).backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in network.parameters())


def test_learns():
    network = UNet(3, (8, 12), (1, 2))
    x = torch.rand(8, 3, 12, 12) * 2 - 1
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    before = network.loss(x).item()
    for _ in range(60):
        optimizer.zero_grad()
        network.loss(x).backward()
        optimizer.step()
    assert network.loss(x).item() < 0.1 * before


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((0, (4,), (1,)), {}, "in_channels: expected at least 1"),
        ((3, (), ()), {}, "channels: expected at least one layer"),
        ((3, (4,), (1, 2)), {}, "strides: expected one for each of the 1 layers, got 2"),
        ((3, (4,), (1,)), {"kernel_size": 4}, "kernel_size: expected an odd number"),
        ((3, (4,), (1.5,)), {}, "strides: expected an int"),
    ],
)
def test_refuses_bad_arguments(args, kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        UNet(*args, **kwargs)


def test_refuses_bad_input():
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 3, H, W\), got \(3, 8, 8\)"):
        UNet(3, (4,), (1,))(torch.randn(3, 8, 8))
