"""Peak memory of a stretch of code."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures from its construction on, above what was in use then.

    CUDA: bytes allocated by torch on the device. Elsewhere on Linux: resident bytes of the process; freed
    memory is handed back to the system first, so that one measurement in a process does not hide the next.
    None where the system does not let the high-water mark be reset. One measurement at a time: a second one
    moves the mark.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif sys.platform == "linux":
            _trim()
            try:
                _CLEAR.write_text("5")  # proc(5): resets the peak resident set size
                self._before = _status("VmRSS")
            except (OSError, ValueError):
                self._before = None

    def bytes(self) -> int | None:
        """Most bytes in use at any moment since the start, above those in use at the start."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)
        try:
            return max(0, _status("VmHWM") - self._before)
        except (OSError, ValueError):
            return None


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{_STATUS} has no field {field}")


def _trim() -> None:
    # Without glibc there is no such function, and nothing held back that it could return.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
