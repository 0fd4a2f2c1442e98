"""Exceptions for people, and what the exit status of a program says."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user gave cannot work: an option, a file, a directory.

    The message is one or two lines: what was given, what is allowed, how to mend it. The command lines end with it
    on stderr and exit status `status`, without a traceback. A fault of the programmer is any other exception.
    """

    status = 2  # what was asked for cannot work

    def __init__(self, message: str):
        # A loading process hands its error over as a text that has the traceback in it.
        super().__init__(message.rpartition("utils.errors.UserError: ")[2].strip())


class DamagedError(UserError):
    """A checkpoint is not what was once written, or no checkpoint is left that is."""

    status = 3


class DivergedError(UserError):
    """A loss or a gradient is infinite or not a number.

    Attributes:
        update: the data of the update that it happened in, when that is not the one under way.
    """

    status = 4
    update: Any = None


class LoadingError(UserError):
    """A process that loads data died or hangs."""

    status = 5


class PeerError(UserError):
    """Another of several processes died, or does not answer."""

    status = 6


def shown(value: Any) -> str:
    """Quote what was given for a message, cut when it is long.

    >>> shown("1e-3x"), shown("9" * 100)
    ("'1e-3x'", "'999999999999999999999999999999999999999999999999999999999999'...")
    """
    text = str(value)
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name most like `name`, or ``""`` when none is near.

    >>> nearest("adamw", ["adam", "adamW", "sgd"])
    " (did you mean 'adamW'?)"
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean '{by_lower[found[0]]}'?)" if found else ""
