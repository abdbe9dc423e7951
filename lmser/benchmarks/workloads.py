"""What is measured, as data, and who competes: the kernels, eager PyTorch in both memory formats, and what `torch.compile`
makes of whole networks and of the elementwise update.

Every workload yields contenders that share inputs and weights, and the float64 results they must agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from lmser.benchmarks import inversion, settling
from lmser.benchmarks.networks import CHANNELS, SIZE, STRIDES, networks
from lmser.benchmarks.workload import Workload
from lmser.contest import Contender
from lmser_kernels import add_act, conv2d_add_act, conv_transpose2d_add_act, reference
from lmser_kernels.activation import ACTIVATIONS

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
    return [*networks(), *_settling(), *_few_labels(), *_layers(), *_grid(), *_elementwise()]


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
