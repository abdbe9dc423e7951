"""Peak memory of a stretch of code."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from lmser_kernels import empty_cache

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures from its construction on, above what was in use then.

    CUDA: bytes allocated by torch on the device. Elsewhere on Linux: resident bytes of the process; freed
    memory is handed back to the system first, what the kernels keep for their next results too, so that neither one
    measurement in a process nor a step before it hides what is needed.
    None where the system does not let the high-water mark be reset. One measurement at a time: a second one
    moves the mark.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen = 0  # highest mark before the last time that something was left out
        self._before = self._reset()

    def bytes(self) -> int | None:
        """Most bytes in use at any moment since the start, above those in use at the start."""
        if self._before is None:
            return None
        return max(0, max(self._seen, self._mark()) - self._before)

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """What the block needs does not count."""
        if self._before is not None:
            self._seen = max(self._seen, self._mark())
        yield
        if self._before is not None:
            self._reset()

    def _mark(self) -> int:
        return (
            torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _status("VmHWM")
        )

    def _reset(self) -> int | None:
        """Set the mark to what is in use now, and return that."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_allocated(self._device)
        if sys.platform != "linux":
            return None
        empty_cache()
        # Without glibc there is no such function, and nothing held back that it could return.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            _CLEAR.write_text("5")  # proc(5): resets the peak resident set size
            return _status("VmRSS")
        except (OSError, ValueError):
            return None


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{_STATUS} has no field {field}")
