"""Every tile that a kernel may take gives the same result, those of 8 warps and of long pipelines among them.

In Triton's interpreter a tile's warps and stages mean nothing and large tiles take long, so that a part of them runs on a
small layer; on a GPU (``--device cuda``) all of them do, over sums of hundreds of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from implementations import DEVICE
from torch import Tensor

from lmser_kernels.gpu import tiles
from lmser_kernels.tied_conv.triton_drives import down, pair, up
from lmser_kernels.tied_conv.triton_weight_grad import weight_grad

pytestmark = [pytest.mark.native, pytest.mark.operators]
ON_GPU = DEVICE.type == "cuda"
CHANNELS, SIZE, EVERY = (256, 24, 1) if ON_GPU else (17, 5, 4)
SPACE = {"stride": (2, 2), "padding": (1, 1)}


def drawn(*size: int, dtype: torch.dtype) -> Tensor:
    made = torch.randn(size, generator=torch.Generator("cpu").manual_seed(len(size)), device="cpu")
    return made.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def made_by(kernel: str, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    small = (SIZE - 1) // 2 + 1
    x, z = (drawn(2, CHANNELS, side, side, dtype=dtype) for side in (SIZE, small))
    weight = drawn(CHANNELS, CHANNELS, 3, 3, dtype=dtype) / (3 * CHANNELS**0.5)
    calls: dict[str, Callable[[], list[Tensor]]] = {
        "conv_up": lambda: [up(x, weight, size=(small, small), activation="tanh", **SPACE)[0]],
        "conv_down": lambda: [down(z, weight, size=(SIZE, SIZE), add=x, activation="tanh", **SPACE)[0]],
        "conv_pair": lambda: list(pair(x, z, weight, **SPACE)),
        "weight_grad": lambda: [weight_grad(x, z, kernel_size=(3, 3), **SPACE)],
    }
    return calls[kernel]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", ["conv_up", "conv_down", "conv_pair", "weight_grad"])
def test_results_are_those_of_any_other_tile(kernel: str, dtype: torch.dtype) -> None:
    run = made_by(kernel, dtype)
    asked: list[tiles.Problem] = []

    def note(problem: tiles.Problem) -> None:
        asked.append(problem)

    with tiles.choosing(note):
        wanted = [t.double() for t in run()]
    offered = {problem: tiles.candidates(problem) for problem in asked}
    most = max(map(len, offered.values()))
    assert most > (8 if ON_GPU else 2)
    for place in range(0, most, EVERY):
        trial = {problem: several[min(place, len(several) - 1)] for problem, several in offered.items()}
        with tiles.choosing(trial.__getitem__):
            found = run()
        for got, want in zip(found, wanted, strict=True):
            unit = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-13}[dtype]
            error = (got.double() - want).abs().max() / want.abs().max()
            assert error < unit, f"{list(trial.values())}: off by {float(error):.1e}"
