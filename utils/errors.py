"""The one exception for people."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot work: an option, a file, a directory.

    The message is one or two lines: what was given, what is allowed, how to mend it. The command lines end with it
    on stderr and exit status 2, without a traceback. A fault of the programmer is any other exception.
    """

    def __init__(self, message: str):
        # A loading process hands its error over as a text that has the traceback in it.
        super().__init__(message.rpartition("utils.errors.UserError: ")[2].strip())


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name most like `name`, or ``""`` when none is near.

    >>> nearest("adamw", ["adam", "adamW", "sgd"])
    " (did you mean 'adamW'?)"
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean '{by_lower[found[0]]}'?)" if found else ""
