"""Which kernel makes a drive on a GPU, and cuDNN's way with the operators of this processor in its place."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from implementations import DEVICE
from tied_conv_cases import close, laid_out, wide
from torch import Tensor

from lmser_kernels import explain, reference
from lmser_kernels.gpu.launch import recording
from lmser_kernels.tied_conv import triton_drives
from lmser_kernels.tied_conv.api import conv2d_add_act
from lmser_kernels.tied_conv.triton_drives import Source, down, up
from lmser_kernels.tied_conv.triton_library import plan_drive
from lmser_kernels.tied_conv.triton_plan import CUDNN, FUSED, Drive, plan

LARGE = Drive(
    transposed=False, strided=False, pixels=2**18, columns=256, channels=256, depth=2304, sums=2**26, read=2**26,
    joined=2**26, written=2**26, dtype=torch.bfloat16, precision="ieee", bare=True, follows=True,
)  # fmt: skip


class TestPlan:
    def test_long_sums_over_many_channels_are_cudnn_s(self):
        assert plan(LARGE).kernel == CUDNN
        assert "by cuDNN and a pass over its result" in plan(LARGE).reason

    @pytest.mark.parametrize(
        "change",
        [
            {"bare": False},
            {"dtype": torch.float64},
            {"channels": 16, "depth": 144},
            {"columns": 3},
            {"dtype": torch.float32, "precision": "tf32x3"},  # cuDNN has no such product
            {
                "pixels": 256,
                "sums": 2**16,
                "read": 2**16,
                "joined": 0,
                "written": 2**16,
            },  # a launch more is too much
            {"channels": 64, "depth": 64},  # bound by memory
        ],
        ids=str,
    )
    def test_others_are_fused(self, change):
        found = plan(dataclasses.replace(LARGE, **change))
        assert found.kernel == FUSED
        assert found.reason

    def test_explain_says_so(self):
        with torch.device("meta"):
            x, weight = (
                torch.empty(64, 256, 56, 56, dtype=torch.bfloat16),
                torch.empty(256, 256, 3, 3).bfloat16(),
            )
        x = x.contiguous(memory_format=torch.channels_last)
        with recording(90) as made:
            up(x, weight, stride=(1, 1), padding=(1, 1), size=(56, 56), activation="relu")
            up(x, weight, stride=(1, 1), padding=(1, 1), size=(56, 56), source=Source(h=x, activation="relu"))
        assert [launched.plan.kernel for launched in made.launches] == [CUDNN, FUSED]
        few = torch.empty(2, 3, 8, 8), torch.empty(4, 3, 3, 3)
        if DEVICE.type == "cpu":
            assert "fewer than" in explain(conv2d_add_act, *few, on="H200").reason


@pytest.fixture
def _by_library(monkeypatch):
    def always(*arguments, **keywords):
        return dataclasses.replace(plan_drive(*arguments, **keywords), kernel=CUDNN)

    monkeypatch.setattr(triton_drives, "plan_drive", always)
    monkeypatch.setattr(triton_drives, "runs_here", lambda tensor: True)


def random(shape, layout="channels_last", seed=0) -> Tensor:
    return laid_out(shape, layout, torch.Generator("cpu").manual_seed(seed), torch.float32).detach()


@pytest.mark.usefixtures("_by_library")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
class TestLibrary:
    def test_convolution(self, layout):
        x, weight, add = (
            random((2, 5, 7, 6), layout),
            random((4, 5, 3, 3), layout, 1),
            random((2, 4, 4, 6), layout, 2),
        )
        geometry = {"stride": (2, 1), "padding": (1, 1)}
        h, drive = up(x, weight, **geometry, size=(4, 6), add=add, activation="sigmoid", drive=True)
        want, want_drive = reference.conv2d_add_act(
            wide(x), wide(weight), wide(add), **geometry, activation="sigmoid", return_drive=True
        )
        magnitude = reference.conv2d_add_act(wide(x).abs(), wide(weight).abs(), wide(add).abs(), **geometry)
        close("h", h, want, magnitude, 0)
        assert drive is not None
        close("drive", drive, want_drive, magnitude, 0)
        assert h.stride() == torch.empty_like(add).stride()

    @pytest.mark.parametrize("size", [(7, 6), (8, 6)])
    def test_transposed(self, layout, size):
        z, weight = random((2, 4, 4, 6), layout), random((4, 5, 3, 3), layout, 1)
        gate = random((2, 5, size[0] * 2, 6), layout, 2)
        geometry = {"stride": (2, 1), "padding": (1, 1)}
        given = {"upsample": (2, 1), "spread": True, "gate_slope": 0.25, "activation": "relu"}
        h, _ = down(z, weight, **geometry, size=size, gate=gate, **given)
        want = reference.conv_transpose2d_add_act(
            wide(z), wide(weight), **geometry, output_size=size, gate=wide(gate), **given
        )
        magnitude = reference.conv_transpose2d_add_act(
            wide(z).abs(), wide(weight).abs(), **geometry, output_size=size, upsample=(2, 1), spread=True
        )
        close("h", h, want, magnitude, 0)
        assert h.stride() == torch.empty_like(gate).stride()

    def test_a_gradient_with_what_a_pool_left_over(self, layout):
        """Nothing follows but a row without a sum."""
        grad, weight = random((1, 4, 2, 2), layout), random((4, 5, 3, 3), layout, 1)
        got, _ = down(
            grad, weight, stride=(1, 1), padding=(1, 1), size=(2, 2), upsample=(2, 2), spread=True,
            output_size=(5, 4),
        )  # fmt: skip
        x = torch.zeros(1, 5, 5, 4, dtype=torch.float64, requires_grad=True)
        y = reference.conv2d_add_act(x, wide(weight), padding=1, pool=2)
        (want,) = torch.autograd.grad(y, x, wide(grad))
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)

    def test_a_bare_convolution_is_the_library_s_result(self, layout, monkeypatch):
        x, weight = random((2, 5, 7, 6), "channels_last"), random((4, 5, 3, 3), layout, 1)
        with monkeypatch.context() as patch:
            patch.setattr(triton_drives, "launch", None)
            h, _ = up(x, weight, stride=(1, 1), padding=(1, 1), size=(7, 6))
        close("h", h, reference.conv2d_add_act(wide(x), wide(weight), padding=1), wide(h).abs() + 10, 0)
        assert h.is_contiguous(memory_format=torch.channels_last)
