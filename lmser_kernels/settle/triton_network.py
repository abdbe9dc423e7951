"""A network as the Triton kernels of settling see it: dense channels-last states, packed weights, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu.launch import arch_of, dot_precision, interpreting, recording_now
from lmser_kernels.gpu.tiles import Tile, choose

Size = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """Sizes of a state, and the window of the edge above it (1 where it does not pool)."""

    images: int
    channels: int
    height: int
    width: int
    window: Size = (1, 1)

    @property
    def values(self) -> int:
        return self.images * self.channels * self.height * self.width

    @property
    def pooled(self) -> Layer:
        """The layer in windows: what goes up from it and comes down to it."""
        height, width = self.height // self.window[0], self.width // self.window[1]
        return Layer(self.images, self.channels, height, width)

    @property
    def windows(self) -> int:
        return self.images * (self.height // self.window[0]) * (self.width // self.window[1])

    @property
    def pools(self) -> bool:
        return self.window != (1, 1)

    def empty(self, like: Tensor) -> Tensor:
        n, c, h, w = self.images, self.channels, self.height, self.width
        return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)

    def zeros(self, like: Tensor) -> Tensor:
        n, c, h, w = self.images, self.channels, self.height, self.width
        return like.new_zeros((n, h, w, c)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Shape:
    """What a drive is computed from: the neighbour's layer, after pooling, the kernel and its padding."""

    layer: Layer
    kernel: Size
    padding: Size

    @property
    def summed(self) -> int:
        return self.layer.channels * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Source:
    """One direction of an edge, and the weight packed for it."""

    shape: Shape
    weight: Tensor  # (channels here, kh, kw, channels there), dense

    @classmethod
    def of(cls, layer: Layer, weight: Tensor, padding: Sequence[int]) -> Source:
        kernel = (weight.shape[1], weight.shape[2])
        return cls(Shape(layer, kernel, (padding[0], padding[1])), weight)


@dataclass(frozen=True)
class Edge:
    """`up`: what the upper layer takes from the lower; `down`: the lower from the upper."""

    up: Source
    down: Source


def dense(tensor: Tensor) -> Tensor:
    """`tensor` as dense channels-last memory: itself, or a copy."""
    return tensor.contiguous(memory_format=torch.channels_last)


def up_weight(weight: Tensor) -> Tensor:
    """Copied once a solve, beside many sweeps: every tile of it then is lines of memory, and a step of the sum lies
    densely, as the matrix units take it."""
    return weight.permute(0, 2, 3, 1).contiguous()


def down_weight(weight: Tensor) -> Tensor:
    return weight.permute(1, 2, 3, 0).contiguous()


class Network:
    """Layers and edges of a solve. `adjoint`: edges carry gradients of drives back, with their weights exchanged."""

    def __init__(
        self,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        reverse: Sequence[Tensor],
        pools: Sequence[int],
        padding: Sequence[int],
        adjoint: bool = False,
    ) -> None:
        first = states[0]
        if first.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"states must be float32 or float64; got {first.dtype}")
        self.like = first
        self.top = len(weights)
        self.layers = []
        for i, state in enumerate(states):
            n, c, h, w = state.shape
            window = (pools[2 * i], pools[2 * i + 1]) if i < self.top else (1, 1)
            self.layers.append(Layer(n, c, h, w, window))
        self.edges = []
        for i, weight in enumerate(weights):
            back = reverse[i] if reverse else weight
            up, down = (back, weight) if adjoint else (weight, back)
            margin = (padding[2 * i], padding[2 * i + 1])
            below, above = self.layers[i].pooled, self.layers[i + 1]
            self.edges.append(
                Edge(Source.of(below, up_weight(up), margin), Source.of(above, down_weight(down), margin))
            )

    def below(self, layer: int) -> Source | None:
        return self.edges[layer - 1].up if layer > 0 else None

    def above(self, layer: int) -> Source | None:
        return self.edges[layer].down if layer < self.top else None


@dataclass(frozen=True)
class Tiling:
    """How a layer is cut: how it is launched, and what the kernels are told of it."""

    grid: int
    tiles: int  # of rows
    warps: int
    stages: int
    arguments: dict[str, object]


def tiling(name: str, layer: Layer, below: Source | None, above: Source | None, like: Tensor) -> Tiling:
    """That of an update of `layer`, whose drives come from `below` and `above` (None: not computed).

    Asked before every launch: whoever measures tiles tells launches apart by what was asked last.
    """
    precision = dot_precision(like.dtype)
    lower, upper = (None if s is None else s.shape for s in (below, above))
    summed = 0 if lower is None else lower.summed * layer.window[0] * layer.window[1]
    summed = max(16, summed + (0 if upper is None else upper.summed))
    tile = choose(name, max(1, layer.windows), layer.channels, summed, like.dtype, precision, arch_of(like))
    # In the interpreter tiles run one after another, and what takes time is how many they are.
    serial = interpreting() and not recording_now()
    if serial:
        tile = Tile(_power(layer.windows, 256), _power(layer.channels, 64), _power(summed, 128), 4, 1)
    # Beside the sum that is made there are that from above and that over the window, or f' and the gradients' own sums;
    # of float64 each takes twice the registers.
    most = 64 * 64 if layer.pools or name == "settle_pull" else 128 * 64
    most = 256 * 64 if serial else most * 4 // like.element_size()
    if precision == "tf32x3" and not serial:  # every operand is held in two parts
        most //= 2
    return _cut(layer, lower, upper, like.element_size(), precision, tile, most)


def _power(size: int, most: int) -> int:
    return max(16, min(most, int(triton.next_power_of_2(size))))


@lru_cache(maxsize=1024)
def _cut(
    layer: Layer, below: Shape | None, above: Shape | None, itemsize: int, precision: str, tile: Tile, most: int
) -> Tiling:  # fmt: skip
    rows, columns = tile.m, tile.n
    while rows * columns > most:
        rows, columns = (rows // 2, columns) if rows > columns else (rows, columns // 2)
    tiles = triton.cdiv(layer.windows, rows)
    windows = layer.pooled
    arguments: dict[str, object] = {
        "images": windows.images, "height": windows.height, "width": windows.width, "channels": windows.channels,
        "WH": layer.window[0], "WW": layer.window[1], "ALIGN": _aligned(layer.channels, itemsize),
        **_source("UP", "below", below, tile.k, itemsize), **_source("DOWN", "above", above, tile.k, itemsize),
        "PRECISION": precision, "BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": tile.k,
    }  # fmt: skip
    # More registers of sums than 16 a thread, of float64 than 8, and the epilogue does not fit in beside them.
    warps = 8 if rows * columns * itemsize >= (4 if itemsize == 4 else 2) * 64 * 64 else 4
    return Tiling(tiles * triton.cdiv(layer.channels, columns), tiles, warps, tile.stages, arguments)


def _source(name: str, place: str, shape: Shape | None, depth: int, itemsize: int) -> dict[str, object]:
    if shape is None:
        shape = Shape(Layer(0, 1, 0, 0), (1, 1), (0, 0))
    (kh, kw), layer = shape.kernel, shape.layer
    # Counted through, taps and channels fill every step of the sum but the last; a step within one tap needs no division.
    apart = kh * kw * triton.cdiv(layer.channels, depth)
    together = triton.cdiv(kh * kw * layer.channels, depth)
    return {
        f"{place}_h": layer.height, f"{place}_w": layer.width, f"{place}_c": layer.channels,
        f"PAD_{name}_H": shape.padding[0], f"PAD_{name}_W": shape.padding[1], f"KH_{name}": kh, f"KW_{name}": kw,
        f"FLAT_{name}": layer.channels if 8 * apart > 9 * together else 0,
        f"ALIGN_{name}": _aligned(layer.channels, itemsize),
    }  # fmt: skip


def _aligned(channels: int, itemsize: int) -> int:
    """The power of two that divides `channels`, as far as it makes loads wider: 16 bytes."""
    most = 16 // itemsize
    while channels % most:
        most //= 2
    return most
