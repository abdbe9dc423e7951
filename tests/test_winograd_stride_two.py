"""3x3 kernels at stride 2 by minimal filtering, in each of its forms: what they compute, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from lmser_kernels import _library, conv2d_add_act, conv_transpose2d_add_act, explain

pytestmark = pytest.mark.native

SETS = _library.module.cpu_info()["runs_here"] if _library.module else ["none"]


@pytest.fixture(params=["in buffers", "in registers", "along rows"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    assert _library.module is not None
    before = _library.module.choose_filtering(request.param)
    yield request.param
    _library.module.choose_filtering(before)


class TestStrideTwo:
    """Tiles with their sums in buffers, or in registers where there are enough of them; or along rows alone."""

    @staticmethod
    def case(transposed: bool, batch: int, c_in: int, c_out: int, size: tuple[int, int], padding: int):
        draw = torch.Generator().manual_seed(sum(size) + padding)
        small = [(s + 2 * padding - 3) // 2 + 1 for s in size]
        x = torch.randn(batch, c_in, *(small if transposed else size), generator=draw)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(*((c_in, c_out) if transposed else (c_out, c_in)), 3, 3, generator=draw) / 20
        call = {"stride": 2, "padding": padding} | ({"output_size": size} if transposed else {})
        spare = [s - ((n - 1) * 2 - 2 * padding + 3) for s, n in zip(size, small, strict=True)]
        drive = (
            F.conv_transpose2d(x.double(), weight.double(), None, 2, padding, spare)
            if transposed
            else F.conv2d(x.double(), weight.double(), None, 2, padding)
        )
        return (conv_transpose2d_add_act if transposed else conv2d_add_act), x, weight, call, drive

    @pytest.mark.parametrize("padding", [0, 1, 2])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_every_size(self, instruction_set, form, transposed, padding):
        for height in (3, 4, 6, 7, 12, 13, 25):
            for width in (3, 5, 8, 12, 19):
                operation, x, weight, call, drive = self.case(transposed, 3, 20, 37, (height, width), padding)
                add = torch.randn(drive.shape).contiguous(memory_format=torch.channels_last)
                h, y = operation(x, weight, add, activation="leaky_relu", return_drive=True, **call)
                for got, want in ((y, drive), (h, F.leaky_relu(drive + add))):
                    assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max()

    # Groups of tiles over one unit and several, blocks of channels that go over them together and one after the other.
    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("channels", [(8, 8), (16, 48), (33, 16), (96, 130), (160, 64)], ids=str)
    @pytest.mark.parametrize("transposed", [False, True])
    def test_channels_layouts_and_finishes(self, instruction_set, form, transposed, channels, threads):
        torch.set_num_threads(threads)
        operation, x, weight, call, drive = self.case(transposed, 5, *channels, (24, 18), 1)
        gate, few = torch.randn(drive.shape), torch.randn(drive[:, :1].shape).expand(drive.shape)
        for layout in (torch.contiguous_format, torch.channels_last):
            source, mask = (t.contiguous(memory_format=layout) for t in (x, gate))
            gated = {"gate": mask, "gate_slope": 0.5} if transposed else {}
            got = operation(source, weight, few, activation="relu", **call, **gated)
            want = (drive + few).relu() * (torch.where(gate > 0, 1.0, 0.5) if transposed else 1)
            assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max()
        got = operation(x, weight, activation="sigmoid", **call)
        torch.testing.assert_close(got.double(), drive.sigmoid(), rtol=1e-5, atol=1e-5)
        spread = torch.randn(5, x.shape[1], x.shape[2], 2 * x.shape[3])[..., ::2].copy_(x)
        assert torch.equal(operation(spread, weight, **call), operation(x, weight, **call))

    @pytest.mark.parametrize("transposed", [False, True])
    def test_bits_of_any_threads(self, instruction_set, form, transposed):
        operation, x, weight, call, _ = self.case(transposed, 9, 24, 40, (26, 17), 1)
        torch.set_num_threads(1)
        whole = operation(x, weight, **call)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(operation(x, weight, **call), whole)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_what_is_not_finite_stays_where_it_is(self, instruction_set, form, transposed):
        for value in (torch.inf, torch.nan):
            operation, x, weight, call, _ = self.case(transposed, 2, 24, 40, (13, 12), 1)
            x[1, 3, 2, 4] = value
            got = operation(x, weight, **call)
            _library.module.choose_filtering("never")
            want = operation(x, weight, **call)
            _library.module.choose_filtering(form)
            assert torch.equal(got.isfinite(), want.isfinite())
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)

    def test_upsampling_and_pooling_beside_it(self, instruction_set, form):
        operation, x, weight, call, drive = self.case(True, 2, 24, 40, (13, 12), 1)
        got = operation(x, weight, upsample=2, **call)
        torch.testing.assert_close(got.double(), F.interpolate(drive, scale_factor=2), rtol=1e-4, atol=1e-5)
        big = torch.randn(2, 20, 26, 24).contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(33, 20, 3, 3)
        got = conv2d_add_act(big, kernel, stride=2, padding=1, pool=2)
        want = F.conv2d(F.avg_pool2d(big.double(), 2), kernel.double(), None, 2, 1)
        assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max()

    @pytest.mark.parametrize("fast", [False, True], ids=["usual products", "fast products"])
    def test_where_sums_stay_is_said(self, fast):
        module = _library.module
        before, assumed = module.choose_isa(SETS[0]), module.assume_fast_wide_products(fast)
        try:
            few, many = (
                explain(
                    conv2d_add_act,
                    torch.zeros(8, c, 48, 48),
                    torch.zeros(2 * c, c, 3, 3),
                    stride=2,
                    padding=1,
                )
                for c in (16, 256)
            )
        finally:
            module.choose_isa(before), module.assume_fast_wide_products(assumed)
        assert ("sums in registers" in few.kernel) == (SETS[0] == "avx512" and not fast)
        assert "sums in registers" not in many.kernel
        assert "F(" in many.kernel


class TestAlongRows:
    @pytest.mark.parametrize(("width", "products"), [(6, 7), (8, 10), (10, 12), (26, 31)])
    def test_products_of_a_row(self, width, products):
        """Rows of whole tiles have 7 for 9; a last tile of one or two outputs 2 or 3 for its outer taps."""
        before = _library.module.choose_filtering("along rows")
        try:
            size, kernel = (4, 32, 9, width), (48, 32, 3, 3)
            plan = _library.module.plan(
                "conv2d_add_act", "float32", size, kernel, (2, 2), (1, 1), (1, 1), (0, 0), True, 1
            )
        finally:
            _library.module.choose_filtering(before)
        assert plan["kernel"] == "implicit product, F(3, 2) along rows of pixels"
        rows = 13 / 15  # taps over the input
        assert plan["products_of_direct"] == pytest.approx(rows * products / (3 * (width // 2)))

    @pytest.mark.parametrize(
        ("shape", "along"),
        [
            ((8, 32, 64, 48), True),
            ((8, 64, 128, 24), True),
            ((8, 16, 16, 48), False),
            ((8, 3, 64, 48), False),
        ],
        ids=str,
    )
    def test_is_chosen_between_few_channels_and_many(self, shape, along):
        batch, c_in, c_out, size = shape
        module = _library.module
        before, assumed = module.choose_isa(SETS[0]), module.assume_fast_wide_products(True)
        try:
            plan = explain(
                conv2d_add_act,
                torch.zeros(batch, c_in, size, size),
                torch.zeros(c_out, c_in, 3, 3),
                stride=2,
                padding=1,
            )
        finally:
            module.choose_isa(before), module.assume_fast_wide_products(assumed)
        assert ("along rows" in plan.kernel) == along
        assert ("the outer taps of a kernel row take four products for every six" in plan.reason) == along

    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("channels", [(16, 13), (17, 48), (40, 33)], ids=str)
    @pytest.mark.parametrize("padding", [0, 1])
    def test_weight_gradient(self, instruction_set, padding, channels, threads):
        torch.set_num_threads(threads)
        for size in ((7, 7), (12, 10), (13, 26), (5, 2 - 2 * padding + 3)):
            draw = torch.Generator().manual_seed(sum(size))
            x = torch.randn(5, channels[0], *size, generator=draw).contiguous(
                memory_format=torch.channels_last
            )
            weight = torch.randn(channels[1], channels[0], 3, 3, generator=draw).requires_grad_()
            y = conv2d_add_act(x, weight, stride=2, padding=padding)
            grad = torch.randn(y.shape, generator=draw)
            wide = weight.detach().double().requires_grad_()
            (want,) = torch.autograd.grad(F.conv2d(x.double(), wide, None, 2, padding), wide, grad.double())
            got = {}
            for mode in ("along rows", "never"):
                before = _library.module.choose_filtering(mode)
                try:
                    (got[mode],) = torch.autograd.grad(y, weight, grad, retain_graph=True)
                finally:
                    _library.module.choose_filtering(before)
                assert (got[mode].double() - want).abs().max() <= 1e-5 * want.abs().max()
            assert not torch.equal(got["along rows"], got["never"])  # summed in another way

    def test_gradient_of_what_is_not_finite(self, instruction_set):
        x = torch.randn(3, 24, 12, 13)
        x[1, 5, 4, 6] = torch.inf
        weight = torch.randn(33, 24, 3, 3).requires_grad_()
        y = conv2d_add_act(x, weight, stride=2, padding=1)
        grads = []
        for mode in ("along rows", "never"):
            before = _library.module.choose_filtering(mode)
            try:
                grads += torch.autograd.grad(y, weight, torch.ones_like(y), retain_graph=True)
            finally:
                _library.module.choose_filtering(before)
        assert torch.equal(grads[0].isfinite(), grads[1].isfinite())
        assert grads[0][:, torch.arange(24) != 5].isfinite().all()

    @pytest.mark.parametrize("transposed", [False, True])
    def test_a_weight_that_is_not_finite(self, instruction_set, transposed):
        """The middle tap is no part of a tile; where only it is infinite, padding times it still is no number."""
        weight = torch.randn(24, 32, 3, 3)
        weight[3, 7, 1, 1] = torch.inf
        x = torch.randn(2, 24 if transposed else 32, 9, 8)
        call = {"stride": 2, "padding": 1} | ({"output_size": (17, 15)} if transposed else {})
        results = []
        for mode in ("along rows", "never"):
            before = _library.module.choose_filtering(mode)
            try:
                results.append(
                    (conv_transpose2d_add_act if transposed else conv2d_add_act)(x, weight, **call)
                )
            finally:
                _library.module.choose_filtering(before)
        assert torch.equal(*results) or torch.equal(results[0].isnan(), results[1].isnan())
        torch.testing.assert_close(*results, equal_nan=True, rtol=1e-4, atol=1e-4)
