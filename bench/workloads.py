"""What is measured, as data, and who competes: the fused path and eager PyTorch in both memory formats.

Every workload yields contenders that share inputs and weights, and the float64 results they must agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import inversion, settling
from lmser import CLmser, Lmser
from lmser.baselines import EagerCLmser, EagerLmser
from lmser.contest import Contender
from lmser_kernels import conv2d_add_act, conv_transpose2d_add_act

CHANNELS, STRIDES, SIZE = (16, 32, 64, 128, 256), (1, 2, 2, 2, 2), 96
# 3x3 at stride 1: (batch, channels below and above, size), of attractor networks and of ordinary ones.
STRIDE_1 = (
    (16, 40, 120, 16),
    (16, 120, 440, 8),
    (16, 128, 256, 28),
    (16, 256, 256, 14),
    (4, 64, 64, 56),
    (16, 304, 304, 40),
)


@dataclass(frozen=True)
class Workload:
    """`build()` gives (contenders, float64 results); `flops` of one call, counted as direct multiply-adds."""

    name: str
    flops: float
    build: Callable[[], tuple[list[Contender], list[Tensor]]]
    tolerance: float = 1e-3
    repeats: int = 11


def _step(model: torch.nn.Module, x: Tensor, training: bool) -> Callable[[], list[Tensor]]:
    def train() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        loss = model.loss(x)
        loss.backward()
        return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    def infer() -> list[Tensor]:
        with torch.no_grad():
            return [model(x).reconstruction]

    return train if training else infer


def _network(
    fused: type, eager: type, arguments: Sequence[object], shape: Sequence[int], training: bool
) -> Callable:
    def build() -> tuple[list[Contender], list[Tensor]]:
        torch.manual_seed(0)
        x = torch.rand(*shape) * 2 - 1
        oracle = eager(*arguments, init="isometric")
        state = oracle.state_dict()
        models = {"fused": (fused, x, False), "eager": (eager, x, False)}
        if len(shape) == 4:
            models["eager, channels-last"] = (eager, x.contiguous(memory_format=torch.channels_last), True)
        contenders = []
        for name, (kind, inputs, last) in models.items():
            model = kind(*arguments)
            model.load_state_dict(state)
            if last:
                model = model.to(memory_format=torch.channels_last)
            contenders.append(Contender(name, _step(model, inputs, training)))
        return contenders, _step(oracle.double(), x.double(), training)()

    return build


def _layer(c_in: int, c_out: int, size: int, stride: int, batch: int, down: bool, training: bool) -> Callable:
    """One neuron update as the network makes it: conv + add + bias + relu, or its transpose."""

    def build() -> tuple[list[Contender], list[Tensor]]:
        torch.manual_seed(0)
        small = (size - 1) // stride + 1
        big_shape, small_shape = (batch, c_in, size, size), (batch, c_out, small, small)
        source, target = (small_shape, big_shape) if down else (big_shape, small_shape)
        x, add, grad = torch.randn(source), torch.randn(target), torch.randn(target)
        weight, bias = torch.randn(c_out, c_in, 3, 3) / (3 * c_in**0.5), torch.randn(target[1])

        def fused(x: Tensor, w: Tensor, add: Tensor, b: Tensor) -> Tensor:
            if down:
                return conv_transpose2d_add_act(
                    x, w, add, b, stride=stride, padding=1, output_size=size, activation="relu"
                )
            return conv2d_add_act(x, w, add, b, stride=stride, padding=1, activation="relu")

        def eager(x: Tensor, w: Tensor, add: Tensor, b: Tensor) -> Tensor:
            if down:
                extra = size - ((small - 1) * stride - 2 + 3)
                return F.relu(F.conv_transpose2d(x, w, b, stride, 1, extra) + add)
            return F.relu(F.conv2d(x, w, b, stride, 1) + add)

        # A unit within rounding of the kink may fall on either side of it: no gradient flows into those.
        wide = [t.double() for t in (x, weight, bias)]
        if down:
            drive = F.conv_transpose2d(*wide, stride, 1, size - ((small - 1) * stride - 2 + 3))
        else:
            drive = F.conv2d(*wide, stride, 1)
        grad[(drive + add.double()).abs() < 1e-4] = 0

        def contender(
            name: str, function: Callable, last: bool, dtype: torch.dtype = torch.float32
        ) -> Contender:
            layout = torch.channels_last if last else torch.contiguous_format
            tensors = [t.to(dtype).contiguous(memory_format=layout) for t in (x, weight, add)]
            tensors = [
                t.detach().clone(memory_format=torch.preserve_format) for t in (*tensors, bias.to(dtype))
            ]
            g = grad.to(dtype).contiguous(memory_format=layout)
            for t in tensors:
                # The image needs no gradient: the first layer's input is data.
                t.requires_grad_(training and (t is not tensors[0] or c_in > 3 or down))

            def run() -> list[Tensor]:
                if not training:
                    with torch.no_grad():
                        return [function(*tensors)]
                for t in tensors:
                    t.grad = None
                out = function(*tensors)
                out.backward(g)
                return [out, *(t.grad for t in tensors if t.grad is not None)]

            return Contender(name, run)

        return (
            [
                contender("fused", fused, True),
                contender("eager", eager, False),
                contender("eager, channels-last", eager, True),
            ],
            list(contender("float64", eager, False, torch.float64).run()),
        )

    return build


def _reflection_flops(shape: Sequence[int], training: bool) -> float:
    """Direct multiply-adds x 2 of CLmser's step: each edge up and down, and in training three times that less the
    gradient of the image."""
    total, size, channels, first = 0.0, shape[2], shape[1], 0.0
    for width, stride in zip(CHANNELS, STRIDES, strict=True):
        size = (size - 1) // stride + 1
        edge = 2.0 * shape[0] * size * size * width * channels * 9
        first = first or edge
        total, channels = total + 2 * edge, width
    return 3 * total - first if training else total


def _dense_flops(sizes: Sequence[int], batch: int, training: bool) -> float:
    edges = [2.0 * batch * a * b for a, b in pairwise(sizes)]
    return 3 * 2 * sum(edges) - edges[0] if training else 2 * sum(edges)


def workloads() -> list[Workload]:
    """All of them."""
    found = []
    shape, dense = (50, 3, SIZE, SIZE), (784, 300, 100, 10)
    for training in (True, False):
        kind = "training step" if training else "inference"
        found.append(
            Workload(
                f"CLmser-STL10 {kind}, batch 50",
                _reflection_flops(shape, training),
                _network(CLmser, EagerCLmser, (3, CHANNELS, STRIDES), shape, training),
            )
        )
        found.append(
            Workload(
                f"Lmser 784-300-100-10 {kind}, batch 50",
                _dense_flops(dense, 50, training),
                _network(Lmser, EagerLmser, (dense,), (50, 784), training),
                repeats=101,
            )
        )
    for name in settling.NETWORKS:
        for training in (False, True):
            kind = "training step" if training else "inference"
            found.append(
                Workload(
                    f"settle {name} {kind}",
                    settling.flops(name, training),
                    partial(settling.contenders, name, training),
                    repeats=9,
                )
            )
    for name in inversion.NETWORKS:
        found.append(
            Workload(
                f"semi-supervised {name} training step, batch {inversion.BATCH}",
                inversion.flops(name),
                partial(inversion.contenders, name),
                repeats=21,
            )
        )
    size, below = SIZE, 3
    for width, stride in zip(CHANNELS, STRIDES, strict=True):
        small = (size - 1) // stride + 1
        flops = 2.0 * 50 * small * small * width * below * 9
        for training in (False, True):
            for down in (False, True):
                passes = (2 if below == 3 and not down else 3) if training else 1
                way = f"{width}→{below} down" if down else f"{below}→{width} up"
                found.append(
                    Workload(
                        f"layer {way}, {size} px, stride {stride}, {'forward + backward' if training else 'forward'}",
                        flops * passes,
                        _layer(below, width, size, stride, 50, down, training),
                    )
                )
        size, below = small, width
    for batch, below, width, size in STRIDE_1:
        for training in (False, True):
            for down in (False, True):
                way = f"{width}→{below} down" if down else f"{below}→{width} up"
                kind = "forward + backward" if training else "forward"
                found.append(
                    Workload(
                        f"layer {way}, {size} px, stride 1, batch {batch}, {kind}",
                        2.0 * batch * size * size * width * below * 9 * (3 if training else 1),
                        _layer(below, width, size, 1, batch, down, training),
                    )
                )
    return found
