"""Restore the state of a run, that of its parts, and that of single objects."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from data.data_entry import SeenGroups
from engine.checkpoints.file import FORMAT, for_shards
from engine.checkpoints.state import is_expanded
from engine.devices.process_group import Distributed
from engine.epoch_log import add_totals
from engine.progress import Progress
from engine.registry import load
from engine.runs.scores import Score
from utils.errors import UserError
from utils.scheduler import resume_schedule
from utils.seed import seed_apart

KERNELS = ("fused", "foreach", "capturable")  # settings of an optimizer that change how, not what, it computes


# ---- a run -----------------------------------------------------------------------------------------------------------
def restore_state(
    parts: Mapping[str, Any], state: dict[str, Any], path: str, distributed: Distributed, seed: int
) -> None:
    """Restore what `collect_state` returned; UserError when the state is one of other networks or optimizers.

    With as many processes as saved it, the run goes on bit for bit. With another number of them, process 0 takes over
    the means of all, and the others start new random numbers.

    Args:
        parts: see `collect_state`.
        state: the content of a checkpoint.
        path: its file.
        distributed: the processes.
        seed: of the run.
    """
    if "shards" in state or distributed.is_sharded:
        state = for_shards("shard_state")(state, path, parts)
    try:
        processes = [state, *state.get("processes", [])]
        if len(processes) == distributed.size:
            own = dict(processes[distributed.rank]) if distributed.rank else {}
            for (part, name, key), value in own.pop("buffers", {}).items():
                (state[part][name] if name else state[part])[key] = value
            state = state | own
        else:
            totals = add_totals(process["epoch_log"]["totals"] for process in processes) if distributed.is_main else {}
            state = state | {"epoch_log": state["epoch_log"] | {"totals": totals}}
        position = (state["progress"]["epoch"], state["progress"]["update"])
    except (LookupError, TypeError, AttributeError, ValueError):
        raise UserError(f"The checkpoint {path} does not hold the states of its processes as it should.") from None
    for name, part in parts.items():
        set_state(part, state.get(name), f"The {name} of the checkpoint {path}")
    if len(processes) != distributed.size:
        seed_apart(seed, distributed.rank, *position)


def check_parts(state: dict[str, Any], path: str) -> None:
    """Raise UserError when parts of a checkpoint that an evaluation reads are missing or of a wrong kind."""
    if state["format"] == FORMAT:
        none = torch.tensor([], dtype=torch.int64)
        parts = {"progress": Progress(), "score": Score(), "groups": SeenGroups({"train": none, "val": none})}
        for name, part in parts.items():
            set_state(part, state.get(name), f"The {name} of the checkpoint {path}")


# ---- an object -------------------------------------------------------------------------------------------------------
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
