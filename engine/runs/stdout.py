"""Standard output whose reader has gone away, as in ``... | head -1``: no fault, and nothing to complain of."""

import contextlib
import os
import select
import sys
from typing import TextIO

STATUS_UNREAD = 141  # 128 + SIGPIPE, what a shell reports of a program that wrote to nobody


def is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has gone away. Windows does not tell."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(stream, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def flush_output() -> None:
    """Write what standard output still holds. What nobody reads goes nowhere, or Python would complain at its end."""
    with contextlib.suppress(OSError):  # a full disk is complained of there
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
