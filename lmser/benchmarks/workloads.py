"""What is measured, as data, and who competes: the kernels, eager PyTorch in both memory formats, and what `torch.compile`
makes of whole networks and of the elementwise update.

Every workload yields contenders that share inputs and weights, and the float64 results they must agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser import CLmser, Lmser
from lmser.baselines import EagerCLmser, EagerLmser
from lmser.benchmarks import inversion, settling
from lmser.contest import Contender
from lmser_kernels import add_act, conv2d_add_act, conv_transpose2d_add_act, reference
from lmser_kernels.activation import ACTIVATIONS

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
# 3x3 at stride 1: (batch, channels below and above, size), of attractor networks and of ordinary ones.
STRIDE_1 = (
    (16, 40, 120, 16),
    (16, 120, 440, 8),
    (16, 128, 256, 28),
    (16, 256, 256, 14),
    (4, 64, 64, 56),
    (16, 304, 304, 40),
)
# Of the grid: channels below and above, kernel, stride, (size, batch).
GRID = (
    ((1, 16), (3, 64), (16, 32), (32, 32), (64, 64), (64, 128), (128, 128), (256, 256), (512, 512)),
    (1, 3, 5),
    (1, 2),
    ((128, 1), (56, 4), (28, 16), (14, 64), (7, 64), (7, 1)),
)
GRID_FLOPS = (
    1e5,
    2e9,
)  # of a forward pass: what takes no time tells nothing, what takes long is covered above


@dataclass(frozen=True)
class Workload:
    """`build()` gives (contenders, float64 results).

    `flops` of one call are the definition's multiply-adds x 2; `bytes` are what its operations read and write, each
    tensor once an operation.
    """

    name: str
    flops: float
    bytes: float
    build: Callable[[], tuple[list[Contender], list[Tensor]]]
    tolerance: float = 1e-3
    repeats: int = 11


def _step(model: torch.nn.Module, x: Tensor, kind: str, compiled: bool = False) -> Callable[[], list[Tensor]]:
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
    fused: type, eager: type, arguments: Sequence[object], shape: Sequence[int], kind: str
) -> Callable:
    def build() -> tuple[list[Contender], list[Tensor]]:
        torch.manual_seed(0)
        torch._dynamo.reset()  # every contender is compiled for these shapes, none for shapes in general
        x = torch.rand(*shape) * 2 - 1
        oracle = eager(*arguments, init="isometric")
        state = oracle.state_dict()
        models = {"fused": (fused, x, False), "eager": (eager, x, False)}
        if len(shape) == 4:
            models["eager, channels-last"] = (eager, x.contiguous(memory_format=torch.channels_last), True)
        contenders = []
        for name, (network, inputs, last) in models.items():
            for compiled in (False,) if name == "fused" else (False, True):
                model = network(*arguments)
                model.load_state_dict(state)
                if last:
                    model = model.to(memory_format=torch.channels_last)
                title = f"{name}, compiled" if compiled else name
                contenders.append(Contender(title, _step(model, inputs, kind, compiled)))
        return contenders, _step(oracle.double(), x.double(), kind)()

    return build


def _layer(
    c_in: int, c_out: int, size: int, stride: int, batch: int, down: bool, training: bool, kernel: int = 3
) -> Callable:
    """One neuron update as the network makes it: conv + add + bias + relu, or its transpose."""

    def build() -> tuple[list[Contender], list[Tensor]]:
        torch.manual_seed(0)
        small, padding = (size - 1) // stride + 1, kernel // 2
        extra = size - ((small - 1) * stride - 2 * padding + kernel)
        big_shape, small_shape = (batch, c_in, size, size), (batch, c_out, small, small)
        source, target = (small_shape, big_shape) if down else (big_shape, small_shape)
        x, add, grad = torch.randn(source), torch.randn(target), torch.randn(target)
        weight = torch.randn(c_out, c_in, kernel, kernel) / (kernel * c_in**0.5)
        bias = torch.randn(target[1])

        def fused(x: Tensor, w: Tensor, add: Tensor, b: Tensor) -> Tensor:
            if down:
                return conv_transpose2d_add_act(
                    x, w, add, b, stride=stride, padding=padding, output_size=size, activation="relu"
                )
            return conv2d_add_act(x, w, add, b, stride=stride, padding=padding, activation="relu")

        def eager(x: Tensor, w: Tensor, add: Tensor, b: Tensor) -> Tensor:
            if down:
                return F.relu(F.conv_transpose2d(x, w, b, stride, padding, extra) + add)
            return F.relu(F.conv2d(x, w, b, stride, padding) + add)

        # A unit within rounding of the kink may fall on either side of it: no gradient flows into those.
        a, w, b = x.double(), weight.double(), bias.double()
        drive = (
            F.conv_transpose2d(a, w, b, stride, padding, extra)
            if down
            else F.conv2d(a, w, b, stride, padding)
        )
        grad[(drive + add.double()).abs() < 1e-4] = 0

        def contender(
            name: str, function: Callable, last: bool, dtype: torch.dtype = torch.float32
        ) -> Contender:
            layout = torch.channels_last if last else torch.contiguous_format
            tensors = [t.to(dtype).contiguous(memory_format=layout) for t in (x, weight, add)]
            if name == "fused":  # the weight stays as `nn.Conv2d` makes it
                tensors[1] = weight.to(dtype)
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


def _add_act(activation: str, training: bool, elements: int = 2**24) -> Callable:
    """h = f(y + u + bias) on tensors of 64 MB, and its gradients."""

    def build() -> tuple[list[Contender], list[Tensor]]:
        torch.manual_seed(0)
        torch._dynamo.reset()
        shape = (elements // (64 * 64 * 64), 64, 64, 64)
        y, u, grad = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(3))
        bias = torch.randn(64)
        # A unit within rounding of a kink may fall on either side of it: no gradient flows into those.
        z = y.double() + u + bias.double().view(1, -1, 1, 1)
        grad[((z.abs() - 1).abs() < 1e-5) | (z.abs() < 1e-5)] = 0

        def eager(y: Tensor, u: Tensor, bias: Tensor) -> Tensor:
            return reference.add_act(y, u, bias, activation=activation)

        def fused(y: Tensor, u: Tensor, bias: Tensor) -> Tensor:
            return add_act(y, u, bias, activation=activation)

        def contender(name: str, function: Callable, dtype: torch.dtype = torch.float32) -> Contender:
            tensors = [t.to(dtype).detach().clone().requires_grad_(training) for t in (y, u, bias)]
            g = grad.to(dtype)

            def run() -> list[Tensor]:
                if not training:
                    with torch.no_grad():
                        return [function(*tensors)]
                out = function(*tensors)
                return [out, *torch.autograd.grad(out, tensors, g)]

            return Contender(name, run)

        return (
            [
                contender("fused", fused),
                contender("eager", eager),
                contender("eager, compiled", torch.compile(eager)),
            ],
            list(contender("float64", eager, torch.float64).run()),
        )

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


def _one_layer(
    c_in: int, c_out: int, size: int, stride: int, batch: int, down: bool, training: bool, kernel: int = 3
) -> tuple[float, float]:
    """(flops, bytes): forward reads source, weight and the other drive and writes the result; backward reads result,
    gradient, source and weight and writes their gradients."""
    small = (size - 1) // stride + 1
    weight = float(c_out * c_in * kernel * kernel)
    flops = 2.0 * batch * small * small * weight
    big, little = float(batch * c_in * size * size), float(batch * c_out * small * small)
    source, target = (little, big) if down else (big, little)
    elements = source + weight + 2 * target
    if not training:
        return flops, 4 * elements
    # The image needs no gradient: the first layer's input is data.
    passes = 3 if c_in > 3 or down else 2
    return passes * flops, 4 * (elements + 3 * target + 2 * weight + (2 if passes == 3 else 1) * source)


def workloads() -> list[Workload]:
    """All of them."""
    return [*_networks(), *_settling(), *_few_labels(), *_layers(), *_grid(), *_elementwise()]


def _networks() -> Iterator[Workload]:
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


def _settling() -> Iterator[Workload]:
    for name in settling.NETWORKS:
        for training in (False, True):
            yield Workload(
                f"settle {name} {'training step' if training else 'inference'}",
                settling.flops(name, training),
                settling.bytes_moved(name, training),
                partial(settling.contenders, name, training),
                repeats=9,
            )
    for name in settling.STEPS:
        for training in (False, True):
            yield Workload(
                f"settle_step {name}, {'forward + backward' if training else 'forward'}",
                *settling.step_cost(name, training),
                partial(settling.step_contenders, name, training),
                repeats=21,
            )


def _few_labels() -> Iterator[Workload]:
    for name in inversion.NETWORKS:
        yield Workload(
            f"semi-supervised {name} training step, batch {inversion.BATCH}",
            *inversion.cost(name),
            partial(inversion.contenders, name),
            repeats=21,
        )


def _layers() -> Iterator[Workload]:
    size, below = SIZE, 3
    for width, stride in zip(CHANNELS, STRIDES, strict=True):
        for training, down in product((False, True), (False, True)):
            yield _named_layer(f"{size} px, stride {stride}", below, width, size, stride, 50, down, training)
        size, below = (size - 1) // stride + 1, width
    for batch, below, width, size in STRIDE_1:
        for training, down in product((False, True), (False, True)):
            where = f"{size} px, stride 1, batch {batch}"
            yield _named_layer(where, below, width, size, 1, batch, down, training)
    for training, down in product((False, True), (False, True)):  # super-resolution's
        where = "40 px, 5x5, stride 1, batch 4"
        yield _named_layer(where, 300, 300, 40, 1, 4, down, training, 5)


def _grid() -> Iterator[Workload]:
    """Single layers of ordinary sizes, every other one downwards."""
    number = 0
    for (below, above), kernel, stride, (size, batch) in product(*GRID):
        flops = _one_layer(below, above, size, stride, batch, False, False, kernel)[0]
        if not GRID_FLOPS[0] <= flops <= GRID_FLOPS[1] or (kernel == 1 and stride == 2):
            continue
        number += 1
        if number % 2:  # half of them: the grid stays a matter of minutes
            continue
        for training in (False, True):
            where = f"{size} px, {kernel}x{kernel}, stride {stride}, batch {batch}, grid"
            yield _named_layer(
                where, below, above, size, stride, batch, number % 4 == 0, training, kernel, repeats=7
            )


def _named_layer(
    where: str, below: int, above: int, size: int, stride: int, batch: int, down: bool, training: bool,
    kernel: int = 3, repeats: int = 11,
) -> Workload:  # fmt: skip
    way = f"{above}→{below} down" if down else f"{below}→{above} up"
    return Workload(
        f"layer {way}, {where}, {'forward + backward' if training else 'forward'}",
        *_one_layer(below, above, size, stride, batch, down, training, kernel),
        _layer(below, above, size, stride, batch, down, training, kernel),
        repeats=repeats,
    )


def _elementwise() -> Iterator[Workload]:
    for activation, training in product(ACTIVATIONS, (False, True)):
        elements = 2.0**24
        yield Workload(
            f"add_act {activation}, 64 MB, {'forward + backward' if training else 'forward'}",
            (4 if training else 3) * elements,
            4 * (6 if training else 3) * elements,
            _add_act(activation, training),
        )
