"""003's network for waveforms: its layers, its filters, and the way back through it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmser import invert
from lmser.baselines import AudioCNN
from lmser.inversion import has_rules
from lmser_kernels.nn import Conv2dAddAct, TiedLinear


def eager(network: AudioCNN, x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """App. A.2 as printed, on the network's weights, without dropout."""
    first, second, dense, top = (m for m in network if isinstance(m, (Conv2dAddAct, TiedLinear)))
    h = F.conv1d(x.squeeze(2), network.filters.squeeze(2), first.bias, stride, kernel // 2)
    h = F.max_pool1d(F.relu(h), 4, 2)
    h = F.relu(F.conv1d(h, second.weight.squeeze(2), second.bias, 2, 1))
    return F.linear(F.relu(F.linear(h.flatten(1), dense.weight, dense.bias)), top.weight, top.bias)


@pytest.mark.parametrize(
    ("samples", "kernel", "stride"), [(400, 64, 32), (401, 96, 32), (399, 32, 32), (4000, 1024, 512)]
)
def test_it_is_the_network_of_the_paper_and_its_inverse(samples: int, kernel: int, stride: int) -> None:
    network = AudioCNN(samples, kernel_size=kernel, stride=stride).double().eval()
    for layer in network:  # biases start from 0, where they could be left out
        if isinstance(layer, (Conv2dAddAct, TiedLinear)):
            torch.nn.init.normal_(layer.bias, std=0.1)
    x = torch.randn(3, 1, 1, samples, dtype=torch.float64, requires_grad=True)
    expected = eager(network, x, kernel, stride)
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-12)
    back = torch.autograd.grad(expected, x, expected.detach(), retain_graph=True)[0]
    assert has_rules(network)
    torch.testing.assert_close(invert(network, x, method="gated"), back, rtol=1e-10, atol=1e-12)
    # Of first order: its gradient is that of the inverse of the eager network.
    weights = list(network.parameters())
    theirs = torch.autograd.grad(expected, x, expected, create_graph=True)[0]
    ours = invert(network, x, method="gated")
    for a, b in zip(
        torch.autograd.grad((ours - x).square().sum(), weights),
        torch.autograd.grad((theirs - x).square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_what_is_behind_an_activation_is_undone() -> None:
    front = torch.nn.Sequential(torch.nn.Tanh(), AudioCNN(400, kernel_size=64, stride=32)).eval()
    x = torch.randn(2, 1, 1, 400)
    torch.testing.assert_close(invert(front, x, method="gated"), invert(front, x, method="autograd"))


def test_as_printed_and_where_it_starts() -> None:
    network = AudioCNN()
    assert sum(p.numel() for p in network.parameters()) == 43050 + 5334 + 84 * 32 + 32 + 330
    assert network.filters.shape == (42, 1, 1, 1024)
    bound = (6 / (43 * 1024)) ** 0.5
    assert 0.99 * bound < network.filters.abs().max().item() <= bound
    assert all(p.abs().max().item() == 0 for name, p in network.named_parameters() if name.endswith("bias"))
    assert AudioCNN(8000)(torch.zeros(2, 1, 1, 8000)).shape == (2, 10)
    network.train()
    x = torch.randn(2, 1, 1, 4000)
    assert not torch.equal(network(x), network(x))
    for method in ("gated", "autograd"):
        with pytest.raises(ValueError, match=r"x: expected shape \(N, 1, 1, 4000\), got \(2, 1, 1, 3000\)"):
            invert(network, x[..., :3000], method=method)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 1535}, "samples: expected at least 1536, for a window of the pool, got 1535"),
        ({"samples": 0}, "samples: expected a positive int"),
        ({"kernel_size": 1000}, "kernel_size: expected a multiple of the stride 512, got 1000"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\)"),
        ({"activation": "swish"}, "swish"),
    ],
)
def test_wrong_arguments(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioCNN(**given)
