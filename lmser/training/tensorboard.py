"""The same numbers as in the log, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmser._extras import require


class TensorBoard:
    """Event files in `directory` (extra ``experiments``); None: nothing is written.

    What earlier sessions wrote of the steps after `step` is marked as void, as a resumed run takes those
    steps again. Raises ImportError naming the extra where TensorBoard is not installed.
    """

    def __init__(self, directory: Path | None, step: int) -> None:
        self._writer: Any = None
        if directory is not None:
            require("tensorboard", extra="experiments")
            writer = require("torch.utils.tensorboard").SummaryWriter
            self._writer = writer(str(directory), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, Any], prefix: str = "") -> None:
        """Write those of `values` that are numbers, but for the step itself."""
        if self._writer is not None:
            for name, value in values.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{prefix}{name}", value, step)

    def flush(self) -> None:
        """Put everything on the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Put everything on the disk and end."""
        if self._writer is not None:
            self._writer.close()
