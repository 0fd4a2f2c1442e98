"""The states of objects: collect them as data, and restore them."""

import inspect
import io
from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from engine.registry import load
from utils.errors import UserError
from utils.scheduler import resume_schedule

SCALARS = {type(None), bool, int, float, str}
KERNELS = ("fused", "foreach", "capturable")  # settings of an optimizer that change how, not what, it computes


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
            raise ValueError(f"{some(wrong)} is missing or of a wrong type")
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


# ---- restore ---------------------------------------------------------------------------------------------------------
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

    A module names each tensor that is missing or too much in a line of its own. A scheduler accepts any attributes, and
    would fail, or compute something else, in a later step.
    """
    if state is None:
        raise ValueError("there is none")
    if isinstance(entry, nn.Module):
        state = with_names_of(entry, state)
        compare_keys(entry.state_dict(), state)
        make_room(entry, state)
    if getattr(entry, "is_average_of_networks", False):
        averages = {name: with_names_of(entry.networks[name], saved) for name, saved in state["networks"].items()}
        state = state | {"networks": averages}
    if isinstance(entry, LRScheduler):
        compare_keys(entry.state_dict(), state)
        is_of_torch = not isinstance(entry, LambdaLR)
        resume = load("extras.schedulers:resume_schedule", "lr_scheduler") if is_of_torch else resume_schedule
        resume(entry, state)
    elif isinstance(entry, Optimizer):
        load_optimizer(entry, state)
    else:
        entry.load_state_dict(state)


def with_names_of(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's state with the names of this module, whatever torch.compile or DataParallel put into either."""
    own = module.state_dict()
    names = {without_wrappers(name): name for name in own}
    renamed: dict[str, Any] = OrderedDict()
    for name, value in state.items():
        renamed[name if name in own else names.get(without_wrappers(name), name)] = value
    if hasattr(state, "_metadata"):
        renamed._metadata = state._metadata
    return renamed


def without_wrappers(name: str) -> str:
    """Return a name in a module's state without what torch.compile and DataParallel put into it."""
    return name.replace("_orig_mod.", "").replace("module.", "")


def make_room(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a module buffers of the shapes in its state, which may change in training; ValueError for a parameter's."""
    for name, value in module.state_dict(keep_vars=True).items():
        if not torch.is_tensor(value) or is_lazy(value):
            continue
        has_shape = value.shape == state[name].shape
        if isinstance(value, nn.Parameter) and not has_shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, here {tuple(value.shape)}")
        if not has_shape or is_expanded(value):
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, torch.empty_like(state[name], device=value.device))


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer; ValueError for other groups, and for the settings of another kind, which it accepts."""
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for own, group in zip(before, optimizer.param_groups, strict=True):
        if own.get("name") != group.get("name"):
            raise ValueError(f"it has a parameter group {group.get('name')!r}, here {own.get('name')!r}")
        if lacks := [name for name in own if name not in group]:
            raise ValueError(f"its parameter groups lack {some(lacks)}")
        group.update({name: own[name] for name in KERNELS if name in own})  # they belong to the machine
    if inspect.unwrap(type(optimizer).load_state_dict) is inspect.unwrap(Optimizer.load_state_dict):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, saved in state["state"].items():
            parameter = parameters[number] if type(number) is int else number
            optimizer.state[parameter] = with_types_of(saved, optimizer.state[parameter])


def with_types_of(saved: Any, loaded: Any) -> Any:
    """Return what torch has loaded of an optimizer's state, with the tensors that it has cast as they were saved.

    It casts them all to the type of their parameter: a sum in float64 loses digits, a table of bytes its meaning.
    """
    if isinstance(loaded, dict):
        return {name: with_types_of(saved[name], entry) for name, entry in loaded.items()}
    if isinstance(loaded, list | tuple):
        return type(loaded)(map(with_types_of, saved, loaded))
    is_cast = torch.is_tensor(loaded) and loaded.dtype != saved.dtype
    return saved.to(loaded.device, copy=True) if is_cast else loaded


def compare_keys(own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raise ValueError when only one of two states has a key."""
    differing = {"lacks": [name for name in own if name not in state], "has": [n for n in state if n not in own]}
    if reason := "; ".join(f"it {verb} {some(names)}" for verb, names in differing.items() if names):
        raise ValueError(reason)


def some(names: list[str]) -> str:
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
