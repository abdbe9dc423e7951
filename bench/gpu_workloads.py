"""What is measured on a GPU: the workloads, who competes in each, and the ratios asked of this library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bench import gpu_settling
from bench.gpu_entrants import Ask, Entrant, Place, Step, Workload
from bench.gpu_layers import dual, elementwise, layer
from lmser import CLmser, Lmser
from lmser.baselines import EagerCLmser, EagerLmser

HQ = (3, (16, 32, 64, 128, 256, 256, 256), (1, 2, 2, 2, 2, 2, 2))
STL10 = (3, (16, 32, 64, 128, 256), (1, 2, 2, 2, 2))
DENSE = ((784, 300, 100, 10),)
COMPILED = ("default", "max-autotune-no-cudagraphs")


def _network(
    kind: type, arguments: Sequence[object], shape: Sequence[int], training: bool, last: bool,
    mode: str | None, place: Place,
) -> Step:  # fmt: skip
    """A training step, or the reconstruction, of a reflection network."""
    torch.manual_seed(0)
    layout = torch.channels_last if last and len(shape) == 4 else torch.contiguous_format

    def put(tensor: Tensor) -> Tensor:
        moved = tensor.detach().to(place.device, place.dtype)
        return moved.contiguous(memory_format=layout) if moved.dim() == 4 else moved

    model = kind(*arguments)
    x = put(torch.rand(*shape, device=place.device) * 2 - 1)
    # By hand: `Module.to` exchanges the parameters' memory, and tensors without memory refuse.
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = torch.nn.Parameter(put(parameter))

    def reconstruction(x: Tensor) -> Tensor:
        found: Tensor = model(x).reconstruction
        return found

    loss = model.loss if mode is None else torch.compile(model.loss, mode=mode, fullgraph=True)
    infer = reconstruction if mode is None else torch.compile(reconstruction, mode=mode, fullgraph=True)

    def step() -> Sequence[Tensor]:
        if not training:
            with torch.no_grad():
                return [infer(x)]
        model.zero_grad(set_to_none=True)
        found = loss(x)
        found.backward()
        return [found.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    return step


def reflection(
    name: str, arguments: Sequence[object], shape: Sequence[int], training: bool, modes: Sequence[str] = (),
    graphed: bool = False, **rest: object,
) -> Workload:  # fmt: skip
    """Training step or inference of a `CLmser` (images) or `Lmser` (vectors)."""
    images = len(shape) == 4
    ours, eager = (CLmser, EagerCLmser) if images else (Lmser, EagerLmser)

    def make(kind: type, last: bool, mode: str | None = None) -> Callable[[Place], Step]:
        return partial(_network, kind, arguments, shape, training, last, mode)

    entrants = [
        Entrant("fused", "ours", make(ours, True), captured=True),
        Entrant("eager", "eager", make(eager, False), captured=graphed),
    ]
    if images:
        entrants.append(Entrant("eager, channels-last", "eager", make(eager, True), captured=graphed))
    for mode in modes:
        title = f"compiled, {mode.removesuffix('-no-cudagraphs')}"
        entrants.append(Entrant(title, "compiled", make(eager, True, mode), captured=True, mode=mode))
    # Rounding moves relus over their kinks, and whole gradients with them.
    tolerance = {"bf16": 0.1, "tf32": 0.02} if training else {"bf16": 5e-2, "tf32": 5e-3}
    return Workload(name, tuple(entrants), tolerance=tolerance, **rest)  # type: ignore[arg-type]


def settling(
    name: str, net: gpu_settling.Spec, training: bool, asks: tuple[Ask, ...], modes: Sequence[str]
) -> Workload:
    """`settle` against the loops people write; every sweep is made, by all."""
    make = partial(gpu_settling.step, net, training)
    entrants = [Entrant("fused", "ours", partial(make, "fused", True, None), captured=True)]
    images = net.size > 1
    for title in gpu_settling.LOOPS:
        for last in (False, True) if images else (False,):
            suffix = ", channels-last" if last else ""
            # The best eager loop is the one captured; the paper's own only as it is.
            entrants.append(
                Entrant(
                    title + suffix,
                    "eager",
                    partial(make, title, last, None),
                    captured=title == "cached loop",
                )
            )
    for mode in modes:
        short = mode.removesuffix("-no-cudagraphs")
        entrants.append(
            Entrant(
                f"cached loop, compiled, {short}",
                "compiled",
                partial(make, "cached loop", images, mode),
                captured=True,
                mode=mode,
            )
        )
    return Workload(name, tuple(entrants), kinds=("tf32",), asks=asks, tolerance={"tf32": 2e-2})


CIFAR = gpu_settling.Spec(128, (3, 40, 120, 440), 32, (1, 2, 2), 3, 20)
FBAN = gpu_settling.Spec(64, (812, 200, 50), 1, (1, 1), 1, 50)

ADD_ACT = "add_act, tensors of 1 GB in float32"
# (batch, channels below, above, size, stride) of the grid of single layers.
GRID = (
    (128, 1, 16, 28, 1),
    (128, 16, 32, 28, 2),
    (16, 3, 16, 256, 1),
    (16, 16, 32, 256, 2),
    (16, 32, 64, 128, 2),
    (16, 64, 128, 64, 2),
    (16, 128, 256, 32, 2),
    (100, 32, 64, 48, 2),
    (128, 40, 120, 32, 1),
    (64, 64, 64, 56, 1),
    (16, 128, 128, 64, 1),
    (16, 128, 256, 28, 1),
    (16, 256, 256, 56, 1),
    (128, 256, 256, 28, 2),
)


def workloads() -> list[Workload]:
    """All of them, the most telling first."""
    return [
        *networks(),
        *attractors(),
        elementwise(ADD_ACT, 250_000_000, (Ask("copy", 0.9),)),
        *updates(),
        *layers(GRID),
    ]


def networks() -> list[Workload]:
    """Reflection networks of 001 and 000."""
    hq, stl = (16, 3, 256, 256), (100, 3, 96, 96)
    return [
        reflection(
            "CLmser CelebA-HQ 256², training step, batch 16", HQ, hq, True, COMPILED,
            asks=(Ask("eager", 2.0), Ask("compiled", 1.4)),
        ),
        reflection("CLmser CelebA-HQ 256², inference, batch 1", HQ, (1, *hq[1:]), False, asks=(Ask("eager", 3.0),)),
        reflection(
            "CLmser CelebA-HQ 256², inference, batch 64", HQ, (64, *hq[1:]), False, frames=64,
            asks=(Ask("ms per frame", 0.02),),
        ),
        reflection(
            "CLmser-STL10 96², training step, batch 100", STL10, stl, True, COMPILED[:1],
            asks=(Ask("eager", 2.0), Ask("compiled", 1.4)),
        ),
        reflection(
            "Lmser 784-300-100-10, training step, batch 50", DENSE, (50, 784), True, COMPILED[:1], graphed=True,
            kinds=("tf32",), asks=(Ask("eager", 4.0), Ask("graphed", 1.5)),
        ),
    ]  # fmt: skip


def attractors() -> list[Workload]:
    """Attractor networks of 004."""
    found = []
    for training in (False, True):
        what = "training step" if training else "inference"
        found.append(
            settling(
                f"CBAN-CIFAR 3-40-120-440, batch 128, 20 sweeps, {what}", CIFAR, training,
                (Ask("eager", 3.0), Ask("graphed-compiled", 1.5), Ask("memory", 0.5)), COMPILED[:1],
            )
        )  # fmt: skip
        found.append(
            settling(
                f"FBAN 812-200-50, batch 64, 50 sweeps, {what}", FBAN, training,
                (Ask("eager", 12.0), Ask("graphed", 3.0)), COMPILED[:1],
            )
        )  # fmt: skip
    return found


def layers(sizes: Sequence[tuple[int, int, int, int, int]]) -> list[Workload]:
    """Single layers, both directions, with and without their derivative."""
    found = []
    for batch, below, above, size, stride in sizes:
        for training in (False, True):
            for down in (False, True):
                way = f"{above}→{below} down" if down else f"{below}→{above} up"
                what = "forward + backward" if training else "forward"
                name = f"layer {way}, {size} px, stride {stride}, batch {batch}, {what}"
                found.append(layer(name, (batch, below, above, size, stride), down, training))
    return found


def updates() -> list[Workload]:
    """Neuron updates from both neighbours, of an attractor network and of a wide layer."""
    return [
        dual(
            f"neuron update {below}→{width}←{above}, {size} px, batch {batch}",
            (batch, below, width, above, size),
        )
        for batch, below, width, above, size in ((128, 40, 120, 440, 8), (16, 128, 128, 128, 28))
    ]
