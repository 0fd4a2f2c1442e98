"""Options whose value is a mapping: the arguments of the class that another option selects.

On the command line it is JSON, ``--model_args '{"width": 64}'``, in a file a mapping. A name with dots is that of one
argument: ``--set model_args.width=64`` and, in a file, ``model_args.width: 64``.
"""

import json
import math
import re
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
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
    if isinstance(value, dict):
        for name, entry in value.items():
            if not name.isidentifier():
                raise ValueError(f"{shown(name)} is not the name of an argument")
            check_arguments(entry)
    elif isinstance(value, list):
        for entry in value:
            check_arguments(entry)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    elif isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{shown(value)} cannot be printed")


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
    """Return the value of the text of a --set; ValueError when it is no argument."""
    value = typed(text)
    check_arguments({"value": value})
    return value


def with_value(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of a mapping in which the entry at `path` has another value; missing mappings are made.

    >>> with_value({"width": 64}, ["norm", "eps"], 1e-5)
    {'width': 64, 'norm': {'eps': 1e-05}}
    """
    first, *rest = path
    inner = values.get(first)
    return {**values, first: with_value(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}
