"""What `explain` says of operations on whole networks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from lmser_kernels import _library, chips, dispatch, explain_gpu
from lmser_kernels.explanation import Explanation, in_tiles, kernel_of, rates, reason_for
from lmser_kernels.reflect.api import as_one
from lmser_kernels.reflect.problem import Problem as Reflections
from lmser_kernels.reflect.problem import checked as checked_reflections
from lmser_kernels.settle.api import settle
from lmser_kernels.settle.problem import Problem, checked
from lmser_kernels.tied_conv.api import conv2d_add_act, conv_transpose2d_add_act


def explain_settle(bound: inspect.BoundArguments, chip: chips.Chip | None) -> Explanation:
    bound.apply_defaults()
    given = bound.arguments
    names = (
        "states",
        "weights",
        "biases",
        "reverse_weights",
        "evidence",
        "mask",
        "external",
        "pools",
        "padding",
    )
    problem = checked(*(given[name] for name in names))
    visible, threads = problem.states[0], torch.get_num_threads()
    operators = explain_gpu.operators("settle", given["impl"], visible, chip)
    native = operators is dispatch.compiled and chip is None and visible.is_cpu
    whole = False
    reasons: list[str] = []
    if operators is dispatch.compiled and not native:
        obstacle = explain_gpu.persistent_obstacle(problem, given, chip)
        whole = obstacle is None
        if obstacle is None:
            reasons.append("states and partial sums fit on the chip: all sweeps are one launch")
        else:
            operators = dispatch.triton
            reasons.append(f"not one launch of the compiled kernel: {obstacle}")
    computed = torch.promote_types(visible.dtype, torch.float32)
    peak, bandwidth, source = rates(computed, threads, visible.device, chip)
    flops = sum(
        4.0 * weight.numel() * above.shape[0] * above.shape[2] * above.shape[3]
        for weight, above in zip(problem.weights, problem.states[1:], strict=True)
    )
    memory = 2 * sum(h.numel() for h in problem.states) + sum(w.numel() for w in problem.weights)
    plans = _settle_plans(problem, threads) if native else {}
    if native and given["backward"] == "bptt":
        half = given["trajectory_dtype"] == torch.bfloat16
        held = problem.evidence is not None and problem.mask is None and given["strength"] == 1.0
        reasons.append(_settle_kept(problem, given["order"], held, half))
    if operators is dispatch.triton:
        one = {"theta": 0.0, "max_steps": 1, "checkpoint_every": None, "trajectory_dtype": None}
        plans = explain_gpu.launches(settle, given | one, chip, visible.device)
    return Explanation(
        operation="settle",
        implementation=dispatch.name_of(operators),
        kernel="eager PyTorch"
        if operators is None
        else "settle_persistent, all sweeps in one launch"
        if whole
        else f"one operation, per sweep: {kernel_of('settle', plans)}",
        reason="; ".join([reason_for("settle", given["impl"], visible, plans, chip), *reasons]),
        output_shapes=tuple(tuple(h.shape) for h in problem.states),
        dtype=visible.dtype,
        threads=threads,
        flops=flops,
        bytes=float(memory * visible.element_size()),
        peak_gflops=peak,
        bandwidth_gbs=bandwidth,
        plans=plans,
        source=source,
    )


def _settle_kept(problem: Problem, order: str, held: bool, half: bool) -> str:
    """What the gradient through the sweeps asks for."""
    assert _library.module is not None
    visible = problem.states[0]
    kept = _library.module.settle_kept(
        [list(h.shape) for h in problem.states],
        [list(w.shape[2:]) for w in problem.weights],
        [list(pool) for pool in problem.pools],
        order == "up_down",
        held,
    )
    itemsize = torch.promote_types(visible.dtype, torch.float32).itemsize
    size = kept["values"] * (2 if half else itemsize) + visible.numel() * itemsize
    again = [str(layer) for layer in kept["made_again"]]
    reason = f"for a gradient a sweep leaves {size / 1e6:.3g} MB"
    if again:
        layers = f"layer{'s' if len(again) > 1 else ''} {', '.join(again)}"
        reason += f", of {layers} the drive from above alone, from which the states are made again"
    return reason


def explain_reflect(name: str, given: dict[str, Any], chip: chips.Chip | None) -> Explanation:
    """Of `reflect`, or of `reflect_loss`, whose work is that of the passes without their gradients."""
    names = (
        "x", "weights", "biases", "decoder_weights", "stride", "padding", "paired", "reflections", "linear", "noise",
        "activation", "slope",
    )  # fmt: skip
    problem = checked_reflections(*(given[argument] for argument in names))
    loss = name == "reflect_loss"
    x, threads, depth = problem.x, torch.get_num_threads(), problem.depth
    operators = explain_gpu.operators("reflect", given["impl"], x, chip)
    native = operators is dispatch.compiled and chip is None and x.is_cpu
    whole = native and given.get("sent_down") is None and as_one(problem)
    passes = problem.reflections if problem.paired and depth > 1 else 1
    products = [
        2.0 * weight.numel() * len(x) * height * width
        for weight, (height, width) in zip(problem.weights, problem.sizes[1:], strict=True)
    ]
    shapes: tuple[tuple[int, ...], ...] = (
        ((),) if loss else (tuple(x.shape), (len(x), problem.weights[-1].shape[0], *problem.sizes[-1]))
    )
    tensors = [*problem.weights, *problem.decoder_weights, *problem.biases]
    values = sum(t.numel() for t in tensors) + x.numel() + sum(map(math.prod, shapes))
    plans = _reflect_plans(problem, threads) if native else {}
    if operators is dispatch.triton:
        plans = _reflect_launches(problem, chip)
    computed = x.dtype if native and in_tiles(plans) else torch.promote_types(x.dtype, torch.float32)
    peak, bandwidth, source = rates(computed, threads, x.device, chip)
    how = "one operation for all passes" if whole else "layer by layer"
    if whole and loss:
        how += " and, where they are recorded, their gradients"
    return Explanation(
        operation=name,
        implementation=dispatch.name_of(operators),
        kernel="eager PyTorch, layer by layer"
        if operators is None
        else f"{how}: {kernel_of('reflect', plans)}",
        reason=reason_for("reflect", given["impl"], x, plans, chip),
        output_shapes=shapes,
        dtype=x.dtype,
        threads=threads,
        flops=2 * products[0] + 2 * passes * sum(products[1:]),  # the image goes up once, and comes down once
        bytes=float(values * x.element_size()),
        peak_gflops=peak,
        bandwidth_gbs=bandwidth,
        plans=plans,
        source=source,
    )


class _Direction(NamedTuple):
    """One direction of an edge of a reflection network: an operation and what it reads."""

    name: str
    operation: Callable[..., Any]
    weight: tuple[int, ...]
    source: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]


def _reflect_directions(problem: Reflections) -> Iterator[_Direction]:
    for edge, weight in enumerate(problem.weights):
        shape = (*weight.shape, 1, 1)[:4]
        below, above = (
            (len(problem.x), shape[channels], *problem.sizes[layer])
            for channels, layer in ((1, edge), (0, edge + 1))
        )
        of_edge = (problem.strides[edge], problem.paddings[edge])
        name = f"{edge} - {edge + 1}"
        yield _Direction(f"conv {name}", conv2d_add_act, shape, below, *of_edge, problem.sizes[edge + 1])
        yield _Direction(
            f"convᵀ {name}", conv_transpose2d_add_act, shape, above, *of_edge, problem.sizes[edge]
        )


def _reflect_plans(problem: Reflections, threads: int) -> dict[str, Mapping[str, Any]]:
    """The plan of each direction of each edge, for the whole batch."""
    assert _library.module is not None
    dtype = str(problem.x.dtype).removeprefix("torch.")
    return {
        d.name: _library.module.plan(
            d.operation.__name__, dtype, list(d.source), list(d.weight), d.stride, d.padding, (1, 1), d.size, True,
            threads,
        )
        for d in _reflect_directions(problem)
    }  # fmt: skip


def _reflect_launches(problem: Reflections, chip: chips.Chip | None) -> dict[str, Mapping[str, Any]]:
    """What each direction of each edge launches, for the whole batch."""
    plans: dict[str, Mapping[str, Any]] = {}
    x = problem.x
    for d in _reflect_directions(problem):
        source = torch.empty(d.source, dtype=x.dtype, device="meta").to(memory_format=torch.channels_last)
        given = {
            "x" if d.operation is conv2d_add_act else "z": source,
            "weight": torch.empty(d.weight, dtype=x.dtype, device="meta"),
            "stride": d.stride,
            "padding": d.padding,
            "activation": problem.activation,
            "slope": problem.slope,
        }
        if d.operation is conv_transpose2d_add_act:
            given["output_size"] = d.size
        made = explain_gpu.launches(d.operation, given, chip, x.device)
        for number, launch in enumerate(made.values(), 1):
            plans[d.name if len(made) == 1 else f"{d.name}, {number}"] = launch
    return plans


def _settle_plans(problem: Problem, threads: int) -> dict[str, Mapping[str, Any]]:
    """The plan of each direction of each edge; states are channels-last inside, half precision is float32."""
    assert _library.module is not None
    plans: dict[str, Mapping[str, Any]] = {}
    dtype = "float64" if problem.states[0].dtype == torch.float64 else "float32"
    for edge, weight in enumerate(problem.weights):
        below, above = problem.states[edge], problem.states[edge + 1]
        window, margin = problem.pools[edge], problem.padding[edge]
        inner = (below.shape[2] // window[0], below.shape[3] // window[1])
        for way, operation, source, size in (
            ("conv", "conv2d_add_act", below, (above.shape[2], above.shape[3])),
            ("convᵀ", "conv_transpose2d_add_act", above, inner),
        ):
            plans[f"{way} {edge} - {edge + 1}"] = _library.module.plan(
                operation,
                dtype,
                list(source.shape),
                list(weight.shape),
                (1, 1),
                margin,
                window,
                size,
                True,
                threads,
            )
    return plans
