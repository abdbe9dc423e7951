"""Operations that no workload of the GPU benchmark launches, at sizes of those networks: compiled and read like them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.gpu_entrants import Entrant, Place, Step, Workload
from lmser_kernels import add_act, max_pool2d_act, tied_conv2d

KINDS = ("bf16", "fp16", "tf32", "tf32x3", "ieee", "float64")
# (batch, channels below and above, size, stride) of a tied pair.
PAIRS = ((16, 3, 16, 256, 1), (16, 128, 256, 32, 2))


def _drawn(place: Place, shape: Sequence[int], layout: torch.memory_format = torch.channels_last) -> Tensor:
    made = torch.randn(*shape, device=place.device).to(place.dtype)
    return (made.contiguous(memory_format=layout) if len(shape) == 4 else made).requires_grad_()


def _stepped(call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], twice: bool = False) -> Step:
    """The results and the gradients of all inputs; `twice`: what flows back through these as well."""

    def step() -> Sequence[Tensor]:
        results = call(*inputs)
        seeds = [torch.ones_like(r, requires_grad=twice) for r in results]
        found = torch.autograd.grad(results, inputs, seeds, create_graph=twice)
        if twice:
            torch.autograd.grad(found, seeds, [torch.ones_like(f) for f in found])
        return [r.detach() for r in (*results, *found)]

    return step


def _pair(sizes: tuple[int, int, int, int, int], place: Place) -> Step:
    batch, below, above, size, stride = sizes
    small = (size - 1) // stride + 1
    shapes = ((batch, below, size, size), (batch, above, small, small), (above, below, 3, 3))
    return _stepped(partial(tied_conv2d, stride=stride, padding=1), [_drawn(place, s) for s in shapes])


def _add_act(layout: torch.memory_format, biased: bool, place: Place) -> Step:
    shape = (16, 64, 56, 56)
    inputs = [_drawn(place, shape, layout), _drawn(place, shape)]
    if biased:
        inputs.append(_drawn(place, (64,)))
    return _stepped(lambda *given: [add_act(*given, activation="leaky_sigmoid")], inputs)


def _pool(place: Place) -> Step:
    inputs = [_drawn(place, (64, 32, 24, 24))]
    return _stepped(lambda x: [max_pool2d_act(x, 2, activation="relu")], inputs, twice=True)


def workloads() -> list[Workload]:
    """All of them."""
    made: list[tuple[str, Callable[[Place], Step]]] = []
    for sizes in PAIRS:
        batch, below, above, size, stride = sizes
        name = f"tied pair {below}→{above}, {size} px, stride {stride}, batch {batch}"
        made.append((name, partial(_pair, sizes)))
    for layout in (torch.channels_last, torch.contiguous_format):
        lies = "one layout" if layout == torch.channels_last else "two layouts"
        for biased in (False, True):
            name = f"add_act of {lies}, 56 px{', with bias' if biased else ''}"
            made.append((name, partial(_add_act, layout, biased)))
    made.append(("max pooling, 24 px, twice differentiated", _pool))
    return [Workload(name, (Entrant("fused", "ours", make),), kinds=KINDS) for name, make in made]
