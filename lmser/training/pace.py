"""When the loop looks up from its steps: in every process after the same one."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from lmser.training.config import TrainConfig
from lmser.training.distributed import is_main, largest, world_size

# Losses stay on the device until so many wait, or so many seconds have gone by: reading one waits for the
# device, and a step of a small network is shorter than the bar's or the file's own work. Several processes
# ask each other about signals and clocks no more often either.
_FLUSH_LOSSES, _FLUSH_SECONDS = 50, 0.25


class Pace:
    """Decides after each step whether something else is to be done before the next.

    saves: there is a place for checkpoints.  stop: gives the number of a signal that came to this process.
    """

    def __init__(
        self, config: TrainConfig, pauses: frozenset[int], saves: bool, stop: Callable[[], int | None]
    ) -> None:
        self._config, self._pauses, self._saves, self._stop = config, pauses, saves, stop
        self._saved_at = perf_counter()
        self._block = (perf_counter(), 0)
        self._meeting = 0  # with several processes: the next step after which they ask each other

    def begin_block(self, step: int) -> None:
        """Steps are taken again, `step` of them are done."""
        self._block = (perf_counter(), step)

    def end_block(self, step: int) -> tuple[float, int]:
        """Seconds and steps since the last `begin_block`."""
        seconds, steps = perf_counter() - self._block[0], step - self._block[1]
        if world_size() > 1:
            # The first process's clock says how many steps go into the time.
            (apart,) = largest([int(_FLUSH_SECONDS * steps / seconds) if is_main() else 0])
            self._meeting = step + min(max(apart, 1), _FLUSH_LOSSES)
        return seconds, steps

    def due(self, step: int, waiting: int) -> tuple[bool, bool]:
        """Whether to look up after `step`, with so many losses waiting, and whether to save then."""
        every, seconds, now = self._config.checkpoint_every, self._config.checkpoint_seconds, perf_counter()
        known = step in self._pauses or step == self._config.steps
        counted = self._saves and every > 0 and step % every == 0
        if not known and not counted and step < self._meeting:
            return False, False
        late = is_main() and seconds > 0 and now - self._saved_at >= seconds
        full = world_size() > 1 or waiting >= _FLUSH_LOSSES or now - self._block[0] >= _FLUSH_SECONDS
        stopped, timed = largest([self._stop() is not None, late])
        save = self._saves and bool(known or counted or stopped or timed)
        return bool(known or stopped or save or full), save

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved_at = perf_counter()

    def signum(self) -> int | None:
        """The number of a signal that came to any process."""
        return largest([self._stop() or 0])[0] or None
