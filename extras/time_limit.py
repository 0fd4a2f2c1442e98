"""Stop a run before its time is over (--max_time), between two updates and with a checkpoint."""

import time
from collections.abc import Callable

from engine.runs.signals import OUT_OF_TIME, STARTED, StopSignal
from utils.duration import seconds_of


def seconds_since_start() -> float:
    """Return the seconds since the program started."""
    return time.monotonic() - STARTED


class TimeLimit(StopSignal):
    """A `StopSignal` that also stops when another round might not end in time.

    Args:
        duration: the most that the process may take: seconds, or a text such as 3h50m.
        clock: returns the seconds that have passed.
    """

    def __init__(self, duration: str | float, clock: Callable[[], float] = seconds_since_start):
        super().__init__()
        self.max_seconds = seconds_of(duration)
        self._clock = clock
        self._last_asked: float | None = None
        self._longest_gap = 0.0

    def __enter__(self) -> "TimeLimit":
        self._last_asked = None
        super().__enter__()
        return self

    def pending(self) -> int:
        """Return the number of the signal that arrived; `OUT_OF_TIME` if another round might not end in time; else 0.

        Another round may take twice the longest time between two calls so far, and `reserve` seconds after it.
        """
        if self.signum is not None:
            return super().pending()
        now = self._clock()
        if self._last_asked is not None:
            self._longest_gap = max(self._longest_gap, now - self._last_asked)
        self._last_asked = now
        return OUT_OF_TIME if now + 2 * self._longest_gap + self.reserve >= self.max_seconds else 0
