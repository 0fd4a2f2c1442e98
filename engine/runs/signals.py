"""Stop between two updates, when a signal asks for it or the time is nearly up, instead of in the middle of one."""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

from utils.errors import LoadingError

# Ctrl-C, the request to end, the terminal that was closed, and a scheduler's warning that the time is nearly up.
# Windows knows the first two.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
GRACE = 1.5  # seconds that are left to the end under way when a second signal comes
TIME_IS_UP = 75  # the exit status "try again later" of sysexits.h
OUT_OF_TIME, STOP_ASKED = 1000, 1001  # beyond the number of any signal
TERMINAL_MESSAGE = b"\nStopping where it is safe; a second signal ends the process within 2 seconds, unsaved.\n"


def exit_status(signum: int) -> int:
    """The exit status after a signal: 128 + its number, as a shell would report it; a warning counts as SIGTERM."""
    return 128 + (signal.SIGTERM if signum == getattr(signal, "SIGUSR1", None) else signum)


class Terminated(SystemExit):
    """A signal other than Ctrl-C arrived: which one is in `signum`. It ends the process with `exit_status(signum)`."""

    def __init__(self, signum: int = signal.SIGTERM):
        super().__init__(exit_status(signum))
        self.signum = signum


class TimeIsUp(SystemExit):
    """The time that the run was given is nearly over. It ends the process with status 75: to be continued."""

    def __init__(self):
        super().__init__(TIME_IS_UP)


# ---- time ------------------------------------------------------------------------------------------------------------
def process_age() -> float:
    """Seconds since this process began; 0 where the system does not tell. Linux does, in /proc."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # what follows the name, which may hold anything
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


STARTED = time.monotonic() - process_age()


def seconds_since_start() -> float:
    """Seconds since this process began: its imports count. Where the system does not tell, since this module's."""
    return time.monotonic() - STARTED


# ---- signals ---------------------------------------------------------------------------------------------------------
class SecondSignal:
    """A thread that ends the process `GRACE` seconds after the second of `SIGNALS`, whatever the main thread does.

    A handler in Python waits for the main thread to come back from C, which may compute or wait for long. So the
    number of each signal is taken from a socket (`signal.set_wakeup_fd`), into which it is written at once. Only a C
    function that keeps all of Python waiting (it holds the global interpreter lock) is beyond this, and leaves SIGKILL.
    """

    def __init__(self):
        self._reader, self._writer = socket.socketpair()  # a pipe would not do on Windows
        self._writer.setblocking(False)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="second signal")
        self._thread.start()
        self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        """Stop watching."""
        signal.set_wakeup_fd(self._previous)
        self._is_over.set()
        with contextlib.suppress(BlockingIOError):  # full, so there is something to wake up from
            self._writer.send(b"\0")
        self._thread.join()
        self._reader.close()
        self._writer.close()

    def _watch(self) -> None:
        num_signals = 0
        while num_signals < 2 and not self._is_over.is_set():
            for number in self._reader.recv(64):  # one byte for each signal, also for those that are not ours
                if number in SIGNALS:
                    num_signals, last = num_signals + 1, number
        if not self._is_over.wait(GRACE):
            end_now(exit_status(last))


def end_now(status: int) -> None:
    """End this process and those that load data for it, without any of Python's cleaning up."""
    try:
        for child in multiprocessing.active_children():
            child.kill()
    finally:
        os._exit(status)


class StopSignal:
    """While active, the first of `SIGNALS` only sets a flag; after a second one the process is gone within 2 s.

    An update that is cut short leaves weights that belong to no position of the run. So the loop asks
    `raise_if_set()` where it is safe to stop. A second signal leaves `GRACE` seconds to a stop that is under way,
    since a scheduler may send the same signal twice at once. Outside the main thread, signals are not watched.

    Args:
        max_seconds: how long the process may take, see `raise_if_set`; None for no limit.
        clock: returns how many seconds have passed.

    Attributes:
        signum: the first signal, once it came.
        reserve: seconds that the way from `raise_if_set` to the end takes, such as to write a checkpoint; to be set by
            whoever knows.

    >>> with StopSignal() as stop_signal:
    ...     stop_signal.raise_if_set()      # does nothing until a signal came
    """

    def __init__(self, max_seconds: float | None = None, clock: Callable[[], float] = seconds_since_start):
        self.signum: int | None = None
        self.max_seconds = max_seconds
        self.reserve = 0.0
        self._clock = clock
        self._last_asked: float | None = None
        self._longest_gap = 0.0
        self._previous: dict[int, object] = {}
        self._second_signal: SecondSignal | None = None

    def __enter__(self) -> "StopSignal":
        self.signum, self._last_asked = None, None
        if threading.current_thread() is threading.main_thread():
            self._second_signal = SecondSignal()
            ACTIVE.append(self)
            for signum in SIGNALS:
                # Ignored: whoever started the process shielded it (nohup, a shell's background job). None: set in C.
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception) -> None:
        if self._second_signal is None:
            return
        self._second_signal.close()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous, self._second_signal = {}, None
        if self in ACTIVE:
            ACTIVE.remove(self)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            with contextlib.suppress(OSError):
                if os.isatty(2):  # print() must not be called from a handler: it may have interrupted a print()
                    os.write(2, TERMINAL_MESSAGE)

    def cause_of(self, error: BaseException) -> BaseException:
        """The exception itself; or the signal, when a loading process ended by it, which went to all processes."""
        if self.signum is None or not isinstance(error, LoadingError):
            return error
        return KeyboardInterrupt() if self.signum == signal.SIGINT else Terminated(self.signum)

    def raise_if_set(self) -> None:
        """Raise what `pending` stands for, if anything."""
        self.raise_for(self.pending())

    @staticmethod
    def raise_for(code: int) -> None:
        """Raise KeyboardInterrupt, `Terminated` or `TimeIsUp` for what `pending` returned, in whatever process."""
        if code == OUT_OF_TIME:
            raise TimeIsUp
        if code not in (0, STOP_ASKED):
            raise KeyboardInterrupt if code == signal.SIGINT else Terminated(code)

    def pending(self) -> int:
        """The number of the signal that has arrived; `OUT_OF_TIME` if another round might not end in time; else 0.

        Another round is taken to last up to twice the longest time between two calls so far, and `reserve` seconds
        after it. Before the second call nothing is known of a round, and it counts as 0 seconds.
        """
        if self.signum is not None:
            return int(self.signum)
        if self.max_seconds is None:
            return 0
        now = self._clock()
        if self._last_asked is not None:
            self._longest_gap = max(self._longest_gap, now - self._last_asked)
        self._last_asked = now
        return OUT_OF_TIME if now + 2 * self._longest_gap + self.reserve >= self.max_seconds else 0


ACTIVE: list[StopSignal] = []  # one within the other


def forget_in_child() -> None:
    """In a forked process: a signal to it must not count as one to this process, and SIGTERM must end it again."""
    if ACTIVE:
        outermost = ACTIVE[0]
        ACTIVE.clear()
        signal.set_wakeup_fd(-1)
        if signal.SIGTERM in outermost._previous:
            signal.signal(signal.SIGTERM, outermost._previous[signal.SIGTERM])


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=forget_in_child)
