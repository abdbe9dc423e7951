"""A network as the Triton kernels of settling see it: dense channels-last states, packed weights, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from lmser_kernels.gpu.launch import arch_of, dot_precision, interpreting, recording_now
from lmser_kernels.gpu.tiles import choose

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
    def pools(self) -> bool:
        return self.window != (1, 1)

    def empty(self, like: Tensor) -> Tensor:
        n, c, h, w = self.images, self.channels, self.height, self.width
        return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)

    def zeros(self, like: Tensor) -> Tensor:
        n, c, h, w = self.images, self.channels, self.height, self.width
        return like.new_zeros((n, h, w, c)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Source:
    """One direction of an edge: the neighbour that a drive is computed from, and the weight packed for it."""

    layer: Layer  # of the neighbour, after pooling
    weight: Tensor  # (channels here, kh, kw, channels there), dense
    padding: Size

    @property
    def kernel(self) -> Size:
        return self.weight.shape[1], self.weight.shape[2]

    @property
    def summed(self) -> int:
        return self.layer.channels * self.kernel[0] * self.kernel[1]


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
                Edge(Source(below, up_weight(up), margin), Source(above, down_weight(down), margin))
            )

    def below(self, layer: int) -> Source | None:
        return self.edges[layer - 1].up if layer > 0 else None

    def above(self, layer: int) -> Source | None:
        return self.edges[layer].down if layer < self.top else None


@dataclass(frozen=True)
class Tiling:
    """How a layer is cut: the kernels' constants, and the launch."""

    grid: int
    tiles: int  # of rows
    warps: int
    stages: int
    constants: dict[str, object]


def tiling(name: str, layer: Layer, below: Source | None, above: Source | None, like: Tensor) -> Tiling:
    """The tile of an update of `layer`, whose drives come from `below` and `above` (None: not computed)."""
    precision, arch = dot_precision(like.dtype), arch_of(like)
    windows, pixels = layer.pooled, layer.window[0] * layer.window[1]
    count = windows.images * windows.height * windows.width
    summed = (below.summed * pixels if below is not None else 0) + (above.summed if above is not None else 0)
    tile = choose(name, max(count, 1), layer.channels, max(summed, 16), like.dtype, precision, arch)
    rows, columns, depth = tile.m, tile.n, tile.k
    # Beside the sum that is made there are that from above and that over the window.
    while rows * columns > (64 * 64 if layer.pools else 128 * 64):
        rows, columns = (rows // 2, columns) if rows > columns else (rows, columns // 2)
    if interpreting() and not recording_now():
        # Tiles run one after another there, and what takes time is how many they are.
        rows, columns, depth = _power(count, 256), _power(layer.channels, 64), _power(summed, 128)
    tiles = triton.cdiv(count, rows)
    constants: dict[str, object] = {
        "PRECISION": precision, "BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": depth, "WH": layer.window[0],
        "WW": layer.window[1], "ALIGN": _aligned(layer.channels, like), **_source("UP", below, depth, like),
        **_source("DOWN", above, depth, like),
    }  # fmt: skip
    warps = 8 if rows * columns >= 64 * 64 else 4
    return Tiling(tiles * triton.cdiv(layer.channels, columns), tiles, warps, tile.stages, constants)


def _power(size: int, most: int) -> int:
    return max(16, min(most, int(triton.next_power_of_2(size))))


def sizes(layer: Layer, below: Source | None, above: Source | None) -> dict[str, int]:
    """The kernels' run-time sizes."""
    windows, none = layer.pooled, Layer(0, 0, 0, 0)
    b, a = (s.layer if s is not None else none for s in (below, above))
    return {
        "images": windows.images, "height": windows.height, "width": windows.width, "channels": windows.channels,
        "below_h": b.height, "below_w": b.width, "below_c": b.channels,
        "above_h": a.height, "above_w": a.width, "above_c": a.channels,
    }  # fmt: skip


def _source(name: str, source: Source | None, depth: int, like: Tensor) -> dict[str, object]:
    kernel, padding, channels = (1, 1), (0, 0), 16
    if source is not None:
        kernel, padding, channels = source.kernel, source.padding, source.layer.channels
    taps = kernel[0] * kernel[1]
    # Counted through, taps and channels fill every step of the sum but the last; a step within one tap needs no division.
    apart = taps * triton.cdiv(channels, depth)
    together = triton.cdiv(taps * channels, depth)
    return {
        f"PAD_{name}_H": padding[0], f"PAD_{name}_W": padding[1], f"KH_{name}": kernel[0], f"KW_{name}": kernel[1],
        f"FLAT_{name}": channels if 8 * apart > 9 * together else 0, f"ALIGN_{name}": _aligned(channels, like),
    }  # fmt: skip


def _aligned(channels: int, like: Tensor) -> int:
    """The power of two that divides `channels`, as far as it makes loads wider: 16 bytes."""
    most = 16 // like.element_size()
    while channels % most:
        most //= 2
    return most
