"""Explain in one line what the first batch has raised: the option or the line of code that is to be mended."""

import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ("engine", "utils", "data", "callbacks", "trainer.py", "eval.py")  # our own machinery, seldom the culprit


def blame(error: BaseException, parts: Mapping[str, Iterable[Any]]) -> str:
    """Return one line that names an error, the option that it comes from, and the line of code.

    Args:
        error: an exception with its traceback.
        parts: by option, the objects that it made. The option is named if a method of one of them leads to the error.
    """
    option = ""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None
        for name, objects in parts.items():
            if any(owner is made for made in objects):
                option = name
        if is_own_code(code.co_filename):
            place = f"{shorten(code.co_filename)}:{line}"
    message = " ".join(str(error).split()) or "no message"
    where = ", ".join(text for text in (option, place) if text)
    return f"{type(error).__name__}: {message}" + (f" ({where})" if where else "")


def is_own_code(file: str) -> bool:
    """Return whether a file belongs to a task: neither to a library nor to the machinery of a run."""
    path = Path(file)
    if "site-packages" in path.parts or "dist-packages" in path.parts or not path.exists():
        return False
    if not path.is_relative_to(ROOT):
        return "lib" not in path.parts  # the standard library
    return path.relative_to(ROOT).parts[0] not in HOUSE


def shorten(file: str) -> str:
    """Return a path relative to the working directory, if it is below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
