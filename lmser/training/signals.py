"""SIGINT and SIGTERM as a wish to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the step was finished and a checkpoint written first.

    `step`, `checkpoint` (path), `signum`. ``str()`` is a message for the user; the customary exit status is
    128 + signum. A KeyboardInterrupt, so that ``except Exception`` does not swallow it.
    """

    def __init__(self, step: int, steps: int, checkpoint: Path, signum: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step} of {steps}; "
            f"everything up to there is in {checkpoint}, and resuming continues from it to the same result"
        )
        self.step, self.checkpoint, self.signum = step, checkpoint, signum


class StopRequest:
    """`signum` is None until a signal has come."""

    signum: int | None = None


@contextmanager
def stop_on_signals(*, patient: bool = False) -> Iterator[StopRequest]:
    """While the block runs, the first SIGINT or SIGTERM is only noted; the second acts as it did before.

    patient: the second and all further ones are only noted too.
    Handlers can only be set in the main thread; elsewhere nothing is changed and nothing noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            # None: set by something other than python, which python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.signum = number
        if not patient:
            restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
