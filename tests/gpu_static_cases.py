"""Kernels with one fault each, compiled and read: run by test_gpu_static in a process whose kernels are not interpreted."""

# mypy: allow-untyped-defs

from __future__ import annotations

import json
import sys

import torch
import triton
import triton.language as tl

from bench.gpu_compile import Compiler
from lmser_kernels.gpu.launch import launch, recording


@triton.jit
def product(a, b, c, k, factor, PRECISION: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr):
    rows, steps = tl.arange(0, SIZE), tl.arange(0, STEP)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for first in range(0, k, STEP):
        x = tl.load(a + rows[:, None] * k + first + steps[None, :])
        y = tl.load(b + (first + steps)[:, None] * SIZE + rows[None, :])
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(c + rows[:, None] * SIZE + rows[None, :], total * factor)


@triton.jit
def many_values(a, c, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    first = tl.load(a + at)
    second = tl.load(a + at + SIZE)
    third = tl.load(a + at + 2 * SIZE)
    for turn in range(100):
        first, second, third = second * third + turn, first + third * second, third * first
    tl.store(c + at, first + second * third)


def main() -> None:
    arch = int(sys.argv[1])
    compiler = Compiler(arch)

    def products(dtype: torch.dtype, precision: str, size: int, step: int, k: int = 256, stages: int = 3):
        a, b = (torch.empty(1 << 16, dtype=dtype, device="meta") for _ in range(2))
        c = torch.empty(1 << 16, dtype=torch.float32, device="meta")
        with recording(arch) as made:
            launch(
                product, (1,), num_stages=stages, a=a, b=b, c=c, k=k, factor=0.5, PRECISION=precision, SIZE=size,
                STEP=step,
            )  # fmt: skip
        return made.launches[0]

    values = torch.empty(1 << 20, dtype=torch.float32, device="meta")
    with recording(arch) as made:
        launch(many_values, (1,), num_warps=1, a=values, c=values, SIZE=4096)
    launches = {
        "half": products(torch.bfloat16, "ieee", 64, 32),
        "tf32": products(torch.float32, "tf32", 64, 32),
        "plain": products(torch.float32, "ieee", 64, 32),
        "too much shared memory": products(torch.float32, "tf32", 128, 128, stages=4),
        "spills": made.launches[0],
    }
    found = {}
    for name, what in launches.items():
        binary = compiler.read(what)
        found[name] = {
            "problems": binary.problems(), "counts": dict(binary.counts), "registers": binary.registers,
            "means_matrix": binary.means_matrix,
        }  # fmt: skip
    keys = [compiler.key(products(torch.float32, "tf32", 64, 32, k)) for k in (256, 512, 264, 1, 1 << 40)]
    found["same kernel"] = [keys[0] == key for key in keys]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
