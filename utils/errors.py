"""Exceptions for people, each with the exit status of a program that ends with it."""

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """An option, a file or a directory cannot work.

    The message is one line: the value, the allowed values, the mend. Programs print it on stderr without a traceback,
    and end with `status`. A fault of the programmer is any other exception.
    """

    status = 2

    def __init__(self, message: str):
        # DataLoader passes the error of a loading process on as a text with its traceback.
        super().__init__(message.rpartition("utils.errors.UserError: ")[2].strip())


class DamagedError(UserError):
    """A checkpoint is damaged, or none is left that is intact."""

    status = 3


class DivergedError(UserError):
    """A loss or a gradient is infinite or not a number."""

    status = 4


class LoadingError(UserError):
    """A loading process died or hangs."""

    status = 5


class PeerError(UserError):
    """Another of the training processes died, or does not answer."""

    status = 6


def shown(value: Any) -> str:
    """Quote a value for a message, shortened if it is long.

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
    import difflib  # here, as only an error needs it

    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean '{by_lower[found[0]]}'?)" if found else ""
