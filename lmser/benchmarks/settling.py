"""Settling to a fixed point as workloads: the networks of 004, inference and training, against the loops people write.

Training is 004's: squared error of the readouts of every sweep, backward through all sweeps. The weights are drawn so
that states stay in tanh's range; `theta` is 0, so that every contender makes the same number of sweeps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from lmser.benchmarks.settle_peers import Net, cached_sweep, loop, paper_sweep, update
from lmser.contest import Contender
from lmser_kernels import settle, settle_step

NETWORKS = {
    # batch, channels, size, windows, kernel, sweeps
    "CBAN-CIFAR": (16, (3, 40, 120, 440), 32, (1, 2, 2), 3, 10),
    "CBAN-Omniglot": (16, (1, 128, 256, 256), 28, (1, 2, 2), 3, 10),
    "FBAN 812-200-50": (250, (812, 200, 50), 1, (1, 1), 1, 20),
}
SWEEPS = {"paper's loop": paper_sweep, "cached loop": cached_sweep}
# One update from both neighbours: batch, channels below, here and above, size here, windows above.
STEPS = {"128-256-256, 14 px": (16, 128, 256, 256, 14, 1), "40-120-440, 16 px": (16, 40, 120, 440, 16, 2)}


def network(name: str, sweeps: int | None = None) -> Net:
    """One of `NETWORKS` with random weights, evidence on six units of ten."""
    batch, channels, size, pools, kernel, steps = NETWORKS[name]
    torch.manual_seed(0)
    states, here = [], size
    for layer, width in enumerate(channels):
        here = here // pools[layer - 1] if layer else here
        states.append(torch.zeros(batch, width, here, here))
    weights = [
        torch.randn(above, below, kernel, kernel) * 0.5 / (max(below, above) * kernel * kernel) ** 0.5
        for below, above in pairwise(channels)
    ]
    return Net(
        states,
        weights,
        [torch.randn(width) * 0.1 for width in channels],
        torch.rand(states[0].shape) * 1.6 - 0.8,
        torch.rand(states[0].shape) < 0.6,
        pools,
        0.0,
        steps if sweeps is None else sweeps,
    )


def flops(name: str, training: bool) -> float:
    """Direct multiply-adds x 2 with each drive once a sweep; in training three times that."""
    batch, channels, size, pools, kernel, steps = NETWORKS[name]
    total, here = 0.0, size
    for pool, (below, above) in zip(pools, pairwise(channels), strict=True):
        here //= pool
        total += 2 * 2.0 * batch * here * here * below * above * kernel * kernel
    return steps * total * (3 if training else 1)


def bytes_moved(name: str, training: bool) -> float:
    """Every state read and written once a sweep, every weight read once a sweep; in training three times that."""
    batch, channels, size, pools, kernel, steps = NETWORKS[name]
    elements, here = 0.0, size
    for layer, width in enumerate(channels):
        here = here // pools[layer - 1] if layer else here
        elements += 2.0 * batch * width * here * here
    elements += sum(below * above * kernel * kernel for below, above in pairwise(channels))
    return 4 * steps * elements * (3 if training else 1)


def fused(
    net: Net,
    backward: str = "bptt",
    trajectory_dtype: torch.dtype | None = None,
    checkpoint_every: int | None = None,
) -> tuple[list[Tensor], Tensor]:
    """(last states, readouts) by this library."""
    found = settle(
        net.states, net.weights, net.biases, evidence=net.evidence, mask=net.mask, pools=net.pools, theta=net.theta,
        max_steps=net.max_steps, readouts=True, backward=backward, unconverged="ignore", trajectory_dtype=trajectory_dtype,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    assert found.readouts is not None
    return list(found.states), found.readouts


def call(
    run: Callable[[Net], tuple[list[Tensor], Tensor]], net: Net, training: bool
) -> Callable[[], list[Tensor]]:
    """One inference, or one training step: the results to be verified."""
    target = net.evidence * 0.5
    parameters = [*net.weights, *net.biases]
    if training:
        for parameter in parameters:
            parameter.requires_grad_()

    def step() -> list[Tensor]:
        if not training:
            with torch.no_grad():
                return [run(net)[0][0]]
        for parameter in parameters:
            parameter.grad = None
        loss = (run(net)[1] - target).square().mean()
        loss.backward()
        return [loss, *(p.grad for p in parameters if p.grad is not None)]

    return step


def contenders(name: str, training: bool, compiled: bool = True) -> tuple[list[Contender], list[Tensor]]:
    """This library, and both loops in both memory formats, as they are and compiled."""
    # Every shape and layout is compiled anew: no contender falls back to eager for want of room.
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    net = network(name)
    last, plain = torch.channels_last, torch.contiguous_format
    found = [Contender("fused", call(fused, net.to(torch.float32, last), training))]
    formats = {"": plain} if net.states[0].shape[2] == 1 else {"": plain, ", channels-last": last}
    for title, sweep in SWEEPS.items():
        for suffix, layout in formats.items():
            for way in ("", ", compiled") if compiled else ("",):
                made = torch.compile(sweep) if way else sweep

                def run(net: Net, made: Callable[..., object] = made) -> tuple[list[Tensor], Tensor]:
                    return loop(made, net)  # type: ignore[arg-type]

                step = call(run, net.to(torch.float32, layout), training)
                found.append(Contender(title + suffix + way, step))
    wanted = call(lambda net: loop(cached_sweep, net), net.to(torch.float64, plain), training)()
    return found, wanted


def step_cost(name: str, training: bool) -> tuple[float, float]:
    """(multiply-adds x 2, bytes of the neighbours, the weights, the state before and the result) of one of `STEPS`."""
    batch, below, here, above, size, window = STEPS[name]
    pixels, small = size * size, (size // window) ** 2
    weights = 9.0 * here * (below + above)
    values = batch * (pixels * (below + 2 * here) + small * above) + weights
    return (3 if training else 1) * 2 * batch * 9.0 * here * (below * pixels + above * small), (
        (3 if training else 1) * 4 * values
    )


def step_contenders(name: str, training: bool) -> tuple[list[Contender], list[Tensor]]:
    """`settle_step` with tanh and the change against the state before, and the same written in PyTorch."""
    torch._dynamo.reset()
    batch, below, here, above, size, window = STEPS[name]
    torch.manual_seed(0)
    tensors = [
        torch.rand(batch, below, size, size) * 2 - 1,
        torch.rand(batch, above, size // window, size // window) * 2 - 1,
        torch.randn(here, below, 3, 3) * 0.5 / (9 * here) ** 0.5,
        torch.randn(above, here, 3, 3) * 0.5 / (9 * here) ** 0.5,
        torch.randn(here) * 0.1,
    ]
    before, grad = torch.rand(batch, here, size, size), torch.randn(batch, here, size, size)

    def fused(*given: Tensor) -> tuple[Tensor, Tensor]:
        *step, before = given
        return settle_step(*step, padding=1, upsample=window, activation="tanh", previous=before)

    def eager(
        below: Tensor, above: Tensor, weight_below: Tensor, weight_above: Tensor, bias: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor]:
        return update(below, above, weight_below, weight_above, bias, before, window)

    def contender(
        title: str,
        function: Callable[..., tuple[Tensor, Tensor]],
        layout: torch.memory_format,
        dtype: torch.dtype = torch.float32,
    ) -> Contender:
        def turn(t: Tensor) -> Tensor:
            moved = t.to(dtype, copy=True)
            return moved.contiguous(memory_format=layout) if moved.dim() == 4 else moved

        inputs, previous, g = [turn(t) for t in tensors], turn(before), turn(grad)
        for t in inputs:
            t.requires_grad_(training)

        def run() -> list[Tensor]:
            if not training:
                with torch.no_grad():
                    return list(function(*inputs, previous))
            for t in inputs:
                t.grad = None
            h, change = function(*inputs, previous)
            h.backward(g)
            return [h, change, *(t.grad for t in inputs if t.grad is not None)]

        return Contender(title, run)

    last, plain = torch.channels_last, torch.contiguous_format
    found = [contender("fused", fused, last)]
    for suffix, layout in {"": plain, ", channels-last": last}.items():
        found.append(contender("eager" + suffix, eager, layout))
        found.append(contender(f"eager{suffix}, compiled", torch.compile(eager), layout))
    return found, list(contender("float64", eager, plain, torch.float64).run())
