"""Which tiles a matrix-product kernel may take, and which of them a small model of the GPU expects to be fastest.

The model counts cycles of one multiprocessor: the tiles that fall to it, times the steps of each tile's sum, times what
bounds a step: the products, or the operands on their way from L2. It knows padding (a tile of 128 rows for 100), the
last wave, and the latency of a step that nothing hides; its constants are an H200's, from its data sheet and KERNELS'
measured rates, and only their ratios matter. It is a prediction: measured tiles come before it (`tile_table`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

# Kernels that split their sum over the blocks that a GPU has room for, so that few tiles do not leave it idle.
SPLIT = ("weight_grad",)
# Kernels that cut a long sum into pieces where few tiles would leave much of the GPU idle (`split`).
CUT = ("conv_up", "conv_down")
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}
_SHARED_KB = {80: 163, 90: 227, 100: 227}
_OTHER_SHARED_KB = 99  # the smallest of the later ones (sm_86, 89, 120)
_L2_BYTES_PER_CYCLE = 40.0
_STEP_LATENCY = 900.0  # cycles from asking for an operand to having it, shared among a pipeline's stages
_TILE_OVERHEAD = 1500.0  # prologue and epilogue of a tile
_SECOND_LAUNCH = 3000.0
_REGISTERS = 65536


@dataclass(frozen=True)
class Tile:
    """Block sizes of the output and of one step of the sum, warps of a block, stages of its load pipeline."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Problem:
    """`(m, k) @ (k, n)` in `kernel`; `precision` is `tl.dot`'s, which only float32 has a choice of."""

    kernel: str
    m: int
    n: int
    k: int
    dtype: torch.dtype
    precision: str
    arch: int

    @property
    def kind(self) -> str:
        """The dtype, and of float32 how products are made."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}/{self.precision}" if self.dtype == torch.float32 else name


def shared_limit(arch: int) -> int:
    """Bytes of shared memory that a block may have."""
    return 1024 * _SHARED_KB.get(arch, _OTHER_SHARED_KB)


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Bytes of the operands in flight."""
    return tile.stages * (tile.m + tile.n) * tile.k * itemsize


def _power(value: int, least: int = 16) -> int:
    return max(least, 1 << max(0, value - 1).bit_length())


# (m, n, warps); 8 warps keep the sums of a 128x128 tile at 64 registers a thread.
_NARROW = (
    (128, 128, 8),
    (128, 64, 4),
    (64, 128, 4),
    (64, 64, 4),
    (128, 32, 4),
    (64, 32, 4),
    (32, 64, 4),
    (128, 16, 4),
    (64, 16, 4),
    (32, 32, 4),
    (16, 64, 4),
    (16, 128, 4),
    (32, 16, 4),
    (16, 32, 4),
    (16, 16, 4),
)
# Of float64 and of float32 without a single tensor-core product: more registers a sum, or three products.
_WIDE = tuple(entry for entry in _NARROW if entry[0] <= 64 and entry[1] <= 64)


def candidates(problem: Problem) -> tuple[Tile, ...]:
    """Every tile that the kernel may take for the problem, none larger than the problem asks for."""
    wide = _is_wide(problem)
    itemsize = problem.dtype.itemsize
    largest_k = _power(problem.k)
    steps = {16 if wide else 32 if itemsize == 4 else 64}
    if not wide:
        steps.add(32)
    limit = shared_limit(problem.arch)
    found = []
    for m, n, warps in _WIDE if wide else _NARROW:
        if m > _power(problem.m) or n > _power(problem.n):
            continue
        for step in sorted(steps, reverse=True):
            stages = 2 if wide else 3 if m * n >= 64 * 64 else 4
            tile = Tile(m, n, min(step, largest_k), warps, stages)
            while tile.stages > 1 and shared_bytes(tile, itemsize) > limit - 1024:
                tile = Tile(tile.m, tile.n, tile.k, warps, tile.stages - 1)
            if tile not in found:
                found.append(tile)
    return tuple(found)


def _is_wide(problem: Problem) -> bool:
    return problem.dtype == torch.float64 or (
        problem.dtype == torch.float32 and problem.precision in ("ieee", "tf32x3")
    )


def _products_per_cycle(problem: Problem, tile: Tile) -> float:
    """Multiply-adds of one multiprocessor."""
    if problem.dtype == torch.float64:
        return 64.0
    if problem.dtype == torch.float32:
        if problem.precision == "ieee":
            return 128.0
        rate = 1024.0 if problem.precision == "tf32" else 1024.0 / 3
    else:
        rate = 2048.0
    if problem.arch < 90:
        return rate / 2
    # Hopper's own instruction has 64 rows; smaller tiles take the older one.
    return rate if tile.m >= 64 else 0.6 * rate


def cycles(problem: Problem, tile: Tile) -> float:
    """What the model expects of one multiprocessor."""
    itemsize = problem.dtype.itemsize
    tiles = math.ceil(problem.m / tile.m) * math.ceil(problem.n / tile.n)
    steps = float(math.ceil(problem.k / tile.k))
    processors = MULTIPROCESSORS.get(problem.arch, 132)
    overhead = 0.0
    if problem.kernel.startswith(SPLIT):
        # As many blocks as there is room for share the steps of all tiles.
        mine, steps = 1.0, max(1.0, tiles * steps / processors)
    else:
        parts = split(tiles, int(steps), processors) if problem.kernel in CUT else 1
        mine, steps = float(max(1, math.ceil(tiles * parts / processors))), steps / parts
        overhead += _SECOND_LAUNCH if parts > 1 else 0.0
    products = tile.m * tile.n * tile.k / _products_per_cycle(problem, tile)
    operands = (tile.m + tile.n) * tile.k * itemsize / _L2_BYTES_PER_CYCLE
    together = min(mine, _resident(tile, itemsize, problem.arch))
    latency = _STEP_LATENCY / (tile.stages * together)
    return mine * (steps * max(products, operands, latency) + _TILE_OVERHEAD) + overhead


def split(tiles: int, steps: int, processors: int) -> int:
    """Pieces to cut a sum of `steps` into, whose parts a second kernel adds: 1 where that would save little."""
    if 2 * tiles > processors or steps < 24:
        return 1
    return max(1, min(processors // max(tiles, 1), steps // 8))


def _resident(tile: Tile, itemsize: int, arch: int) -> float:
    """Blocks that a multiprocessor holds at once."""
    by_memory = shared_limit(arch) // max(1, shared_bytes(tile, itemsize))
    by_registers = _REGISTERS // (tile.m * tile.n + 96 * 32 * tile.warps)
    return float(max(1, min(by_memory, by_registers)))


@lru_cache(maxsize=4096)
def predicted(problem: Problem) -> Tile:
    """The candidate with the fewest cycles; of equals the larger."""
    return min(candidates(problem), key=lambda tile: (cycles(problem, tile), -tile.m * tile.n))
