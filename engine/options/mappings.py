"""Options whose value is a mapping: the arguments of the class that another option selects.

On the command line ``--model_args '{"width": 64}'``, in a file a mapping; and of a mapping's values each one by its
dotted name, ``--set model_args.width=64`` and, in a file, ``model_args.width: 64``.
"""

import json
import math
import re
from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.options.files import check_depth, typed, without_duplicates
from utils.errors import shown


def mapping(text: str) -> dict[str, Any]:
    """An argparse type for a JSON object.

    >>> mapping('{"width": 64}')
    {'width': 64}
    """
    try:
        if re.search(r"[^\S \n\t]", text):
            raise ValueError("it holds what cannot be printed")
        value = json.loads(text, object_pairs_hook=without_duplicates)
        if not isinstance(value, dict):
            raise ValueError('it must be an object, such as {"width": 64}')
        check_arguments(value)
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f"""{shown(text)} is not JSON such as '{{"width": 64}}' ({error.msg})""") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ArgumentTypeError(f"{shown(text)}: {reason}") from None
    return value


def check_arguments(value: Any) -> None:
    """Raise ValueError for numbers that are not finite, names that are no arguments, and what is nested too deeply."""
    check_depth(value)
    for name in value if isinstance(value, dict) else ():
        if not name.isidentifier():
            raise ValueError(f"{shown(name)} is not the name of an argument")
    for entry in entries_of(value):
        if isinstance(entry, float) and not math.isfinite(entry):
            raise ValueError(f"{entry} is not a finite number")
        if isinstance(entry, str) and not entry.isprintable():
            raise ValueError(f"{shown(entry)} cannot be printed")


def entries_of(value: Any) -> Iterator[Any]:
    """All that is no mapping or list, names included."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield name
            yield from entries_of(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from entries_of(entry)
    else:
        yield value


def setting(text: str) -> tuple[str, str]:
    """An argparse type for ``name=value``, of which the name may have dots.

    >>> setting("model_args.width=64")
    ('model_args.width', '64')
    """
    name, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in name.split(".")):
        raise ArgumentTypeError(f"{shown(text)} is not NAME=VALUE, such as model_args.width=64")
    return name, value


def argument(text: str) -> Any:
    """What the text of a --set stands for; ValueError when that is no argument."""
    value = typed(text)
    check_arguments({"value": value})
    return value


def with_value(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of a mapping in which the entry at `path` has another value; mappings on the way there are made.

    >>> with_value({"width": 64}, ["norm", "eps"], 1e-5)
    {'width': 64, 'norm': {'eps': 1e-05}}
    """
    first, *rest = path
    inner = values.get(first)
    return {**values, first: with_value(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}
