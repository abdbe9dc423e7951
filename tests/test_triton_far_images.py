"""Images that reach further than 32 bits count, by strides alone: their memory is a file of which little is ever written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmser_kernels.gpu.launch import recording
from lmser_kernels.tied_conv.triton_arguments import far
from lmser_kernels.tied_conv.triton_drives import down, pair, up
from lmser_kernels.tied_conv.triton_weight_grad import weight_grad

pytestmark = pytest.mark.native
ROW = 2**30  # the third row, and what is joined to the third channel, begin where 31 bits end
SPACE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1)}


@pytest.fixture
def far_image(tmp_path: Path):
    """A tensor's values once more, in memory of its own with the strides given; what wraps round meets zeros."""
    made = []

    def lay(values: Tensor, strides: tuple[int, ...]) -> Tensor:
        reach = sum((size - 1) * step for size, step in zip(values.shape, strides, strict=True))
        size = 2**31 + reach + 1
        path = tmp_path / f"image{len(made)}"
        path.touch()
        memory = torch.from_file(str(path), shared=True, size=size, dtype=values.dtype, device="cpu")
        made.append(path)
        found = memory.as_strided(values.shape, strides, 2**31)
        found.copy_(values)
        return found

    yield lay
    for path in made:
        path.unlink()


def drawn(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).half()


def test_strides_tell():
    near, row = torch.empty(2, 16, 3, 4), (0, 1, ROW, 16)
    with torch.device("meta"):
        assert far({"x": torch.empty_strided((1, 16, 3, 4), row)})
        assert far({"x": near, "add": torch.empty_strided((1, 16, 3, 4), (0, 2**28, 4, 1))})
        # Images may lie far apart, and what has one row has no next one.
        assert not far(
            {"x": torch.empty_strided((9, 16, 3, 4), (2**40, 1, 64, 16))}, {"PARTS": 1, "bias": None}
        )
        assert not far({"x": torch.empty_strided((1, 16, 1, 4), row)})


@pytest.mark.parametrize("way", [up, down])
def test_a_drive_of_a_far_image(far_image, way):
    x, weight = drawn(1, 16, 3, 4), drawn(16, 16, 3, 3)
    given = {"stride": (1, 1), "padding": (1, 1), "size": (3, 4)}
    add = drawn(1, 16, 3, 4)
    want, _ = way(x, weight, add=add, **given)
    far_x, far_add = far_image(x, (0, 1, ROW, 16)), far_image(add, (0, 2**28, 4, 1))
    assert torch.equal(way(far_x, weight, add=add, like=x, **given)[0], want)
    assert torch.equal(way(x, weight, add=far_add, **given)[0], want)


def test_both_drives_of_far_images():
    weight = drawn(16, 16, 3, 3)
    strides = (0, 1, ROW, 16)
    with recording(90) as made, torch.device("meta"):
        pair(
            *(torch.empty_strided((1, 16, 3, 4), strides) for _ in "xz"),
            weight.to("meta"),
            stride=(1, 1),
            padding=(1, 1),
        )
    (launch,) = made.launches
    assert launch.arguments["UP_WIDE"]
    assert launch.arguments["DOWN_WIDE"]


def test_a_weight_gradient_of_far_images(far_image):
    big, small = drawn(1, 16, 3, 4), drawn(1, 16, 3, 4)
    want = weight_grad(big, small, **SPACE)
    strides = (0, 1, ROW, 16)
    assert torch.equal(weight_grad(far_image(big, strides), small, **SPACE), want)
    assert torch.equal(weight_grad(big, far_image(small, strides), **SPACE), want)


def test_many_phases_fit_a_grid():
    """Its second axis ends at 65535."""
    with recording(90) as made, torch.device("meta"):
        z, weight = torch.empty(1, 16, 2, 2), torch.empty(16, 16, 256, 256)
        down(z, weight, stride=(256, 256), padding=(0, 0), size=(512, 512))
    assert all(size < 65536 for launch in made.launches for size in launch.grid[1:])
