"""Stop between two updates when a signal arrives or the time is nearly up.

An update that is cut short leaves weights that belong to no position of the run.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time

from utils.errors import LoadingError

# Ctrl-C, the request to end, a closed terminal, and a scheduler's warning that the time is nearly up.
# Windows has the first two.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
GRACE = 1.5  # seconds for a stop that is under way when a second signal arrives
TIME_IS_UP = 75  # the exit status "try again later" of sysexits.h
OUT_OF_TIME, STOP_ASKED = 1000, 1001  # codes beside the numbers of signals
TERMINAL_MESSAGE = b"\nStopping after this update; a second signal ends the process within 2 seconds, unsaved.\n"
STARTED = time.monotonic()


def exit_status(signum: int) -> int:
    """Return the exit status after a signal: 128 + its number, as shells report it; SIGUSR1 counts as SIGTERM."""
    return 128 + (signal.SIGTERM if signum == getattr(signal, "SIGUSR1", None) else signum)


class Terminated(SystemExit):
    """Ends the process after signal `signum`, with its `exit_status`."""

    def __init__(self, signum: int = signal.SIGTERM):
        super().__init__(exit_status(signum))
        self.signum = signum


class TimeIsUp(SystemExit):
    """Ends the process with status 75, to be continued: the time of the run is nearly over."""

    def __init__(self):
        super().__init__(TIME_IS_UP)


class StopSignal(contextlib.ExitStack):
    """In its `with` block, the first of `SIGNALS` only sets a flag; a second one ends the process within 2 seconds.

    The loop calls `raise_if_set()` where it is safe to stop. A second signal leaves `GRACE` seconds to a stop that is
    under way, because schedulers and launchers may send the same signal twice at once.

    A Python handler only runs when the main thread returns from C, which may take minutes. So a thread reads the
    signals from a socket (`signal.set_wakeup_fd`) and counts them. Outside the main thread, signals are not watched.

    Attributes:
        signum: the first signal, once it arrived.
        reserve: seconds from `raise_if_set` to the end of the process, such as for writing a checkpoint. Only a time
            limit asks for them, see `extras.time_limit`.
        may_end_process: False in a notebook, whose kernel must live on: a second signal then raises its exception.

    >>> with StopSignal() as stop_signal:
    ...     stop_signal.raise_if_set()      # does nothing until a signal arrives
    """

    def __init__(self):
        super().__init__()
        self.signum: int | None = None
        self.reserve = 0.0
        self.may_end_process = True

    def __enter__(self) -> "StopSignal":
        self.signum = None
        if threading.current_thread() is threading.main_thread():
            if self.may_end_process:
                self._start_thread()
            self._set_handlers()
        return self

    def _start_thread(self) -> None:
        """Start the thread that hears a second signal; the end of the block ends it."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        is_over = threading.Event()
        thread = threading.Thread(target=end_at_second_signal, args=(reader, is_over), daemon=True)
        thread.start()
        for close in (reader.close, writer.close, thread.join):
            self.callback(close)
        # Closing the writer would not do: forked processes have copies of it.
        self.callback(writer.shutdown, socket.SHUT_WR)
        self.callback(is_over.set)
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self.callback(signal.set_wakeup_fd, previous)

    def _set_handlers(self) -> None:
        """Set the handlers; the end of the block puts those back that were there."""
        for signum in SIGNALS:
            handler = signal.getsignal(signum)
            if handler not in (signal.SIG_IGN, None):  # ignored: by nohup, or by a shell for a background job
                signal.signal(signum, self._note)
                self.callback(signal.signal, signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        if self.signum is None:
            self.signum = signum
            with contextlib.suppress(OSError):
                if os.isatty(2):  # a handler must not call print(): it may have interrupted a print()
                    os.write(2, TERMINAL_MESSAGE)
        elif not self.may_end_process:
            self.raise_for(signum)

    def cause_of(self, error: BaseException) -> BaseException:
        """Return the signal's exception when it also ended a loading process, whose end is `error`; else `error`."""
        if self.signum is None or not isinstance(error, LoadingError):
            return error
        return KeyboardInterrupt() if self.signum == signal.SIGINT else Terminated(self.signum)

    def raise_if_set(self) -> None:
        """Raise KeyboardInterrupt, `Terminated` or `TimeIsUp` when there is a reason to stop."""
        self.raise_for(self.pending())

    @staticmethod
    def raise_for(code: int) -> None:
        """Raise the exception for a code that `pending` returned, maybe in another process."""
        if code == OUT_OF_TIME:
            raise TimeIsUp
        if code not in (0, STOP_ASKED):
            raise KeyboardInterrupt if code == signal.SIGINT else Terminated(code)

    def pending(self) -> int:
        """Return the number of the signal that arrived; else 0."""
        return int(self.signum or 0)


def end_at_second_signal(reader: socket.socket, is_over: threading.Event) -> None:
    """Read the numbers of signals, and end the process `GRACE` seconds after the second of `SIGNALS`."""
    arrived: list[int] = []
    while len(arrived) < 2:
        numbers = reader.recv(64)  # one byte for each signal, also for those that are not ours
        if not numbers:
            return
        arrived += [number for number in numbers if number in SIGNALS]
    if not is_over.wait(GRACE):
        end_now(exit_status(arrived[-1]))


def end_now(status: int) -> None:
    """End this process and its children without any cleaning up."""
    try:
        for child in multiprocessing.active_children():
            child.kill()
    finally:
        os._exit(status)


def reset_in_child() -> None:
    """Stop watching in a forked process: its signals are not the parent's, and SIGTERM must end it."""
    owners = [getattr(signal.getsignal(signum), "__self__", None) for signum in SIGNALS]
    if any(isinstance(owner, StopSignal) for owner in owners):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reset_in_child)
