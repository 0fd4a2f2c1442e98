"""Call a class with arguments that a person has given, and name those that it does not take."""

import inspect
import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from utils.errors import UserError, nearest, shown

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
LISTS = (list, tuple, Sequence, Iterable)
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
        UserError: when it does not take one of the arguments, lacks one, or cannot do with their kinds or values.
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
    for parameter in parameters:
        if wanted := wanted_instead(parameter, arguments):
            given_text = shown(json.dumps(arguments[parameter.name]))
            raise UserError(f"{option}: {parameter.name} of {name_of(make)} is {wanted}, not {given_text}.")
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


def wanted_instead(parameter: inspect.Parameter, arguments: Mapping[str, Any]) -> str:
    """What kind of value a parameter is annotated with, when the one given is of another kind; else "".

    Only plain kinds are looked at: numbers, texts, lists, true and false, and what may be null besides.
    """
    if parameter.name not in arguments or parameter.kind not in NAMED:
        return ""
    value, kinds = arguments[parameter.name], kinds_of(parameter.annotation)
    if value is None and (parameter.default is None or type(None) in kinds):
        return ""
    if all(kind is type(None) or (get_origin(kind) or kind) in LISTS for kind in kinds):
        return "" if isinstance(value, list) else "a list"
    if not all(isinstance(kind, type) and kind in KINDS for kind in kinds):
        return ""
    fits = type(value) in kinds or (type(value) is int and float in kinds)  # type: true is no number here
    return "" if fits else " or ".join(KINDS[kind] for kind in kinds)


def kinds_of(annotation: Any) -> list[Any]:
    """The kinds that an annotation allows; it may be a text, of which plain kinds and lists are understood."""
    if not isinstance(annotation, str):
        return list(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else [annotation]
    by_name = {kind.__name__: kind for kind in (*KINDS, *LISTS)} | {"None": type(None)}
    return [by_name.get(text.split("[")[0].strip(), text) for text in annotation.split("|")]


def split_arguments(arguments: Mapping[str, Any], names: Iterable[str], option: str, kind: str) -> dict[str, dict]:
    """The arguments of several classes, each with a mapping of its own, by their names; an empty one where none is.

    Args:
        arguments: what a person has given, by the option `option`.
        names: of those that there are.
        option, kind: for messages; the kind is what they are, such as "loss".

    Raises:
        UserError: for another name, and for what is no mapping.

    >>> split_arguments({"Dice": {"smooth": 2}}, ["CE", "Dice"], "--loss_args", "loss")
    {'CE': {}, 'Dice': {'smooth': 2}}
    """
    names = list(names)
    for name, own in arguments.items():
        if name not in names:
            raise UserError(
                f"{option}: there is no {kind} {shown(name)}{nearest(name[:60], names)}; there are {', '.join(names)}, "
                f'each with its own arguments, as {{"{names[0]}": {{...}}}}.'
            )
        if not isinstance(own, dict):
            raise UserError(
                f"{option}: {name} has a mapping of its arguments, as {{{json.dumps(name)}: {{...}}}}, not "
                f"{shown(json.dumps(own))}."
            )
    return {name: dict(arguments.get(name, {})) for name in names}


def told(error: BaseException) -> str:
    """An exception in one line, with the place that it comes from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({frame.filename}:{frame.lineno})"
