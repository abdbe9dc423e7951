"""Single operations on a GPU: a layer in either direction, a neuron update from both neighbours, `add_act`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_entrants import Ask, Entrant, Place, Step, Workload
from lmser_kernels import add_act, conv2d_add_act, conv_transpose2d_add_act, settle_step

Operation = Callable[..., Tensor]
KINK = 0.05  # around zero, no gradient
Sizes = tuple[int, int, int, int, int]


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Inside, no convolution is cuDNN's."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def _one_algorithm() -> Iterator[None]:
    """Inside, cuDNN tries no algorithms: of float64, whose convolutions are called once, that would take seconds."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _put(place: Place, last: bool, *tensors: Tensor) -> list[Tensor]:
    layout = torch.channels_last if last else torch.contiguous_format
    return [
        t.to(place.device, place.dtype).contiguous(memory_format=layout)
        if t.dim() == 4
        else t.to(place.device, place.dtype)
        for t in tensors
    ]


# a layer: h = relu(conv(x) + bias + add), or its transpose


def _fused(down: bool, stride: int, size: int, x: Tensor, w: Tensor, add: Tensor, b: Tensor) -> Tensor:
    if down:
        return conv_transpose2d_add_act(
            x, w, add, b, stride=stride, padding=1, output_size=size, activation="relu"
        )
    return conv2d_add_act(x, w, add, b, stride=stride, padding=1, activation="relu")


def _linear(down: bool, stride: int, size: int, x: Tensor, w: Tensor, add: Tensor, b: Tensor) -> Tensor:
    if down:
        extra = size - ((x.shape[2] - 1) * stride + 1)
        return F.conv_transpose2d(x, w, b, stride, 1, extra) + add
    return F.conv2d(x, w, b, stride, 1) + add


def _eager(down: bool, stride: int, size: int, x: Tensor, w: Tensor, add: Tensor, b: Tensor) -> Tensor:
    return F.relu(_linear(down, stride, size, x, w, add, b))


def _cudnn(down: bool, stride: int, size: int, x: Tensor, w: Tensor, add: Tensor, b: Tensor) -> Tensor:
    return torch.cudnn_convolution_add_relu(x, w, add, 1.0, b, (stride, stride), (1, 1), (1, 1), 1)


def _layer(operation: Operation, sizes: Sizes, down: bool, training: bool, last: bool, place: Place) -> Step:
    batch, below, above, size, stride = sizes
    torch.manual_seed(0)
    small = (size - 1) // stride + 1
    big_shape, small_shape = (batch, below, size, size), (batch, above, small, small)
    source, target = (small_shape, big_shape) if down else (big_shape, small_shape)
    # Drawn where they lie: a CPU would take longer for it than a GPU for everything else.
    randn = partial(torch.randn, device=place.device)
    given = [
        randn(source),
        randn(above, below, 3, 3) / (3 * below**0.5),
        randn(target),
        randn(target[1]),
        randn(target),
    ]
    # A unit within rounding of the kink may fall on either side of it: no gradient flows into those.
    x, w, add, b, grad = given
    if training:
        wide = [t.double() for t in (x, w, add, b)]
        with _one_algorithm():
            grad = torch.where(_linear(down, stride, size, *wide).abs() < KINK, 0.0, grad)
    *tensors, grad = _put(place, last, x, w, add, b, grad)
    for t in tensors:
        # The image needs no gradient: the first layer's input is data.
        t.requires_grad_(training and (t is not tensors[0] or below > 3 or down))

    def step() -> Sequence[Tensor]:
        if not training:
            with torch.no_grad():
                return [operation(down, stride, size, *tensors)]
        for t in tensors:
            t.grad = None
        out = operation(down, stride, size, *tensors)
        out.backward(grad)
        return [out, *(t.grad for t in tensors if t.grad is not None)]

    return step


def _without_cudnn(make: Callable[[Place], Step], place: Place) -> Step:
    step = make(place)

    def alone() -> Sequence[Tensor]:
        with without_cudnn():
            return step()

    return alone


def layer(name: str, sizes: Sizes, down: bool, training: bool, **rest: object) -> Workload:
    """One neuron update as a reflection network makes it; `sizes` is (batch, below, above, size, stride)."""

    def make(operation: Operation, last: bool) -> Callable[[Place], Step]:
        return partial(_layer, operation, sizes, down, training, last)

    entrants = [
        Entrant("fused", "ours", make(_fused, True), captured=True),
        Entrant("eager", "eager", make(_eager, False), captured=True),
        Entrant("eager, channels-last", "eager", make(_eager, True), captured=True),
    ]
    if min(sizes[1:3]) >= 32:
        # A plan may give the convolution to cuDNN: what Triton's kernels would take in its place.
        alone = partial(_without_cudnn, make(_fused, True))
        entrants.append(Entrant("Triton alone", "variant", alone, captured=True, only_cuda=True))
    if not down and not training:
        entrants.append(
            Entrant("cudnn_convolution_add_relu", "eager", make(_cudnn, True), captured=True, only_cuda=True)
        )
    return Workload(name, tuple(entrants), **rest)  # type: ignore[arg-type]


# a neuron update: h = relu(conv(below) + convᵀ(above) + bias), stride 1


def _both(below: Tensor, above: Tensor, wb: Tensor, wa: Tensor, b: Tensor) -> Tensor:
    return settle_step(below, above, wb, wa, b, padding=1, activation="relu")[0]


def _two(below: Tensor, above: Tensor, wb: Tensor, wa: Tensor, b: Tensor) -> Tensor:
    return F.relu(F.conv2d(below, wb, b, 1, 1) + F.conv_transpose2d(above, wa, None, 1, 1))


def _dual(kind: str, sizes: Sizes, last: bool, place: Place) -> Step:
    batch, below, width, above, size = sizes
    torch.manual_seed(0)
    randn = partial(torch.randn, device=place.device)
    tensors = _put(
        place, last, randn(batch, below, size, size), randn(batch, above, size, size),
        randn(width, below, 3, 3) / (3 * below**0.5), randn(above, width, 3, 3) / (3 * above**0.5), randn(width),
    )  # fmt: skip
    if kind == "concat trick":
        # The transposed convolution at stride 1 is one with the flipped kernel; the weights are joined once.
        b, a, wb, wa, bias = tensors
        joined = torch.cat([wb, wa.flip(2, 3).transpose(0, 1)], dim=1)
        joined = joined.contiguous(memory_format=torch.channels_last)

        def concat() -> Sequence[Tensor]:
            with torch.no_grad():
                return [F.relu(F.conv2d(torch.cat([b, a], dim=1), joined, bias, 1, 1))]

        return concat
    operation = _both if kind == "fused" else _two

    def step() -> Sequence[Tensor]:
        with torch.no_grad():
            return [operation(*tensors)]

    return step


def dual(name: str, sizes: Sizes, **rest: object) -> Workload:
    """One update from both neighbours; `sizes` is (batch, below, width, above, size)."""
    entrants = (
        Entrant("fused", "ours", partial(_dual, "fused", sizes, True), captured=True),
        Entrant("eager", "eager", partial(_dual, "eager", sizes, False), captured=True),
        Entrant("eager, channels-last", "eager", partial(_dual, "eager", sizes, True), captured=True),
        Entrant("concat trick", "eager", partial(_dual, "concat trick", sizes, True), captured=True),
    )
    return Workload(name, entrants, kinds=("tf32",), **rest)  # type: ignore[arg-type]


# h = relu(y + u + bias)


def _add_act(fused: bool, elements: int, place: Place) -> Step:
    torch.manual_seed(0)
    channels, side = 64, 64
    shape = (max(1, elements // (channels * side * side)), channels, side, side)
    y, u = (
        torch.randn(shape, device=place.device).to(place.dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    bias = torch.randn(channels).to(place.device, place.dtype)

    def step() -> Sequence[Tensor]:
        with torch.no_grad():
            if fused:
                return [add_act(y, u, bias, activation="relu")]
            return [F.relu(y + u + bias.view(1, -1, 1, 1))]

    return step


def elementwise(name: str, elements: int, asks: tuple[Ask, ...] = ()) -> Workload:
    """`add_act`, which reads two tensors of so many elements and writes one."""
    entrants = (
        Entrant("fused", "ours", partial(_add_act, True, elements)),
        Entrant("eager", "eager", partial(_add_act, False, elements)),
    )
    return Workload(name, entrants, asks=asks, streamed=3 * elements)
