"""The states of objects: taken, checked, given back."""

from typing import Any

import torch

from utils.errors import UserError

PLAIN = {type(None), bool, int, float, str, torch.Tensor, torch.nn.Parameter}


def check_plain(state: Any, what: str) -> None:
    """Raise TypeError when a state holds a type that `torch.load(weights_only=True)` would later refuse.

    >>> check_plain({"best": [0.5, None]}, "the state")
    >>> check_plain({"when": range(3)}, "the state")       # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: the state['when'] is of type range. A checkpoint holds tensors, numbers, text, lists and dicts...
    """
    if isinstance(state, dict):
        for name, entry in state.items():
            check_plain(entry, f"{what}[{name!r}]")
    elif type(state) in (list, tuple):
        for place, entry in enumerate(state):
            check_plain(entry, f"{what}[{place}]")
    elif type(state) not in PLAIN:
        raise TypeError(
            f"{what} is of type {type(state).__name__}. A checkpoint holds tensors, numbers, text, lists and dicts; "
            "convert it in state_dict()."
        )


def get_state(part: Any) -> Any:
    """The state of an object, or of each object in a dictionary."""
    return {name: entry.state_dict() for name, entry in part.items()} if isinstance(part, dict) else part.state_dict()


def set_state(part: Any, state: Any, what: str) -> None:
    """Give an object, or each object of a dictionary, its state back.

    Raises:
        UserError: when names, keys or shapes do not fit; the message begins with `what`.
    """
    if isinstance(part, dict) and part.keys() != state.keys():
        raise UserError(f"{what}: it has {', '.join(state) or 'none'}, but this run has {', '.join(part) or 'none'}.")
    entries = part.items() if isinstance(part, dict) else [(None, part)]
    for name, entry in entries:
        try:
            entry.load_state_dict(state if name is None else state[name])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{what} does not fit this run's options: {reason}") from None
