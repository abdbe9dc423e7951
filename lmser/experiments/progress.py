"""How far an experiment is: one bar over the steps of all its jobs, or a line per job where there is no
terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor

from lmser._extras import require

__all__ = ["ExperimentProgress"]


class ExperimentProgress:
    """Counts the steps of the jobs announced with `job`.

    jobs, steps: how many there are in all.  shown: False says nothing at all.
    """

    def __init__(self, jobs: int, steps: int, *, shown: bool) -> None:
        self._jobs, self._started, self._done = jobs, 0, 0
        self._shown = shown
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            self._bar = require("tqdm").tqdm(total=steps, unit="step", dynamic_ncols=True, smoothing=0.05)

    def __enter__(self) -> ExperimentProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if kind is None:
                self._bar.set_description_str("done", refresh=False)
            self._bar.close()

    def job(self, label: str, steps: int) -> Callable[[int, Tensor], None]:
        """Begin the next job; what comes back is to be called as ``on_step(step, loss)``."""
        before = self._done
        self._started += 1
        self._done += steps
        if self._bar is not None:
            self._bar.set_description_str(label, refresh=False)
            # Jobs that were finished earlier have made no call.
            self._bar.update(before - self._bar.n)
        elif self._shown:
            print(f"[{self._started}/{self._jobs}] {label}", file=sys.stderr, flush=True)

        def on_step(step: int, _loss: Tensor) -> None:
            if self._bar is not None:
                self._bar.update(before + step - self._bar.n)

        return on_step
