"""States that are only read through their means over windows are not written by `settle` where nothing keeps them: to the
bit what comes of writing them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lmser_kernels import settle

pytestmark = pytest.mark.native


# (channels, size, windows, kernel, batch): units of whole images and of rows, rows that windows do not divide, blocks of
# channels shared by threads, no drive that is filtered, a pooled visible layer, three windows.
NETWORKS = {
    "rows": ((3, 24, 16), 96, (1, 2), 3, 2),
    "windows of three": ((3, 24, 16), 96, (1, 3), 3, 2),
    "of four": ((2, 40, 64), 32, (1, 4), 3, 3),
    "one image": ((5, 128, 160), 8, (1, 2), 3, 1),
    "direct": ((3, 6, 5), 12, (1, 2), 5, 4),
    "visible": ((8, 24, 40, 48), 24, (2, 2, 3), 3, 5),
    "rounds": ((4, 100, 100, 40), 16, (1, 2, 2), 3, 6),
}


@pytest.mark.parametrize("order", ["up_down", "odd_even"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_as_if_they_were_written(name, dtype, threads, order):
    channels, size, pools, kernel, batch = NETWORKS[name]
    draw = torch.Generator().manual_seed(len(name))
    states, here = [], size
    for layer, width in enumerate(channels):
        here = here // pools[layer - 1] if layer else here
        states.append(torch.randn(batch, width, here, here, generator=draw, dtype=dtype) * 0.3)
    weights = [
        torch.randn(above, below, kernel, kernel, generator=draw, dtype=dtype)
        / (max(above, below) * kernel**2) ** 0.5
        for below, above in pairwise(channels)
    ]
    call = {
        "evidence": torch.rand(states[0].shape, generator=draw, dtype=dtype) - 0.5,
        "mask": torch.rand(states[0].shape, generator=draw) < 0.5,
        "pools": pools,
        "order": order,
        "theta": 0.0,
        "max_steps": 3,
        "readouts": True,
    }
    torch.set_num_threads(threads)
    kept = settle(states, [w.requires_grad_() for w in weights], None, unconverged="ignore", **call)
    with torch.no_grad():
        found = settle(states, weights, None, unconverged="ignore", **call)
        each = settle(states, weights, None, unconverged="ignore", per_sample=True, **call)
    for some in (found, each):
        assert all(torch.equal(a, b) for a, b in zip(some.states, kept.states, strict=True))
        assert torch.equal(some.readouts, kept.readouts)
