"""One neuron update from both neighbours, launched: the operator `settle_step` in Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmser_kernels.gpu.launch import launch
from lmser_kernels.settle.triton_network import (
    Layer,
    Source,
    dense,
    down_weight,
    tiling,
    up_weight,
)
from lmser_kernels.settle.triton_update import update_kernel
from lmser_kernels.tied_conv.triton_windows import sum_windows

Maybe = Tensor | None
Ints = Sequence[int]


def update(
    layer: Layer,
    like: Tensor,
    *,
    h: Maybe = None,
    below: Maybe = None,
    from_below: Source | None = None,
    above: Maybe = None,
    from_above: Source | None = None,
    activation: str = "identity",
    slope: float = 0.0,
    per_sample: bool = False,
    **others: Maybe,
) -> None:
    """Launches `update_kernel` for `layer`: every tensor dense, `below` pooled, those left out None."""
    cut = tiling("settle_update", layer, from_below, from_above, like)
    given: dict[str, Maybe] = dict.fromkeys(_OPTIONAL)
    given.update(others)
    launch(
        update_kernel, (cut.grid,), num_warps=cut.warps, num_stages=cut.stages, h=h, below=below,
        w_below=None if from_below is None else from_below.weight, above=above,
        w_above=None if from_above is None else from_above.weight, **given, **cut.arguments,
        PER_SAMPLE=per_sample, ACT=activation, SLOPE=slope,
    )  # fmt: skip


_OPTIONAL = (
    "bias", "add", "up_kept", "down_kept", "up_out", "down_out", "evidence", "hold", "value", "value_before",
    "previous", "rounded", "pooled", "change", "stop", "limit", "all_held", "skip",
)  # fmt: skip


def bits(changes: Tensor) -> Tensor:
    """The magnitudes as integers, for their maxima."""
    return changes.view(torch.int64 if changes.dtype == torch.float64 else torch.int32)


def settle_step(
    below: Maybe,
    above: Maybe,
    weight_below: Maybe,
    weight_above: Maybe,
    bias: Maybe,
    evidence: Maybe,
    hold: Maybe,
    previous: Maybe,
    padding: Ints,
    padding_above: Ints,
    pool: Ints,
    upsample: Ints,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """`h = hold evidence + (1 - hold) f(y + u + bias)` and `change = max|h - previous|`, in one launch.

    A pooled source is pooled first: read once, where the nine taps of the kernel would read it again and again.
    """
    from_below = from_above = None
    x = z = None
    layer: Layer | None = None
    if below is not None and weight_below is not None:
        n, c, height, width = below.shape
        given = Layer(n, c, height, width, (pool[0], pool[1]))
        x = dense(below)
        if given.pools:
            x = sum_windows(x, pool, mean=True)
        from_below = Source.of(given.pooled, up_weight(weight_below), (padding[0], padding[1]))
        kh, kw = from_below.shape.kernel
        source = given.pooled
        layer = Layer(
            n, weight_below.shape[0], source.height + 2 * padding[0] - kh + 1,
            source.width + 2 * padding[1] - kw + 1, (upsample[0], upsample[1]),
        )  # fmt: skip
    if above is not None and weight_above is not None:
        n, c, height, width = above.shape
        z = dense(above)
        from_above = Source.of(
            Layer(n, c, height, width), down_weight(weight_above), (padding_above[0], padding_above[1])
        )
        kh, kw = from_above.shape.kernel
        layer = Layer(
            n, weight_above.shape[1], (height - 1 - 2 * padding_above[0] + kh) * upsample[0],
            (width - 1 - 2 * padding_above[1] + kw) * upsample[1], (upsample[0], upsample[1]),
        )  # fmt: skip
    else:
        assert layer is not None
        layer = Layer(layer.images, layer.channels, layer.height, layer.width)
    first = x if x is not None else z
    assert first is not None
    if first.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"states must be float32 or float64; got {first.dtype}")
    h = layer.empty(first)
    change = first.new_full((), torch.inf) if previous is None else first.new_zeros(())
    update(
        layer, first, h=h, below=x, from_below=from_below, above=z, from_above=from_above, activation=activation,
        slope=slope, bias=None if bias is None else bias.contiguous(),
        evidence=None if evidence is None else dense(evidence), hold=None if hold is None else dense(hold),
        previous=None if previous is None else dense(previous), change=None if previous is None else bits(change),
    )  # fmt: skip
    return h, change
