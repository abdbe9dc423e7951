"""Which kernel a call would take, why, and what it costs: nothing is run but the argument checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lmser_kernels import _library, dispatch, explain_gpu
from lmser_kernels.add_act.api import add_act, pull_back
from lmser_kernels.arguments import pair
from lmser_kernels.explain_networks import explain_reflect, explain_settle
from lmser_kernels.explanation import Explanation, in_tiles, kernel_of, rates, reason_for
from lmser_kernels.max_pool.api import max_pool2d_act, max_unpool2d
from lmser_kernels.max_pool.reference import windows
from lmser_kernels.reflect.api import reflect
from lmser_kernels.reflect.loss import reflect_loss
from lmser_kernels.settle.api import settle
from lmser_kernels.tied_conv.api import conv2d_add_act, conv_transpose2d_add_act, tied_conv2d

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add_act": add_act,
    "conv2d_add_act": conv2d_add_act,
    "conv_transpose2d_add_act": conv_transpose2d_add_act,
    "max_pool2d_act": max_pool2d_act,
    "max_unpool2d": max_unpool2d,
    "pull_back": pull_back,
    "reflect": reflect,
    "reflect_loss": reflect_loss,
    "settle": settle,
    "tied_conv2d": tied_conv2d,
}
_KERNEL_OF = {"pull_back": "add_act"}  # the derivative that add_act's backward computes


def explain(
    operation: str | Callable[..., Any], *args: Any, on: str | None = None, **kwargs: Any
) -> Explanation:
    """Explains the call `operation(*args, **kwargs)` of one of this package's operations (or its name).

    on: a kind of GPU (a name of `lmser_kernels.chips.CHIPS`): what the call would take there, wherever the tensors
        are; there need be no GPU.

    The arguments are checked as the call would check them and raise the same errors. Of `settle`, whose number of
    sweeps only the solve tells, flops, bytes and floor are those of one sweep: every drive once, every state read and
    written once, the weights read once. Of `reflect` and `reflect_loss`, bytes are those of arguments and results, and
    flops those of the passes without their gradients.

        print(explain(conv2d_add_act, x, weight, stride=2, padding=1))
        print(explain(conv2d_add_act, x, weight, stride=2, padding=1, on="H200"))
    """
    name = operation if isinstance(operation, str) else getattr(operation, "__name__", repr(operation))
    if name not in _OPERATIONS or (callable(operation) and operation is not _OPERATIONS[name]):
        raise ValueError(f"operation must be one of {', '.join(_OPERATIONS)}; got {operation!r}")
    function = _OPERATIONS[name]
    chip = None if on is None else explain_gpu.known(on)
    if name == "settle":
        return explain_settle(inspect.signature(settle).bind(*args, **kwargs), chip)
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if name in ("reflect", "reflect_loss"):
        return explain_reflect(name, given, chip)
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
    computed = outputs[0].dtype
    if chip is None and first.is_cpu and not in_tiles(plans):
        computed = torch.promote_types(computed, torch.float32)
    peak, bandwidth, source = rates(computed, threads, first.device, chip)
    return Explanation(
        operation=name,
        implementation=dispatch.name_of(operators),
        kernel="eager PyTorch" if operators is None else kernel_of(name, plans),
        reason=reason_for(_KERNEL_OF.get(name, name), given["impl"], first, plans, chip),
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
