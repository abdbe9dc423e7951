"""What a training step of a reflection network has in memory at a time."""

from __future__ import annotations

import pytest
import torch

from lmser.training.memory import PeakMemory
from lmser_kernels import reflect_loss


@pytest.mark.native
def test_gradients_take_the_memory_of_what_is_done_with():
    """Of the lower layer its two states and one more are in use, which its drive and gradients share."""
    torch.manual_seed(0)
    x = torch.randn(6, 3, 128, 128).to(memory_format=torch.channels_last)
    weights = [torch.randn(16, 3, 3, 3).mul_(0.2), torch.randn(32, 16, 3, 3).mul_(0.1)]
    biases = [torch.zeros(channels) for channels in (3, 16, 32)]
    for parameter in (*weights, *biases):
        parameter.requires_grad_()
    reflect_loss(x, weights, biases, stride=[1, 2])
    peak = PeakMemory(torch.device("cpu"))
    reflect_loss(x, weights, biases, stride=[1, 2])
    found = peak.bytes()
    if found is None:
        pytest.skip("the system does not tell how much memory was in use")
    lower, upper, visible = 16 * 128**2, 32 * 64**2, 3 * 128**2
    # Three images of float32 are in flight on one thread. With memory of its own for each there are five of the lower.
    assert found < 3 * 4 * (4 * lower + 2 * upper + visible)
