"""`explain`: the path a call takes, its work, and that it checks as the call does."""

from __future__ import annotations

import pytest
import torch

from lmser_kernels import (
    _library,
    add_act,
    conv2d_add_act,
    conv_transpose2d_add_act,
    explain,
    max_pool2d_act,
    max_unpool2d,
    pull_back,
    reflect,
    reflect_loss,
    settle,
    tied_conv2d,
)

X, W, Z = torch.randn(2, 3, 9, 8), torch.randn(5, 3, 3, 3), torch.randn(2, 5, 5, 4)


def test_reference_says_so():
    found = explain(conv2d_add_act, X, W, stride=2, padding=1, impl="reference")
    assert (found.implementation, found.kernel) == ("reference", "eager PyTorch")
    assert found.reason == 'impl="reference" was asked for'
    assert found.output_shapes == ((2, 5, 5, 4),)
    assert found.plans == {}


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(_library, "available", False)
    monkeypatch.setattr(_library, "module", None)
    monkeypatch.setattr(_library, "error", "it was not compiled")
    found = explain("conv2d_add_act", X, W)
    assert found.implementation == "reference"
    assert found.reason == "it was not compiled"
    assert found.bound is None
    assert found.seconds is None
    assert "bound     unknown" in str(found)


@pytest.mark.parametrize(
    ("found", "flops", "values"),
    [
        (
            lambda: explain(conv2d_add_act, X, W, stride=2, padding=1),
            2 * W.numel() * 2 * 5 * 4,
            432 + 135 + 200,
        ),
        (
            lambda: explain(conv_transpose2d_add_act, Z, W, stride=2, padding=1, output_size=(9, 8)),
            2 * W.numel() * 2 * 5 * 4,
            200 + 135 + 432,
        ),
        (
            lambda: explain(tied_conv2d, X, Z, W, stride=2, padding=1),
            2 * 2 * W.numel() * 2 * 5 * 4,
            2 * 432 + 2 * 200 + 135,
        ),
        (lambda: explain(add_act, X, X, torch.zeros(3)), 3 * 432, 3 * 432 + 3),
    ],
)
def test_work(found, flops, values):
    found = found()
    assert found.flops == flops
    assert found.bytes == 4 * values
    assert found.intensity == flops / (4 * values)


@pytest.mark.native
class TestCompiled:
    def test_plan(self):
        found = explain(conv2d_add_act, X, W, torch.randn(2, 5, 5, 4), stride=2, padding=1, activation="relu")
        assert found.implementation == "native"
        plan = found.plans["conv"]
        assert found.kernel == plan["kernel"]
        assert plan["flops"] == found.flops
        assert plan["isa"] in str(found)
        assert found.bound in ("compute", "memory")
        assert found.seconds == pytest.approx(
            max(found.flops / found.peak_gflops, found.bytes / found.bandwidth_gbs) / 1e9
        )

    def test_both_directions_have_a_plan(self):
        found = explain(tied_conv2d, X, Z, W, stride=2, padding=1)
        assert set(found.plans) == {"conv", "convᵀ"}
        assert sum(plan["flops"] for plan in found.plans.values()) == found.flops

    def test_tells_the_tiles_of_few_channels(self):
        """Where registers suffice an input serves several sums; to fewer channels registers run along rows."""
        below, above = torch.randn(1, 3, 24, 24), torch.randn(1, 32, 24, 24)
        up = explain(conv2d_add_act, below, torch.randn(16, 3, 3, 3), padding=1)
        down = explain(
            conv_transpose2d_add_act, above, torch.randn(32, 16, 3, 3), stride=2, padding=1, output_size=48
        )
        shares = up.plans["conv"]["isa"] == "avx512"
        assert ("two rows of pixels" in up.kernel) == shares
        assert ("four phases in one tile" in down.kernel) == shares
        for found in (up, down):
            assert ("serves the sums of several pixels" in found.reason) == shares
        few = explain(
            conv_transpose2d_add_act, torch.randn(1, 16, 24, 24), torch.randn(16, 2, 3, 3), padding=1
        )
        assert "along rows of pixels" in few.kernel
        assert "turned to planes as they are wanted" in few.reason

    def test_elementwise_has_none(self):
        found = explain(add_act, X, X)
        assert (found.implementation, found.plans) == ("native", {})
        assert found.bound == "memory"

    def test_under_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            found = explain(conv2d_add_act, X, W)
        assert found.dtype == torch.bfloat16

    def test_leaves_no_trace(self):
        x = X.clone().requires_grad_()
        explain(conv2d_add_act, x, W)
        assert x.grad is None
        assert torch.equal(x, X)


@pytest.mark.native
@pytest.mark.skipif(_library.triton_error is not None, reason="without Triton nothing is planned")
class TestPlannedForAGpu:
    """No GPU is needed: tensors are wherever they are, and the launches of the call are written down."""

    def test_launches_and_floor(self):
        found = explain(conv2d_add_act, X, W, stride=2, padding=1, on="H200")
        assert (found.implementation, found.kernel) == ("triton", "conv_up")
        assert found.reason == "GPU kernel, planned for H200; fewer than 32 channels"
        (launch,) = found.plans.values()
        assert launch["products"] in ("tf32", "tf32x3", "ieee")
        rows, columns, _ = map(int, launch["tile"].split("x"))
        assert launch["grid"] == (-(-2 * 5 * 4 // rows) * -(-5 // columns), 1)
        assert (found.bandwidth_gbs, found.source) == (4800, "data sheet of H200")
        assert found.seconds == pytest.approx(max(found.flops / found.peak_gflops, found.bytes / 4800) / 1e9)
        assert "launch 1: does convolution as an implicit matrix product" in str(found)
        assert explain(conv2d_add_act, X, W, stride=2, padding=1).flops == found.flops

    def test_sub_pixel_phases_are_part_of_the_grid(self):
        found = explain(conv_transpose2d_add_act, Z, W, stride=2, padding=1, output_size=(9, 8), on="A100")
        grid = found.plans["launch 1"]["grid"]
        assert grid[0] % 4 == 0
        assert grid[1:] == (1,)
        assert "one for each sub-pixel phase" in found.plans["launch 1"]["does"]

    def test_both_directions_are_one_launch(self):
        found = explain(tied_conv2d, X, Z, W, stride=2, padding=1, on="B200")
        assert (found.kernel, len(found.plans)) == ("conv_pair", 1)
        assert set(found.plans["launch 1"]) >= {"up tile", "down tile"}

    def test_arithmetic_decides_the_floor(self):
        peaks = {
            d: explain(conv2d_add_act, X.to(d), W.to(d), on="H200") for d in (torch.bfloat16, torch.float64)
        }
        assert peaks[torch.bfloat16].peak_gflops == 989e3
        assert peaks[torch.float64].peak_gflops == 67e3
        assert "products" not in peaks[torch.bfloat16].plans["launch 1"]

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_tensors_may_have_no_memory(self, device):
        x = torch.empty(2, 3, 8, 6, device=device)
        assert explain(add_act, x, x, on="H200").implementation == "triton"
        assert explain(pull_back, x, x, activation="tanh", on="H200").bound == "memory"
        assert explain(max_pool2d_act, x, 2, on="H200").output_shapes == ((2, 3, 4, 3),)

    @pytest.mark.parametrize("function", [reflect, reflect_loss])
    def test_passes_are_planned_layer_by_layer(self, function):
        x, biases = torch.empty(4, 3, 12, 12), [torch.zeros(c) for c in (3, 8, 16)]
        weights = [torch.empty(8, 3, 3, 3), torch.empty(16, 8, 3, 3)]
        found = explain(function, x, weights, biases, stride=[1, 2], on="H200")
        assert found.kernel.startswith("layer by layer")
        kernels = {name: plan["kernel"] for name, plan in found.plans.items()}
        assert kernels == {
            "conv 0 - 1": "conv_up", "convᵀ 0 - 1": "conv_down", "conv 1 - 2": "conv_up", "convᵀ 1 - 2": "conv_down"
        }  # fmt: skip

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_settling_is_planned_by_the_sweep(self, dtype):
        states = [torch.zeros(2, n, side, side, dtype=dtype) for n, side in ((3, 8), (40, 8), (70, 4))]
        weights = [torch.zeros(40, 3, 3, 3, dtype=dtype), torch.zeros(70, 40, 3, 3, dtype=dtype)]
        found = explain(settle, states, weights, None, pools=(1, 2), max_steps=70, on="H200")
        kernels = [plan["kernel"] for plan in found.plans.values()]
        # Up to the top and down again: 1, 2, 1, 0, and then the change of the sweep.
        assert kernels == 4 * ["update_kernel"] + ["outcome_kernel"]
        assert found.peak_gflops == explain(conv2d_add_act, X, W, on="H200").peak_gflops
        assert "plan      launch 5: kernel outcome_kernel, does the largest change" in str(found)

    @pytest.mark.skipif("settle" not in _library.cuda_operators, reason="the library was built without CUDA")
    def test_small_fully_connected_networks_settle_in_one_launch(self):
        def small(width, **settings):
            states = [torch.empty(64, n, 1, 1, device="meta") for n in (812, width)]
            weights = [torch.empty(width, 812, 1, 1, device="meta")]
            return explain(settle, states, weights, None, on="H200", **settings)

        found = small(200)
        assert (found.implementation, found.plans) == ("native", {})
        assert "one launch" in found.kernel
        assert small(200, impl="triton").implementation == "triton"
        other = small(200_000)
        assert other.implementation == "triton"
        assert "not one launch of the compiled kernel: " in other.reason

    def test_reference_is_eager_there_too(self):
        found = explain(add_act, X, X, impl="reference", on="H200")
        assert (found.implementation, found.kernel) == ("reference", "eager PyTorch")
        assert found.source == "data sheet of H200"

    def test_errors(self):
        with pytest.raises(ValueError, match=r"on: expected one of .*H200.*, got 'abacus'"):
            explain(add_act, X, X, on="abacus")
        with pytest.raises(ValueError, match="impl must be one of"):
            explain(add_act, X, X, impl="none", on="H200")
        with pytest.raises(ValueError, match="x must have the weight's C_in"):
            explain(conv2d_add_act, X[:, :1], W, on="H200")


class TestErrors:
    def test_unknown_operation(self):
        with pytest.raises(ValueError, match="operation must be one of add_act, conv2d_add_act"):
            explain("conv3d", X)
        with pytest.raises(ValueError, match="operation must be one of"):
            explain(torch.nn.functional.conv2d, X, W)

    def test_those_of_the_call(self):
        with pytest.raises(ValueError, match="x must have the weight's C_in"):
            explain(conv2d_add_act, X[:, :1], W)
        with pytest.raises(TypeError, match="x must be a tensor"):
            explain(conv2d_add_act, [1.0], W)
        with pytest.raises(RuntimeError, match='impl="native"'):
            explain(conv2d_add_act, X.to("meta"), W.to("meta"), impl="native")


def test_settle_counts_one_sweep():
    states = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 8, 8), torch.zeros(2, 7, 4, 4)]
    weights = [torch.zeros(5, 3, 3, 3), torch.zeros(7, 5, 3, 3)]
    found = explain(settle, states, weights, None, pools=(1, 2))
    assert found.flops == 2 * 2 * (2 * 64 * 15 * 9 + 2 * 16 * 35 * 9)
    assert found.bytes == 4 * (2 * (384 + 640 + 224) + 135 + 315)
    assert found.output_shapes == ((2, 3, 8, 8), (2, 5, 8, 8), (2, 7, 4, 4))
    if _library.available:
        assert list(found.plans) == ["conv 0 - 1", "convᵀ 0 - 1", "conv 1 - 2", "convᵀ 1 - 2"]
        # Readouts, the drive from above of layer 1 and the states of layer 2: 384, 160 and 224 values.
        kept = "for a gradient a sweep leaves 0.00307 MB, of layer 1 the drive from above alone"
        assert kept in found.reason
        # Under a visible layer that is wholly held the first hidden one is updated once a sweep.
        held = explain(settle, states, weights, None, pools=(1, 2), evidence=states[0])
        assert "for a gradient a sweep leaves 0.00499 MB;" in held.reason + ";"
        assert (
            "for a gradient"
            not in explain(settle, states, weights, None, pools=(1, 2), backward="implicit").reason
        )
    with pytest.raises(ValueError, match="pools: expected 2"):
        explain("settle", states, weights, None, pools=(1,))


@pytest.mark.native
def test_passes_without_a_convolution():
    x = torch.rand(2, 3, 8, 6)
    h, places = max_pool2d_act(x, 2, return_places=True)
    pooled = explain("max_pool2d_act", x, 2, activation="relu")
    assert (pooled.flops, pooled.output_shapes) == (4.0 * h.numel(), ((2, 3, 4, 3),))
    unpooled = explain(max_unpool2d, h, places, 2, output_size=(8, 6))
    assert unpooled.bytes == 4 * (x.numel() + h.numel()) + places.numel()
    passed = explain(pull_back, x, x, activation="tanh")
    for found in (pooled, unpooled, passed):
        assert (found.implementation, found.plans) == ("native", {})
        assert "one fused pass" in found.kernel
    with pytest.raises(ValueError, match="larger than the padded input"):
        explain("max_pool2d_act", x, 9)


def test_reflect_counts_every_pass_and_says_whether_it_is_one_operation():
    x, biases = torch.randn(4, 3, 12, 12), [torch.zeros(c) for c in (3, 8, 16)]
    weights = [torch.randn(8, 3, 3, 3), torch.randn(16, 8, 3, 3)]
    found = explain("reflect", x, weights, biases, stride=[1, 2], reflections=3, impl="native")
    edges = [2 * 4 * 8 * 3 * 9 * 144, 2 * 4 * 16 * 8 * 9 * 36]
    assert found.flops == 2 * edges[0] + 6 * edges[1]
    assert found.kernel.startswith("one operation for all passes")
    assert set(found.plans) == {"conv 0 - 1", "convᵀ 0 - 1", "conv 1 - 2", "convᵀ 1 - 2"}
    assert found.output_shapes == ((4, 3, 12, 12), (4, 16, 6, 6))
    half = explain(reflect, x.half(), [w.half() for w in weights], [b.half() for b in biases])
    assert half.kernel.startswith("layer by layer")
    assert "eager" in explain(reflect, x, weights, biases, impl="reference").kernel
    dense = explain(
        reflect, torch.randn(4, 30, 1, 1), [torch.randn(7, 30)], [torch.zeros(30), torch.zeros(7)]
    )
    assert dense.flops == 2 * 2 * 4 * 30 * 7
    with pytest.raises(ValueError, match="biases must be one for each"):
        explain(reflect, x, weights, biases[:2])
    loss = explain(reflect_loss, x, weights, biases, stride=[1, 2], reflections=3)
    assert (loss.operation, loss.flops, loss.plans) == ("reflect_loss", found.flops, found.plans)
    assert loss.kernel.startswith(
        "one operation for all passes and, where they are recorded, their gradients"
    )
    assert loss.output_shapes == ((),)
    assert loss.bytes == found.bytes - 4 * (x.numel() + 4 * 16 * 6 * 6 - 1)
