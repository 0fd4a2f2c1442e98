"""Measure the time of named blocks.

>>> timers = Timers()
>>> with timers("epoch"):
...     for _ in range(3):
...         with timers("augment"):
...             pass
>>> [(name, timers.count(name)) for name in timers.names]
[('epoch', 1), ('epoch/augment', 3)]
"""

import functools
import threading
import time
from collections.abc import Callable

import torch


class Timers:
    """Adds up the seconds of named blocks; a block within another one gets a name below it.

    Blocks nest within their thread. A block costs about two microseconds.

    Args:
        synchronize: wait for the current GPU before each reading of the clock, because a GPU works on after a block has
            ended. Waiting slows the program down. No effect before CUDA is used.
        clock: returns seconds.

    Attributes:
        totals: (seconds, count) by full name.
    """

    def __init__(self, synchronize: bool = False, clock: Callable[[], float] = time.perf_counter):
        self.synchronize, self.clock = synchronize, clock
        self.totals: dict[str, tuple[float, int]] = {}
        self._guard = threading.Lock()
        self._open = threading.local()  # .names: the blocks that this thread is in

    def __call__(self, name: str) -> "Block":
        """Return a context manager, which is a decorator as well, that times a block under this name."""
        return Block(self, name)

    def now(self) -> float:
        """Return the time of the clock, after the GPU has finished if `synchronize` is set."""
        if self.synchronize and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return self.clock()

    def enter(self, name: str) -> None:
        """Begin a block."""
        names = self._open.__dict__.setdefault("names", [])
        names.append(f"{names[-1]}/{name}" if names else name)
        with self._guard:  # the table lists a block above those within it
            self.totals.setdefault(names[-1], (0.0, 0))

    def leave(self, seconds: float) -> None:
        """End the innermost block, which took `seconds`."""
        name = self._open.names.pop()
        with self._guard:
            total, count = self.totals.get(name, (0.0, 0))
            self.totals[name] = total + seconds, count + 1

    @property
    def names(self) -> list[str]:
        """The full names, in the order of their first blocks."""
        return [*self.totals]

    def total(self, name: str) -> float:
        """Return the seconds in all blocks of a full name."""
        return self.totals[name][0]

    def count(self, name: str) -> int:
        """Return the number of blocks of a full name that have ended."""
        return self.totals[name][1]

    def mean(self, name: str) -> float:
        """Return the mean seconds of a block of a full name; 0 when none has ended."""
        total, count = self.totals[name]
        return total / count if count else 0.0

    def table(self) -> str:
        """Return a table with total, count and mean for each name, indented below its outer block."""
        rows = [("block", "total s", "count", "mean ms")]
        for name in self.names:
            shown = "  " * name.count("/") + name.rpartition("/")[2]
            rows.append((shown, f"{self.total(name):.3f}", f"{self.count(name):,}", f"{1000 * self.mean(name):.3f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            f"{row[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
            for row in rows
        )

    def clear(self) -> None:
        """Drop all blocks that have ended."""
        with self._guard:
            self.totals.clear()


class Block:
    """Times ``with timers("augment"):``, or a function below ``@timers("augment")``."""

    def __init__(self, timers: Timers, name: str):
        if not name or "/" in name:
            raise ValueError(f"{name!r} cannot name a block: it must not be empty or contain a /")
        self.timers, self.name = timers, name
        self._started: list[float] = []  # several, when one object is entered again within itself

    def __enter__(self) -> "Block":
        self.timers.enter(self.name)
        self._started.append(self.timers.now())
        return self

    def __exit__(self, *exception) -> None:
        self.timers.leave(self.timers.now() - self._started.pop())

    def __call__(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*arguments, **keywords):
            with Block(self.timers, self.name):
                return function(*arguments, **keywords)

        return timed


timer = Timers()  # for a whole program: from tools.timer import timer
