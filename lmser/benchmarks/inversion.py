"""Learning with few labels as a workload (003 Eq. 10): one training step through the gated pass against eager PyTorch,
which differentiates a gradient (`create_graph`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmser.baselines import TOPOLOGIES, ResidualBlock
from lmser.contest import Contender
from lmser.inversion import SemiSupervised
from lmser_kernels.nn import Conv2dAddAct, MaxPool2dAct

NETWORKS = ("SmallCNNmean", "SmallCNNmax", "Resnet2-32mean", "Resnet2-32max")
BATCH = 64  # half of it labelled
LAYOUTS = {"eager": torch.contiguous_format, "eager, channels-last": torch.channels_last}


class _EagerBlock(nn.Module):
    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(block.outer.pool) if block.outer.pool != (1, 1) else nn.Identity()
        self.inner, self.outer = _eager_conv(block.inner), _eager_conv(block.outer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        return F.relu(self.inner(x)) + self.outer(x)


def _eager_conv(layer: Conv2dAddAct) -> nn.Conv2d:
    made = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
        bias=layer.bias is not None,
    )  # fmt: skip
    made.load_state_dict(layer.state_dict())
    return made


def eager_copy(network: nn.Sequential) -> nn.Sequential:
    """The same network of `torch.nn`'s layers, with equal weights, as one would write it."""
    layers: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, ResidualBlock):
            layers.append(_EagerBlock(layer))
        elif isinstance(layer, Conv2dAddAct):
            if layer.pool != (1, 1):
                layers.append(nn.AvgPool2d(layer.pool))
            layers.append(_eager_conv(layer))
            layers += [nn.ReLU()] if layer.activation == "relu" else []
        elif isinstance(layer, MaxPool2dAct):
            layers += [nn.ReLU()] if layer.activation == "relu" else []
            layers.append(nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding))
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def batch(dtype: torch.dtype = torch.float32, samples: int = BATCH) -> tuple[Tensor, Tensor]:
    """Images with sizes and values of MNIST's, half of them labelled."""
    torch.manual_seed(1)
    x = torch.rand(samples, 1, 28, 28).to(dtype)
    y = torch.randint(10, (samples,))
    y[samples // 2 :] = -1
    return x, y


def step(model: nn.Module, method: str, x: Tensor, y: Tensor) -> Callable[[], list[Tensor]]:
    """One forward and backward pass of loss (10): loss and gradients, to be verified."""
    learner = SemiSupervised(model, 0.7, 0.2, method=method)

    def run() -> list[Tensor]:
        learner.zero_grad(set_to_none=True)
        loss = learner.loss(x, y)
        loss.backward()
        return [loss.detach(), *(p.grad for p in learner.parameters() if p.grad is not None)]

    return run


def network(name: str) -> nn.Sequential:
    """One of `NETWORKS`, with the weights that it always has here."""
    torch.manual_seed(0)
    return TOPOLOGIES[name]()


def contender(kind: str, name: str, samples: int = BATCH) -> Callable[[], list[Tensor]]:
    """A step of `name` by ``"fused"`` or one of `LAYOUTS`."""
    x, y = batch(samples=samples)
    if kind == "fused":
        return step(network(name), "gated", x.to(memory_format=torch.channels_last), y)
    layout = LAYOUTS[kind]
    model = eager_copy(network(name)).to(memory_format=layout)  # type: ignore[call-overload]
    return step(model, "autograd", x.to(memory_format=layout), y)


def eager_gated(name: str) -> Callable[[], list[Tensor]]:
    """The gated pass of first order in eager operations: what one could write without the kernels."""
    x, y = batch()
    model = network(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in model.modules():
        if isinstance(layer, (Conv2dAddAct, MaxPool2dAct)):
            layer.impl = "reference"
    return step(model, "gated", x.to(memory_format=torch.channels_last), y)


def contenders(name: str) -> tuple[list[Contender], list[Tensor]]:
    """The gated pass, the same in eager operations, and eager PyTorch's way in both memory formats."""
    found = [Contender(kind, contender(kind, name)) for kind in ("fused", *LAYOUTS)]
    found.append(Contender("eager, gated", eager_gated(name)))
    wanted = step(eager_copy(network(name)).double(), "autograd", *batch(torch.float64))()
    return found, wanted


def cost(name: str) -> tuple[float, float]:
    """(flops, bytes) of a step: six times the forward pass (up and down, and two gradients of each), whose convolutions
    read input and weight and write a result."""
    flops = elements = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops, elements
        assert isinstance(module, Conv2dAddAct)
        flops += 2.0 * output.numel() * module.weight[0].numel()
        elements += inputs[0].numel() + module.weight.numel() + output.numel()

    model = network(name)
    for layer in model.modules():
        if isinstance(layer, Conv2dAddAct):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(batch()[0])
    return 6 * flops, 24 * elements
