"""How the Triton kernels multiply float32: PyTorch's own switches, the older and the newer ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from lmser_kernels.gpu.launch import dot_precision


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """Both kinds of switches as they were: PyTorch refuses to read the older ones while the newer disagree."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    assert torch.backends.cudnn.allow_tf32 is convolutions
    assert torch.get_float32_matmul_precision() == products


@pytest.mark.parametrize("newer", [False, True])
def test_follows_the_switches_of_convolutions(newer):
    def convolutions(tf32):
        if newer:
            torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
        else:
            torch.backends.cudnn.allow_tf32 = tf32

    def products(precision):
        if newer:
            torch.backends.cuda.matmul.fp32_precision = {"high": "tf32", "highest": "ieee"}[precision]
        else:
            torch.set_float32_matmul_precision(precision)

    convolutions(True)
    assert dot_precision(torch.float32) == "tf32"
    convolutions(False)
    products("high")
    assert dot_precision(torch.float32) == "tf32x3"
    products("highest")
    assert dot_precision(torch.float32) == "ieee"


def test_other_types_have_one_way():
    assert {dot_precision(t) for t in (torch.float64, torch.bfloat16, torch.float16)} == {"ieee"}
