"""Whole networks: a step of training, and inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lmser import CLmser, Lmser
from lmser.baselines import EagerCLmser, EagerLmser
from lmser.benchmarks.workload import Workload
from lmser.contest import Contender

CHANNELS, STRIDES, SIZE = (16, 32, 64, 128, 256), (1, 2, 2, 2, 2), 96
# (what it is called, channels, strides, size, batch of training)
NETWORKS = (
    ("CLmser-STL10", CHANNELS, STRIDES, SIZE, 50),
    ("CLmser-CelebA", (16, 32, 64, 128, 256, 256, 256), (1, 2, 2, 2, 2, 2, 2), 128, 16),
)
DENSE = (784, 300, 100, 10)
# What is done with a network. A weight that an optimiser writes has to be packed anew for every step.
INFERENCE, TRAINING, UPDATE = "inference", "training step", "training step with Adam"
_RATE = 1e-7  # every weight moves by about so much, whatever the loss: its bits change, not what is computed
_HALF = 0.2  # what rounding of states and gradients to bfloat16 may change of a gradient, relative


def step(model: torch.nn.Module, x: Tensor, kind: str, compiled: bool = False) -> Callable[[], list[Tensor]]:
    """A call of a network: INFERENCE, loss and gradients (TRAINING), or these and a step of Adam (UPDATE)."""

    def loss_plain(x: Tensor) -> Tensor:
        return model.loss(x)  # type: ignore[operator]

    def reconstruct_plain(x: Tensor) -> Tensor:
        return model(x).reconstruction

    loss_of: Callable[[Tensor], Tensor] = torch.compile(loss_plain) if compiled else loss_plain
    reconstruct: Callable[[Tensor], Tensor] = (
        torch.compile(reconstruct_plain) if compiled else reconstruct_plain
    )

    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE, fused=True) if kind == UPDATE else None

    def train() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        loss = loss_of(x)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    def infer() -> list[Tensor]:
        with torch.no_grad():
            return [reconstruct(x)]

    return infer if kind == INFERENCE else train


def _network(
    fused: type,
    eager: type,
    arguments: Sequence[object],
    shape: Sequence[int],
    kind: str,
    dtype: torch.dtype = torch.float32,
) -> Callable:
    """Weights, states and gradients of `dtype`; where that is not float32, the kernels compete in float32 as well."""

    def build() -> tuple[list[Contender], list[Tensor]]:
        torch.manual_seed(0)
        torch._dynamo.reset()  # every contender is compiled for these shapes, none for shapes in general
        x = torch.rand(*shape) * 2 - 1
        oracle = eager(*arguments, init="isometric")
        state = oracle.state_dict()
        models = {"fused": (fused, x, False), "eager": (eager, x, False)}
        if len(shape) == 4:
            models["eager, channels-last"] = (eager, x.contiguous(memory_format=torch.channels_last), True)
        if dtype != torch.float32:
            models["fused, float32"] = (fused, x, False)
        contenders = []
        for name, (network, inputs, last) in models.items():
            for compiled in (False, True) if name.startswith("eager") else (False,):
                model = network(*arguments)
                model.load_state_dict(state)
                if last:
                    model = model.to(memory_format=torch.channels_last)
                if name != "fused, float32":
                    model, inputs = model.to(dtype), inputs.to(dtype)
                title = f"{name}, compiled" if compiled else name
                contenders.append(Contender(title, step(model, inputs, kind, compiled)))
        return contenders, step(oracle.double(), x.double(), kind)()

    return build


def _edges(
    shape: Sequence[int], channels: Sequence[int], strides: Sequence[int]
) -> Iterator[tuple[float, float, float, float]]:
    """Of every edge: multiply-adds x 2 of a direction, elements of the layer below, of that above, of the weight."""
    size, below = shape[2], shape[1]
    for width, stride in zip(channels, strides, strict=True):
        small = (size - 1) // stride + 1
        weight = width * below * 9.0
        yield (
            2.0 * shape[0] * small * small * weight, float(shape[0] * below * size * size),
            float(shape[0] * width * small * small), weight,
        )  # fmt: skip
        size, below = small, width


def _reflection(
    shape: Sequence[int], channels: Sequence[int], strides: Sequence[int], training: bool
) -> tuple[float, float]:
    """(flops, bytes) of CLmser's step: each edge up and down, and in training three times that less the gradient of the
    image. A direction reads the layer that drives, the weight and the other drive, and writes the layer that is driven;
    its way back moves about twice as much."""
    flops = elements = first = 0.0
    for edge, below, above, weight in _edges(shape, channels, strides):
        first = first or edge
        flops += 2 * edge
        elements += 3 * (below + above) + 2 * weight
    return (3 * flops - first, 12 * elements) if training else (flops, 4 * elements)


def _dense(sizes: Sequence[int], batch: int, training: bool) -> tuple[float, float]:
    """(flops, bytes) of Lmser's step, counted as a reflection's."""
    edges = [2.0 * batch * a * b for a, b in pairwise(sizes)]
    elements = sum(3.0 * batch * (a + b) + 2.0 * a * b for a, b in pairwise(sizes))
    return (6 * sum(edges) - edges[0], 12 * elements) if training else (2 * sum(edges), 4 * elements)


def networks() -> Iterator[Workload]:
    """Whole networks in float32, and in bfloat16."""
    for kind, batch in ((TRAINING, None), (UPDATE, None), (INFERENCE, None), (INFERENCE, 1)):
        training = kind != INFERENCE
        for name, channels, strides, size, usual in NETWORKS:
            shape = (usual if batch is None else batch, 3, size, size)
            yield Workload(
                f"{name} {kind}, batch {shape[0]}",
                *_reflection(shape, channels, strides, training),
                _network(CLmser, EagerCLmser, (3, channels, strides), shape, kind),
                repeats=11 if batch is None else 101,
            )
        samples = 50 if batch is None else batch
        yield Workload(
            f"Lmser 784-300-100-10 {kind}, batch {samples}",
            *_dense(DENSE, samples, training),
            _network(Lmser, EagerLmser, (DENSE,), (samples, 784), kind),
            repeats=101,
        )
    for kind in (TRAINING, INFERENCE):
        training = kind != INFERENCE
        for name, channels, strides, size, batch in NETWORKS:
            shape = (batch, 3, size, size)
            flops, moved = _reflection(shape, channels, strides, training)
            build = _network(CLmser, EagerCLmser, (3, channels, strides), shape, kind, torch.bfloat16)
            yield Workload(f"{name} {kind} in bfloat16, batch {batch}", flops, moved / 2, build, _HALF)
        flops, moved = _dense(DENSE, 50, training)
        build = _network(Lmser, EagerLmser, (DENSE,), (50, 784), kind, torch.bfloat16)
        yield Workload(
            f"Lmser 784-300-100-10 {kind} in bfloat16, batch 50", flops, moved / 2, build, _HALF, repeats=101
        )
