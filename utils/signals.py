"""Stop between two updates when asked to, instead of in the middle of one."""

import signal
from types import FrameType

# Ctrl-C, the request to end, and (where there is one) the terminal that was closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Terminated(SystemExit):
    """A signal other than Ctrl-C arrived. It ends the process with status 128 + signal, as a shell would report it."""

    def __init__(self, signum: int = signal.SIGTERM):
        super().__init__(128 + signum)


class StopSignal:
    """While active, the first of `SIGNALS` only sets a flag; a second one acts at once.

    An update that is cut short leaves weights that belong to no position of the run. So the loop asks
    `raise_if_set()` where it is safe to stop.

    >>> with StopSignal() as stop_signal:
    ...     stop_signal.raise_if_set()      # does nothing until a signal came
    """

    def __init__(self):
        self.signum: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for signum in SIGNALS:
            if signal.getsignal(signum) is signal.SIG_IGN:
                continue  # whoever started the process shielded it: nohup, a shell's background job
            try:
                self._previous[signum] = signal.signal(signum, self._note)
            except ValueError:  # not the main thread: signals go elsewhere, so there is nothing to note
                break
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self._raise(signum)
        self.signum = signum

    def raise_if_set(self) -> None:
        """Raise KeyboardInterrupt or `Terminated` if a signal has arrived."""
        if self.signum is not None:
            self._raise(self.signum)

    @staticmethod
    def _raise(signum: int) -> None:
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated(signum)
