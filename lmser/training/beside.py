"""Making a batch while the device is still at the step before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Beside:
    """Work on a stream of its own, so that neither it nor a host that waits for it waits for earlier steps.

    The host is ahead of a GPU by many steps, until it needs a value: damage that is made on the CPU for images that lie
    on the device, say. On the default stream it would wait for all steps so far and the device then for it; here the
    images come, and the batch goes back, while the device is at those steps.

    On the CPU everything is as without it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.follow()

    def follow(self) -> None:
        """What comes waits for what the current stream was given until now: data that was put on the device."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def make(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """The tensors of `work`, ready for what the current stream is given next."""
        if self._stream is None:
            return tuple(work())
        with torch.cuda.stream(self._stream):
            made = tuple(work())
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(
                current
            )  # its memory is not given away before that stream is through with it
        return made
