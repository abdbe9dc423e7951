"""Triton kernels compiled for GPUs that are not here, and what their binaries say.

`Compiler` takes the way of Triton's own JIT, with a driver that only names the target: the specialisation of every
argument (1, divisible by 16, alignment, 64 bit) is the JIT's by construction, and so is the key in Triton's cache, so
that what is compiled here is found there by a process with the GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from lmser_kernels.gpu.launch import Launch, interpreting

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# Shared memory that a block may have, bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
COUNTED = {
    "HGMMA": r"HGMMA",
    "HMMA": r"HMMA",
    "DMMA": r"DMMA",
    "UTCMMA": r"UTC\w*MMA",
    "async copies": r"(?:LDGSTS|UTMALDG|UBLKCP)",
    "FFMA": r"FFMA2?",
    "local": r"(?:LDL|STL)",
}
MATRIX = ("HGMMA", "HMMA", "DMMA", "UTCMMA")


@dataclass(frozen=True)
class Binary:
    """What the compiled kernel says of itself. `shared` in bytes of a block, `stack` of a thread."""

    name: str
    arch: int
    registers: int
    stack: int
    shared: int
    counts: Mapping[str, int]
    means_matrix: bool

    def problems(self) -> list[str]:
        """What must not be: spills, more shared memory than a block may have, products that miss the tensor cores."""
        found = []
        if self.stack or self.counts["local"]:
            found.append(
                f"local memory: {self.stack} bytes a thread, {self.counts['local']} loads and stores"
            )
        limit = SHARED_LIMIT[self.arch]
        if self.shared > limit:
            found.append(f"shared memory: {self.shared} bytes, a block may have {limit}")
        if self.means_matrix and not any(self.counts[kind] for kind in MATRIX):
            found.append("no matrix instruction")
        return found


class _Target:
    """As much of a Triton driver as compiling asks for. Its devices are numbered by their compute capability."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


class Compiler:
    """Compiles for compute capability `arch`. In a process that launches nothing itself: Triton's driver is replaced."""

    def __init__(self, arch: int) -> None:
        if interpreting():
            raise RuntimeError("TRITON_INTERPRET is set: kernels of this process are not compiled")
        self.arch, self.target = arch, _Target(arch)

    def key(self, launch: Launch) -> tuple[Any, ...]:
        """Equal for launches that are the same compiled kernel."""
        driver.set_active(self.target)
        *_, binder = launch.kernel.device_caches[self.arch]
        _, specialisation, options = binder(**self._arguments(launch))
        constants = tuple(
            repr(launch.arguments.get(p.name, p.default)) for p in launch.kernel.params if p.is_constexpr
        )
        return launch.kernel.cache_key, repr(specialisation), constants, repr(sorted(options.items()))

    def compile(self, launch: Launch) -> Any:
        """Triton's compiled kernel, from its cache where that has it."""
        driver.set_active(self.target)
        return launch.kernel.run(grid=launch.grid, warmup=True, **self._arguments(launch))

    def read(self, launch: Launch, brief: bool = False) -> Binary:
        """Compiles the launch and reads the binary.

        `brief`: instructions are only counted where matrix ones are meant, or where there is local memory: taking the
        binary apart is most of the time.
        """
        kernel = self.compile(launch)
        matrix = means_matrix(kernel.asm["ttir"], self.arch)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            registers, stack = usage(_dumped("--dump-resource-usage", file.name))
            counted = matrix or stack or not brief
            counts = count(_dumped("--dump-sass", file.name)) if counted else {"local": 0}
        return Binary(
            launch.kernel.__name__,
            self.arch,
            registers,
            stack,
            # Triton's figure; what the tool calls SHARED is the system's own KB.
            int(kernel.metadata.shared),
            counts,
            matrix,
        )

    @staticmethod
    def _arguments(launch: Launch) -> dict[str, Any]:
        return {
            **launch.arguments, "num_warps": launch.num_warps, "num_stages": launch.num_stages, **launch.options,
        }  # fmt: skip


def _dumped(what: str, file: str) -> str:
    command = [str(TOOLS / "cuobjdump"), what, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage(text: str) -> tuple[int, int]:
    """(registers, bytes of local memory) of a thread, from what cuobjdump says of resource usage."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise ValueError("cuobjdump said nothing of registers")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def count(text: str) -> dict[str, int]:
    """How often each kind of instruction in `COUNTED` stands in the assembly."""
    return {name: len(re.findall(rf"\b{what}\b", text)) for name, what in COUNTED.items()}


def means_matrix(ttir: str, arch: int) -> bool:
    """Whether a product in the kernel is one that this GPU's matrix instructions make, by dtype and precision."""
    for line in ttir.splitlines():
        if "tt.dot " not in line:
            continue
        operand = re.search(r": tensor<[\dx]+x(\w+)", line)
        kind = operand.group(1) if operand else ""
        if kind in ("bf16", "f16") or "inputPrecision = tf32" in line:
            return True
        # On sm_100 Triton makes float64 products by plain multiply-adds.
        if kind == "f64" and arch < 100:
            return True
    return False
