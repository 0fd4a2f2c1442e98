"""The state of a run: collected from its parts in all processes, as data. See restore.py for the way back."""

import io
from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.checkpoints.file import for_shards
from engine.devices.process_group import Distributed
from engine.registry import load
from utils.errors import UserError

SCALARS = {type(None), bool, int, float, str}


class PlainState(UserDict):
    """A dictionary that is its own state.

    Attributes:
        kinds: entries that each state has, with their types; only a new dictionary may get an empty state.
    """

    kinds: Mapping[str, type] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.data)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        wrong = [name for name, kind in self.kinds.items() if not isinstance(state.get(name), kind)]
        if wrong and (state or self.data):
            raise ValueError(f"{', '.join(wrong)} is missing or of a wrong type")
        self.data = dict(state)


# ---- collect ---------------------------------------------------------------------------------------------------------
def get_state(part: Any) -> Any:
    """Return the state of an object, or of each object in a dictionary."""
    return {name: entry.state_dict() for name, entry in part.items()} if isinstance(part, dict) else part.state_dict()


def plain(state: Any, what: str) -> Any:
    """Return a state as data that `torch.load(weights_only=True)` accepts and can be restored.

    NumPy scalars become numbers. An expanded tensor is written out, since nothing can be copied into one.

    Raises:
        UserError: when it holds anything else; the message names it as a place in `what`.

    >>> plain({"best": [np.float64(0.5), None]}, "the state")
    {'best': [0.5, None]}
    >>> plain({"when": range(3)}, "the state")       # doctest: +ELLIPSIS
    Traceback (most recent call last):
    utils.errors.UserError: the state['when'] is of type range. A checkpoint holds tensors, numbers, text, lists and ...
    """

    def convert(place: str, value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) in (Tensor, nn.Parameter) and value.layout in (torch.strided, torch.sparse_coo):
            return value.contiguous() if is_expanded(value) else value
        is_sharded = hasattr(value, "full_tensor")  # a DTensor, which distributed checkpoints write
        if type(value) not in SCALARS and not is_sharded and not can_be_opened(value):
            raise UserError(
                f"{what}{place} is of type {type(value).__name__}. A checkpoint holds tensors, numbers, text, lists "
                "and dicts; convert it in state_dict()."
            )
        return value

    return map_leaves(convert, state)


def is_expanded(tensor: Tensor) -> bool:
    """Return whether a tensor shows some of its numbers several times, so that nothing can be copied into it."""
    if tensor.layout is not torch.strided:
        return False
    is_repeated = any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return is_repeated or tensor.untyped_storage().nbytes() < tensor.nbytes


def can_be_opened(value: Any) -> bool:
    """Return whether a file with a value of a rare type, such as a dtype, can be opened as data only."""
    from engine.checkpoints.untrusted import open_as_data

    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        open_as_data(buffer, "")
    except Exception:  # what cannot be pickled may raise anything
        return False
    return True


def map_leaves(change: Callable[[str, Any], Any], state: Any, place: str = "") -> Any:
    """Return the state with ``change(place, value)`` for each value that is no list, tuple or dictionary, and each key.

    >>> map_leaves(lambda place, value: place, {1: [2.5, b"x"]})
    {'(1)': ['[1][0]', '[1][1]']}
    """
    if isinstance(state, dict):
        mapped: dict[Any, Any] = OrderedDict()
        for name, entry in state.items():
            key = name if type(name) is str else change(f"{place}({name!r})", name)
            mapped[key] = map_leaves(change, entry, f"{place}[{name!r}]")
        if hasattr(state, "_metadata"):  # the versions of the modules
            mapped._metadata = state._metadata
            return mapped
        return dict(mapped)
    if type(state) not in (list, tuple):
        return change(place, state)
    if SCALARS.issuperset(map(type, state)):  # maybe millions of numbers
        return state
    return type(state)(map_leaves(change, entry, f"{place}[{number}]") for number, entry in enumerate(state))


# ---- of a run --------------------------------------------------------------------------------------------------------
def collect_state(parts: Mapping[str, Any], distributed: Distributed, in_shards: bool = False) -> dict[str, Any]:
    """Return the states of a run's parts, as data that `torch.load(weights_only=True)` accepts; all processes call it.

    Args:
        parts: by name, an object with `state_dict`, or a dictionary of such objects.
        distributed: the processes. What FSDP shards between them becomes whole, in process 0.
        in_shards: leave it sharded.

    Raises:
        UserError: a part has a state that could not be loaded.
    """
    state = {name: get_state(part) for name, part in parts.items()}
    if distributed.is_sharded and not in_shards:
        state = for_shards("gather_state")(state, keep=distributed.is_main)
    state = {name: plain(part, f"The run cannot be saved: {name}") for name, part in state.items()}
    if distributed.size > 1:
        state["processes"] = load("extras.process_states:states_of_others", "nproc")(parts, state, distributed)
    return state
