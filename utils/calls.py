"""Call a class with arguments that a person has given, and name those that it does not take."""

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.errors import UserError, nearest, shown

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
OF_TORCH = ("torch.", "utils.eager_optim")
OF_VALUES = (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AttributeError)  # what bad values raise


def name_of(make: Callable) -> str:
    return getattr(make, "__name__", None) or type(make).__name__


def parameters_of(make: Callable) -> list[inspect.Parameter]:
    """The parameters of a class or function; UserError for one that does not tell them."""
    try:
        return list(inspect.signature(make).parameters.values())
    except (TypeError, ValueError):
        raise UserError(f"{name_of(make)} does not say what arguments it takes: wrap it in a function.") from None


def taken(make: Callable, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `offered` that `make` names among its parameters; what ``**kwargs`` would take is not offered to it.

    >>> taken(lambda width, **more: None, {"width": 64, "depth": 3})
    {'width': 64}
    """
    names = {parameter.name for parameter in parameters_of(make) if parameter.kind in NAMED}
    return {name: value for name, value in offered.items() if name in names}


def call(
    make: Callable, given: Mapping[str, Any], arguments: Mapping[str, Any], option: str, first: Sequence[Any] = ()
) -> Any:
    """Return ``make(*first, **given, **arguments)``; of what is in both, `arguments` counts.

    Args:
        make: a class or function.
        given: what the template gives it.
        arguments: what a person has given, by the option `option`.
        option: for messages.
        first: positional arguments.

    Raises:
        UserError: when it does not take one of the arguments, lacks one, or cannot do with their values.
    """
    parameters = parameters_of(make)[len(first) :]
    names = [parameter.name for parameter in parameters if parameter.kind in NAMED]
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    for name in arguments:
        if name not in names and not takes_all:
            raise UserError(
                f"{option}: {name_of(make)} takes no argument {shown(name)}{nearest(name[:60], names)}; "
                f"it takes {', '.join(names) or 'none'}."
            )
    both = {**given, **arguments}
    needed = [p.name for p in parameters if p.kind in NAMED and p.default is p.empty and p.name not in both]
    if needed:
        raise UserError(f"{name_of(make)} needs the argument {', '.join(needed)}: give it by {option}.")
    try:
        inspect.signature(make).bind(*first, **both)
    except TypeError as error:
        raise UserError(f"{name_of(make)} cannot be called with what it is given: {error}.") from None
    try:
        return make(*first, **both)
    except UserError:
        raise
    except OF_VALUES as error:
        if not arguments and not str(getattr(make, "__module__", "")).startswith(OF_TORCH):
            raise  # it is at fault itself, so its programmer wants the traceback
        given_text = f" with {option} {shown(dict(arguments))}" if arguments else ""
        raise UserError(f"{name_of(make)} cannot be made{given_text}: {told(error)}") from error


def told(error: BaseException) -> str:
    """An exception in one line, with the place that it comes from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({frame.filename}:{frame.lineno})"
