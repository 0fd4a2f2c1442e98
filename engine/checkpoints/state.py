"""The states of objects: collect them, restore them, and compare them by a digest."""

from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError

PLAIN = {type(None), bool, int, float, str, torch.Tensor, torch.nn.Parameter}
KERNELS = ("fused", "foreach", "capturable")  # settings of an optimizer that change how, not what, it computes


def check_plain(state: Any, what: str) -> None:
    """Raise TypeError when a state holds a type that `torch.load(weights_only=True)` would later refuse.

    >>> check_plain({"best": [0.5, None]}, "the state")
    >>> check_plain({"when": range(3)}, "the state")       # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: the state['when'] is of type range. A checkpoint holds tensors, numbers, text, lists and dicts...
    """
    for place, value in leaves(state):
        if type(value) not in PLAIN:
            raise TypeError(
                f"{what}{place} is of type {type(value).__name__}. A checkpoint holds tensors, numbers, text, lists "
                "and dicts; convert it in state_dict()."
            )


def leaves(state: Any) -> list[tuple[str, Any]]:
    """Return every value that is no list, tuple or dictionary, with its place in the state.

    >>> leaves({"a": [1, {"b": 2}]})
    [("['a'][0]", 1), ("['a'][1]['b']", 2)]
    """
    found: list[tuple[str, Any]] = []
    map_leaves(lambda place, value: found.append((place, value)), state)
    return found


def map_leaves(change: Callable[[str, Any], Any], state: Any, place: str = "") -> Any:
    """Return the state with ``change(place, value)`` for each of its `leaves`."""
    if isinstance(state, dict):
        return {name: map_leaves(change, entry, f"{place}[{name!r}]") for name, entry in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map_leaves(change, entry, f"{place}[{number}]") for number, entry in enumerate(state))
    return change(place, state)


class PlainState(UserDict):
    """A dictionary that is its own state."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self.data)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data = dict(state)


# ---- collect and restore ---------------------------------------------------------------------------------------------
def get_state(part: Any) -> Any:
    """Return the state of an object, or of each object in a dictionary."""
    return {name: entry.state_dict() for name, entry in part.items()} if isinstance(part, dict) else part.state_dict()


def set_state(part: Any, state: Any, what: str) -> None:
    """Restore the state of an object, or of each object in a dictionary.

    The object's own `load_state_dict` decides whether a state fits. It is checked here only where that is silent, or
    says little: see `load_state`.

    Args:
        part: modules, optimizers, or any other objects with `load_state_dict`.
        state: what `get_state` returned.
        what: how the message of an error begins.

    Raises:
        UserError: when the state does not fit.
    """
    entries = [(what, part, state)]
    if isinstance(part, dict):
        if not isinstance(state, dict) or part.keys() != state.keys():
            has = ", ".join(map(str, state)) if isinstance(state, dict) else ""
            raise UserError(f"{what}: it has {has or 'none'}, but this run has {', '.join(part) or 'none'}.")
        entries = [(f"{what}, {name!r},", entry, state[name]) for name, entry in part.items()]
    for where, entry, entry_state in entries:
        try:
            load_state(entry, entry_state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{where} does not fit this run's options: {reason}") from None


def load_state(entry: Any, state: Any) -> None:
    """Call the `load_state_dict` of an object; ValueError where that would accept a state of another object.

    A module names what is wrong in many lines. An optimizer accepts the settings of another kind of optimizer, and a
    scheduler any attributes; both would fail, or compute something else, in a later step.
    """
    if state is None:
        raise ValueError("there is none")
    if isinstance(entry, nn.Module):
        own = entry.state_dict()
        compare_keys(own, state)
        for name, value in own.items():
            if torch.is_tensor(value) and value.shape != state[name].shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)}, here {tuple(value.shape)}")
    if isinstance(entry, LRScheduler):
        compare_keys(entry.state_dict(), state)
    if not isinstance(entry, Optimizer):
        entry.load_state_dict(state)
        return
    before = [dict(group) for group in entry.param_groups]
    entry.load_state_dict(state)
    for own, group in zip(before, entry.param_groups, strict=True):
        if own.get("name") != group.get("name"):
            raise ValueError(f"it has a parameter group {group.get('name')!r}, here {own.get('name')!r}")
        if lacks := [name for name in own if name not in group]:
            raise ValueError(f"its parameter groups lack {some(lacks)}")
        group.update({name: own[name] for name in KERNELS if name in own})  # they belong to the machine


def compare_keys(own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raise ValueError when only one of two states has a key."""
    differing = {"lacks": [name for name in own if name not in state], "has": [n for n in state if n not in own]}
    if reason := "; ".join(f"it {verb} {some(names)}" for verb, names in differing.items() if names):
        raise ValueError(reason)


def some(names: list[str]) -> str:
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
