"""A bar on a terminal, and nothing anywhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from lmser._extras import require


class ProgressBar:
    """Steps done out of `steps`, with the newest loss beside them.

    wanted: True: show it (ImportError naming the extra where tqdm is not installed); None: only where
    standard error is a terminal and tqdm is installed; False: never.
    """

    def __init__(self, wanted: bool | None, description: str, steps: int) -> None:
        self._bar: Any = None
        if wanted is False or (wanted is None and not sys.stderr.isatty()):
            return
        try:
            tqdm = require("tqdm", extra="experiments").tqdm
        except ImportError:
            if wanted:
                raise
            return
        self._bar = tqdm(total=steps, desc=description or None, unit="step", dynamic_ncols=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def to(self, step: int, loss: float | None) -> None:
        """Move to `step`, forwards."""
        if self._bar is not None:
            if loss is not None:
                self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update(step - self._bar.n)
