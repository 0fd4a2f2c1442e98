"""Explain in one line what code of the task has raised: the option or the line of code that is to be mended."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
STANDARD_LIBRARY = Path(traceback.__file__).resolve().parent
# Of the template, and seldom the culprit.
MACHINERY = ("engine", "utils", "data", "callbacks", "extras", "tools", "trainer.py", "eval.py")
OF_TASK = 2  # the rank of a file
COMPONENTS = ("model", "loss")  # of the template, the culprit if no code of the task is on the way


def blame(
    error: BaseException,
    parts: Mapping[str, Iterable[Any]] | None = None,
    suspects: Iterable[tuple[str, Callable]] = (),
) -> str:
    """Return one line that names an error, the option that it comes from, and the line of code.

    Args:
        error: an exception with its traceback.
        parts: by option, the objects that it made. The option is named if a method of one of them leads to the error.
        suspects: (name of a function of the machinery, function of the task). The second returned what the first one
            refuses, so it is named if no code of the task leads to the error, but the first does.
    """
    option = ""
    places = []
    passed = set()
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        passed.add(code.co_name)
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None
        for name, objects in (parts or {}).items():
            if any(owner is made for made in objects):
                option = name
        if rank := rank_of(code.co_filename):
            places.append((rank, len(places), f"{shorten(code.co_filename)}:{line}"))
    if not any(rank == OF_TASK for rank, _, _ in places):
        made_by = [function.__code__ for name, function in suspects if name in passed and hasattr(function, "__code__")]
        for code in made_by:
            if rank_of(code.co_filename) == OF_TASK:
                line = f"{code.co_name}, {shorten(code.co_filename)}:{code.co_firstlineno}"
                return described(error, option, line)
    return described(error, option, max(places)[-1] if places else "")


def described(error: BaseException, option: str, place: str) -> str:
    """Return one line on an error, with the option and the line of code if they are known."""
    where = ", ".join(text for text in (option, place) if text)
    message = " ".join(str(error).split()) or "no message"
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{message}" + (f" ({where})" if where else "")


def rank_of(file: str) -> int:
    """Return how likely a file is to be mended: 2 for code of the task, 1 for a component of the template, else 0."""
    path = Path(file)
    if not path.exists() or "site-packages" in path.parts or "dist-packages" in path.parts:
        return 0
    if not path.is_relative_to(ROOT):
        return 0 if path.is_relative_to(STANDARD_LIBRARY) else OF_TASK
    first = path.relative_to(ROOT).parts[0]
    return 0 if first in MACHINERY else 1 if first in COMPONENTS else OF_TASK


def shorten(file: str) -> str:
    """Return a path relative to the working directory, if it is below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
