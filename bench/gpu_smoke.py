"""``python -m bench.gpu_smoke [--short] [--device D]``: every operation once, forward and backward, on small odd shapes,
against float64 on the CPU.

Seconds of work: the first thing to run on a new GPU, and what compute-sanitizer watches (``--short``: fewer dtypes).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from bench.gpu_record import precision
from lmser.contest import relative_error
from lmser_kernels import (
    _library,
    add_act,
    conv2d_add_act,
    conv_transpose2d_add_act,
    max_pool2d_act,
    settle,
    settle_step,
    tied_conv2d,
)

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "tf32": 1e-2, "bfloat16": 4e-2, "float16": 1e-2}
Case = Callable[..., Sequence[Tensor]]


def _conv(*, stride: int, pool: int, kernel: int) -> Case:
    def case(x: Tensor, w: Tensor, add: Tensor, bias: Tensor, impl: str) -> Sequence[Tensor]:
        how: dict[str, Any] = {"stride": stride, "padding": kernel // 2, "pool": pool, "activation": "tanh"}
        return [conv2d_add_act(x, w, add, bias, impl=impl, **how)]

    return case


def _conv_transpose(*, stride: int, upsample: int, size: tuple[int, int]) -> Case:
    def case(z: Tensor, w: Tensor, add: Tensor, bias: Tensor, impl: str) -> Sequence[Tensor]:
        how: dict[str, Any] = {"stride": stride, "padding": 1, "output_size": size, "upsample": upsample}
        return [conv_transpose2d_add_act(z, w, add, bias, activation="tanh", impl=impl, **how)]

    return case


def _pair(x: Tensor, z: Tensor, w: Tensor, impl: str) -> Sequence[Tensor]:
    return tied_conv2d(x, z, w, stride=2, padding=1, impl=impl)


def _elementwise(y: Tensor, u: Tensor, bias: Tensor, impl: str) -> Sequence[Tensor]:
    return [add_act(y, u, bias, activation="sigmoid", impl=impl)]


def _pool(x: Tensor, impl: str) -> Sequence[Tensor]:
    return [max_pool2d_act(x, 3, 2, 1, activation="tanh", impl=impl)]


def _update(
    below: Tensor, above: Tensor, wb: Tensor, wa: Tensor, bias: Tensor, impl: str
) -> Sequence[Tensor]:
    return [settle_step(below, above, wb, wa, bias, padding=1, pool=2, activation="tanh", impl=impl)[0]]


def _solve(order: str, backward: str, pools: tuple[int, ...], sweeps: int) -> Case:
    def case(*tensors: Tensor, impl: str) -> Sequence[Tensor]:
        edges = len(pools)
        states, rest = list(tensors[: edges + 1]), tensors[edges + 1 :]
        weights, biases, evidence = list(rest[:edges]), list(rest[edges : 2 * edges + 1]), rest[-1]
        mask = torch.arange(evidence.shape[1], device=evidence.device).view(1, -1, 1, 1) % 2 == 0
        # Every sweep is made: of a network that contracts, so many are the fixed point.
        how: dict[str, Any] = {"order": order, "theta": 0.0, "max_steps": sweeps, "backward": backward}
        if backward == "implicit":
            how |= {"adjoint_theta": 0.0, "adjoint_max_steps": sweeps}
        found = settle(
            states, weights, biases, evidence=evidence, mask=mask.expand_as(evidence), pools=pools, activation="tanh",
            unconverged="ignore", impl=impl, **how,
        )  # fmt: skip
        return list(found.states)

    return case


def cases() -> dict[str, tuple[Case, list[tuple[int, ...]]]]:
    """Each operation with the shapes of its tensors; weights are those with four sizes and a kernel."""
    images = [(2, 3, 8, 6), (2, 5, 8, 6), (2, 9, 4, 3)]
    edges = [(5, 3, 3, 3), (9, 5, 3, 3)]
    dense, layers = [(6, 20, 1, 1), (6, 9, 1, 1), (6, 5, 1, 1)], [(9, 20, 1, 1), (5, 9, 1, 1)]
    solve = [*images, *edges, (3,), (5,), (9,), (2, 3, 8, 6)]
    vectors = [*dense, *layers, (20,), (9,), (5,), (6, 20, 1, 1)]
    return {
        "conv2d_add_act": (
            _conv(stride=1, pool=1, kernel=3),
            [(2, 3, 9, 7), (20, 3, 3, 3), (2, 20, 9, 7), (20,)],
        ),
        "conv2d_add_act, stride 2, pool 2, 5x5": (
            _conv(stride=2, pool=2, kernel=5), [(2, 17, 21, 18), (33, 17, 5, 5), (2, 33, 5, 5), (33,)],
        ),
        "conv_transpose2d_add_act": (
            _conv_transpose(stride=1, upsample=1, size=(9, 7)), [(2, 20, 9, 7), (20, 3, 3, 3), (2, 3, 9, 7), (3,)],
        ),
        "conv_transpose2d_add_act, stride 2, upsample 2": (
            _conv_transpose(stride=2, upsample=2, size=(9, 7)),
            [(2, 33, 5, 4), (33, 17, 3, 3), (2, 17, 18, 14), (17,)],
        ),
        "tied_conv2d, stride 2": (_pair, [(2, 17, 9, 7), (2, 33, 5, 4), (33, 17, 3, 3)]),
        "add_act": (_elementwise, [(3, 17, 9, 7), (3, 17, 9, 7), (17,)]),
        "max_pool2d_act": (_pool, [(2, 17, 9, 7)]),
        "settle_step": (_update, [(2, 5, 8, 6), (2, 9, 4, 3), (7, 5, 3, 3), (9, 7, 3, 3), (7,)]),
        "settle, up-down": (_solve("up_down", "bptt", (1, 2), 3), solve),
        "settle, odd-even": (_solve("odd_even", "bptt", (1, 2), 3), solve),
        "settle, fully connected": (_solve("up_down", "bptt", (1, 1), 4), vectors),
        "settle, implicit": (_solve("up_down", "implicit", (1, 1), 100), vectors),
    }  # fmt: skip


def drawn(name: str, kind: str) -> list[Tensor]:
    """The case's tensors in float64, of numbers that the kind holds."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in cases()[name][1]:
        scale = (
            0.5 / max(1, shape[1] * shape[2] * shape[3]) ** 0.5 if len(shape) == 4 and _kernel(shape) else 0.5
        )
        found.append(torch.randn(shape, generator=generator, dtype=torch.float64) * scale)
    return [t.to(_dtype(kind)).double() for t in found]


def work(name: str, kind: str, tensors: Sequence[Tensor], device: str, impl: str = "auto") -> list[Tensor]:
    """The case's results and gradients."""
    with precision("tf32" if kind == "tf32" else "ieee"):
        return _with_gradients(cases()[name][0], [t.to(device, _dtype(kind)) for t in tensors], impl)


def run(name: str, kind: str, device: str, impl: str = "auto") -> float:
    """The largest relative error of the case's results and gradients."""
    tensors = drawn(name, kind)
    found = work(name, kind, tensors, device, impl)
    return relative_error([t.cpu() for t in found], work(name, "float64", tensors, "cpu", "reference"))


def _dtype(kind: str) -> torch.dtype:
    found: torch.dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    return found


def _kernel(shape: Sequence[int]) -> bool:
    return shape[2] == shape[3] and shape[2] in (1, 3, 5) and shape[0] > 4


def _with_gradients(case: Case, tensors: Sequence[Tensor], impl: str) -> list[Tensor]:
    leaves = []
    for tensor in tensors:
        last = tensor.dim() == 4
        leaf = tensor.contiguous(memory_format=torch.channels_last) if last else tensor.clone()
        leaves.append(leaf.detach().requires_grad_())
    results = list(case(*leaves, impl=impl))
    # Cotangents that differ from place to place, the same on every device.
    grads = [
        torch.linspace(-1, 1, r.numel(), dtype=torch.float64).view(r.shape).to(r.device, r.dtype)
        for r in results
    ]
    found = torch.autograd.grad(results, leaves, grads, allow_unused=True, materialize_grads=True)
    return [*(r.detach() for r in results), *found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and compare."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_smoke", description=__doc__)
    parser.add_argument("--short", action="store_true", help="float32 and bfloat16 only")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--one", help="the operation of this name")
    parser.add_argument(
        "--jobs", type=int, default=1, help="operations at a time, each in a process of its own"
    )
    options = parser.parse_args(arguments)
    if not _library.available:  # every operation would run its reference, and agree with it
        parser.error(f"there is nothing to check: {_library.error}")
    if _library.triton_error is not None and options.device != "cpu":
        parser.error(f"there is nothing to check: {_library.triton_error}")
    names = [name for name in cases() if options.only in name and options.one in (None, name)]
    if options.jobs > 1:
        return _apart(names, options)
    wrong = 0
    for name in names:
        for kind in ("float32", "bfloat16") if options.short else TOLERANCE:
            try:
                error = run(name, kind, options.device)
                said, good = f"{error:.1e}", error < TOLERANCE[kind]
            except Exception as problem:  # the others still run
                said, good = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}", False
            wrong += not good
            print(f"{'ok   ' if good else 'WRONG'} {name}, {kind}: {said}", flush=True)
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"{wrong} wrong" if wrong else "all agree")
    return bool(wrong)


def _apart(names: Sequence[str], options: argparse.Namespace) -> int:
    """After an illegal access, or a kernel that does not end, nothing more runs in a process: each has its own."""

    def run_one(name: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "bench.gpu_smoke", "--device", options.device, "--one", name]
        command += ["--short"] if options.short else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=60,
                env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired as slow:
            said = (
                slow.stdout.decode(errors="replace") if isinstance(slow.stdout, bytes) else slow.stdout or ""
            )
            return 1, f"{said}WRONG {name}: not finished in 60 s\n"
        return done.returncode, done.stdout if done.returncode in (
            0,
            1,
        ) else f"{done.stdout}WRONG {name}: ended with {done.returncode}\n"

    with ThreadPoolExecutor(options.jobs) as pool:
        codes = []
        for code, said in pool.map(run_one, names):
            codes.append(code)
            print(said, end="", flush=True)
    print(f"{sum(code != 0 for code in codes)} of {len(codes)} operations wrong")
    return any(codes)


if __name__ == "__main__":
    sys.exit(main())
