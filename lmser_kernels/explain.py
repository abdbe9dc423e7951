"""Which kernel a call would take, why, and what it costs: nothing is run but the argument checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lmser_kernels import _library, chips, dispatch, explain_gpu
from lmser_kernels.add_act.api import add_act, pull_back
from lmser_kernels.arguments import pair
from lmser_kernels.max_pool.api import max_pool2d_act, max_unpool2d
from lmser_kernels.max_pool.reference import windows
from lmser_kernels.settle.api import settle
from lmser_kernels.settle.problem import Problem, checked
from lmser_kernels.tied_conv.api import conv2d_add_act, conv_transpose2d_add_act, tied_conv2d

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add_act": add_act,
    "conv2d_add_act": conv2d_add_act,
    "conv_transpose2d_add_act": conv_transpose2d_add_act,
    "max_pool2d_act": max_pool2d_act,
    "max_unpool2d": max_unpool2d,
    "pull_back": pull_back,
    "settle": settle,
    "tied_conv2d": tied_conv2d,
}
_KERNEL_OF = {"pull_back": "add_act"}  # the derivative that add_act's backward computes
_MEASURE_SECONDS = 0.02
_SAID_ABOVE = ("kernel", "reason", "flops", "bytes")


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `print` shows it.

    `flops` counts a multiply-add as two and only what the definition asks for; `bytes` is every argument
    read and every result written once. `peak_gflops` (of this dtype's arithmetic) and `bandwidth_gbs` are
    measured by the call, for the threads in use; both are None without the compiled library, and so are
    `bound` and `seconds`. Of a GPU they are those of its data sheet, or measured where `lmser_kernels.chips` has
    none of it: `source` says which. `plans` are by direction on the CPU, by launch on a GPU.
    """

    operation: str
    implementation: str
    kernel: str
    reason: str
    output_shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    threads: int
    flops: float
    bytes: float
    peak_gflops: float | None = None
    bandwidth_gbs: float | None = None
    plans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""

    @property
    def intensity(self) -> float:
        """Flops per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def bound(self) -> str | None:
        """ "compute" or "memory": which of the two floors is the higher one on this machine."""
        if self.peak_gflops is None or self.bandwidth_gbs is None:
            return None
        return "compute" if self.flops / self.peak_gflops > self.bytes / self.bandwidth_gbs else "memory"

    @property
    def seconds(self) -> float | None:
        """The higher floor itself, of the direct sum: an algorithm with fewer products can go below it."""
        if self.peak_gflops is None or self.bandwidth_gbs is None:
            return None
        return max(self.flops / self.peak_gflops, self.bytes / self.bandwidth_gbs) / 1e9

    def __str__(self) -> str:
        lines = [
            f"{self.operation} -> {self.implementation}: {self.kernel}",
            f"  because   {self.reason}",
            f"  output    {', '.join(str(shape) for shape in self.output_shapes)} {self.dtype}",
            f"  work      {self.flops / 1e6:.4g} MFLOP, {self.bytes / 1e6:.4g} MB, "
            f"{self.intensity:.3g} flop/byte",
        ]
        if self.bound is None or self.seconds is None:
            lines.append(
                "  bound     unknown: peaks are measured by the compiled library, which is not loaded"
            )
        else:
            whose = self.source or f"{self.threads} thread(s)"
            peaks = f"{self.peak_gflops:.0f} GFLOP/s, {self.bandwidth_gbs:.1f} GB/s, {whose}"
            lines.append(f"  bound     {self.bound}: at least {self.seconds * 1e6:.3g} µs ({peaks})")
        several = len({plan.get("kernel") for plan in self.plans.values()}) > 1
        for name, plan in self.plans.items():
            said = [key for key in _SAID_ABOVE if not (several and key == "kernel")]
            rest = {key: value for key, value in plan.items() if key not in said}
            lines.append(f"  plan      {name}: " + ", ".join(f"{key} {value}" for key, value in rest.items()))
        return "\n".join(lines)


def explain(
    operation: str | Callable[..., Any], *args: Any, on: str | None = None, **kwargs: Any
) -> Explanation:
    """Explains the call `operation(*args, **kwargs)` of one of this package's operations (or its name).

    on: a kind of GPU (a name of `lmser_kernels.chips.CHIPS`): what the call would take there, wherever the tensors
        are; there need be no GPU.

    The arguments are checked as the call would check them and raise the same errors. Of `settle`, whose number of
    sweeps only the solve tells, flops, bytes and floor are those of one sweep: every drive once, every state read and
    written once, the weights read once.

        print(explain(conv2d_add_act, x, weight, stride=2, padding=1))
        print(explain(conv2d_add_act, x, weight, stride=2, padding=1, on="H200"))
    """
    name = operation if isinstance(operation, str) else getattr(operation, "__name__", repr(operation))
    if name not in _OPERATIONS or (callable(operation) and operation is not _OPERATIONS[name]):
        raise ValueError(f"operation must be one of {', '.join(_OPERATIONS)}; got {operation!r}")
    function = _OPERATIONS[name]
    chip = None if on is None else explain_gpu.known(on)
    if name == "settle":
        return _explain_settle(inspect.signature(settle).bind(*args, **kwargs), chip)
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    first = next(iter(given.values()))
    if not isinstance(first, Tensor):
        function(*args, **kwargs)  # raises, naming the argument
    operators = explain_gpu.operators(_KERNEL_OF.get(name, name), given["impl"], first, chip)
    native = operators is dispatch.compiled

    # The public function itself checks the arguments and gives sizes and dtype, on tensors without memory.
    with FakeTensorMode() as mode, torch.no_grad():
        shadow = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in given.items()}
        result = function(**shadow | {"impl": "reference"})
    outputs = result if isinstance(result, tuple) else (result,)
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    threads = torch.get_num_threads()
    if operators is dispatch.triton:
        plans = explain_gpu.launches(function, given, chip, first.device)
    else:
        plans = _plans(name, given, outputs, threads) if native and first.is_cpu else {}
    peak, bandwidth, source = _rates(outputs[0].dtype, threads, first.device, chip)
    return Explanation(
        operation=name,
        implementation=dispatch.name_of(operators),
        kernel="eager PyTorch" if operators is None else _kernel(name, plans),
        reason=_reason(_KERNEL_OF.get(name, name), given["impl"], first, plans, chip),
        output_shapes=tuple(tuple(output.shape) for output in outputs),
        dtype=outputs[0].dtype,
        threads=threads,
        flops=_flops(name, given, outputs),
        bytes=float(sum(t.numel() * t.element_size() for t in (*tensors, *outputs))),
        peak_gflops=peak,
        bandwidth_gbs=bandwidth,
        plans=plans,
        source=source,
    )


def _explain_settle(bound: inspect.BoundArguments, chip: chips.Chip | None) -> Explanation:
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
    peak, bandwidth, source = _rates(computed, threads, visible.device, chip)
    flops = sum(
        4.0 * weight.numel() * above.shape[0] * above.shape[2] * above.shape[3]
        for weight, above in zip(problem.weights, problem.states[1:], strict=True)
    )
    memory = 2 * sum(h.numel() for h in problem.states) + sum(w.numel() for w in problem.weights)
    plans = _settle_plans(problem, threads) if native else {}
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
        else f"one operation, per sweep: {_kernel('settle', plans)}",
        reason="; ".join([_reason("settle", given["impl"], visible, plans, chip), *reasons]),
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


def _rates(
    dtype: torch.dtype, threads: int, device: torch.device, chip: chips.Chip | None
) -> tuple[float | None, float | None, str]:
    """GFLOP/s and GB/s, and where they are from ("" for this processor's)."""
    if chip is None and device.type == "cpu":
        return *_peaks(dtype, threads), ""
    return explain_gpu.rates(dtype, device, chip)


def _peaks(dtype: torch.dtype, threads: int) -> tuple[float | None, float | None]:
    library = _library.module
    if library is None:
        return None, None
    # The measured peak is float32's; bfloat16 and float16 compute in float32, float64 has half the lanes.
    share = 0.5 if dtype == torch.float64 else 1.0
    peak = share * library.measure_fma_peak(_MEASURE_SECONDS, threads)
    return peak, library.measure_copy_bandwidth(_MEASURE_SECONDS, threads)


def _flops(name: str, given: dict[str, Any], outputs: tuple[Tensor, ...]) -> float:
    if name == "add_act":
        terms = sum(given[key] is not None for key in ("u", "bias"))
        return float(outputs[0].numel() * (terms + 1))
    if name == "max_pool2d_act":  # comparisons
        kernel, _, _ = windows(given["kernel_size"], given["stride"], given["padding"])
        return float(outputs[0].numel() * kernel[0] * kernel[1])
    if name in ("max_unpool2d", "pull_back"):
        return float(next(iter(given.values())).numel())
    per_pixel = 2.0 * given["weight"].numel()
    if name == "conv_transpose2d_add_act":
        z = given["z"]
        return per_pixel * z.shape[0] * z.shape[2] * z.shape[3]
    y = outputs[0]
    return (2 if name == "tied_conv2d" else 1) * per_pixel * y.shape[0] * y.shape[2] * y.shape[3]


def _plans(
    name: str, given: dict[str, Any], outputs: tuple[Tensor, ...], threads: int
) -> dict[str, Mapping[str, Any]]:
    """The compiled library's plan of each convolution in the call; an elementwise pass has none."""
    if "weight" not in given:
        return {}
    out, weight = outputs[0], given["weight"]
    stride, padding = pair("stride", given["stride"], 1), pair("padding", given["padding"], 0)

    def plan(
        operation: str, source: Tensor, factor: tuple[int, int], size: tuple[int, int]
    ) -> Mapping[str, Any]:
        channels_last = source.is_contiguous(memory_format=torch.channels_last)
        assert _library.module is not None
        return _library.module.plan(
            operation,
            str(out.dtype).removeprefix("torch."),
            list(source.shape),
            list(weight.shape),
            stride,
            padding,
            factor,
            size,
            channels_last,
            threads,
        )

    if name == "conv2d_add_act":
        return {"conv": plan(name, given["x"], pair("pool", given["pool"], 1), (out.shape[2], out.shape[3]))}
    if name == "conv_transpose2d_add_act":
        up = pair("upsample", given["upsample"], 1)
        return {"convᵀ": plan(name, given["z"], up, (out.shape[2] // up[0], out.shape[3] // up[1]))}
    u = outputs[1]
    return {
        "conv": plan("conv2d_add_act", given["x"], (1, 1), (out.shape[2], out.shape[3])),
        "convᵀ": plan("conv_transpose2d_add_act", given["z"], (1, 1), (u.shape[2], u.shape[3])),
    }


def _kernel(name: str, plans: Mapping[str, Mapping[str, Any]]) -> str:
    return (
        " and ".join(dict.fromkeys(str(plan["kernel"]) for plan in plans.values()))
        or f"{name}, one fused pass"
    )


def _reason(
    name: str,
    impl: str,
    first: Tensor,
    plans: Mapping[str, Mapping[str, Any]],
    chip: chips.Chip | None,
) -> str:
    if chip is not None and impl in ("auto", "triton") and _library.available:
        reasons = [f"GPU kernel, planned for {chip.name}"]
    else:
        reasons = [dispatch.reason(name, impl, first)]
    reasons += dict.fromkeys(str(plan["reason"]) for plan in plans.values() if plan.get("reason"))
    return "; ".join(reasons)
