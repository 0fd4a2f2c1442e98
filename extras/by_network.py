"""Options that may be a mapping by network: --optim, --lr, --optim_args, --lr_scheduler and --scheduler_args."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Collection, Mapping
from typing import Any

from engine.options.parser import changed, mapping
from engine.registry import KINDS
from utils.errors import UserError, nearest, shown

SINGLE = ("optim", "lr", "lr_scheduler")  # of a single value, or a mapping
ARGUMENTS = tuple(KINDS[kind][1] for kind in ("optimizer", "scheduler"))  # a mapping anyway


def parsed(kind: Callable[[str], Any], text: str) -> dict[str, Any]:
    """Return a JSON object with a value for each network, each checked by an argparse type.

    Raises:
        ArgumentTypeError: it is no JSON object, or an empty one, or a value is refused.

    >>> parsed(float, '{"generator": 1e-4}')
    {'generator': 0.0001}
    """
    values = mapping(text)
    if not values:
        raise ArgumentTypeError(f"{text} names no network: give a value for each, such as {{\"model\": ...}}")
    return {name: kind(str(value)) for name, value in values.items()}


def options_of(opt: Namespace, names: Collection[str]) -> dict[str, Namespace]:
    """Return for each network the options for its optimizer and its schedule, without mappings by network.

    Args:
        opt: the options.
        names: of the networks that are trained.

    Raises:
        UserError: a mapping has a name that no network has, or lacks one.
    """
    by_network = {option: getattr(opt, option) for option in SINGLE if isinstance(getattr(opt, option), Mapping)}
    for option, values in by_network.items():
        check_names(values, names, option)
        if lacking := [name for name in names if name not in values]:
            raise UserError(f"--{option} is given by network, and has none for {', '.join(lacking)}.")
    own = {}
    for name in names:
        values = {option: values[name] for option, values in by_network.items()}
        values |= {option: arguments_of(getattr(opt, option), name, names, option) for option in ARGUMENTS}
        own[name] = changed(opt, **values)
    return own


def arguments_of(
    arguments: Mapping[str, Any], name: str, names: Collection[str], option: str = "optim_args"
) -> dict[str, Any]:
    """Return the arguments for one network: they may be a mapping by network, whose values are all mappings.

    >>> arguments_of({"generator": {"eps": 1e-6}}, "critic", ["generator", "critic"])
    {}
    >>> arguments_of({"eps": 1e-6}, "critic", ["generator", "critic"])
    {'eps': 1e-06}
    """
    is_nested = bool(arguments) and all(isinstance(value, Mapping) for value in arguments.values())
    if not is_nested or (len(names) == 1 and not set(arguments) & set(names)):
        return dict(arguments)
    check_names(arguments, names, option)
    return dict(arguments.get(name, {}))


def check_names(values: Mapping[str, Any], names: Collection[str], option: str) -> None:
    """Raise UserError when a mapping by network has a name that none has."""
    for name in values:
        if name not in names:
            hint = nearest(name[:60], names)
            raise UserError(f"--{option}: no network {shown(name)} is trained{hint}; there are {', '.join(names)}.")
