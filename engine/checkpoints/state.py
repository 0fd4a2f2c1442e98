"""The states of objects: taken, checked, given back, and told apart by a digest."""

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engine.checkpoints.sharded_state import cut_for
from utils.errors import UserError

ALIKE = ((float, int, bool), (list, tuple), (dict,), (Tensor,))  # types of which one may stand for the other
PLAIN = {type(None), bool, int, float, str, torch.Tensor, torch.nn.Parameter}
# What a run was launched with, what watches it, and what the clock said do not decide how its training goes on.
KERNELS = ("fused", "foreach", "capturable")  # settings of an optimizer that change how, not what, it computes
HISTORY = ("old_dirs", "old_stps", "ro")  # of L-BFGS
NOT_THE_RUN = ("seconds", "options", "callbacks", "format")


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


def leaves(state: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all that is no list, tuple or dictionary, each with the place where it stands.

    >>> list(leaves({"a": [1, {"b": 2}]}))
    [("['a'][0]", 1), ("['a'][1]['b']", 2)]
    """
    if isinstance(state, dict):
        for name, entry in state.items():
            yield from leaves(entry, f"{place}[{name!r}]")
    elif type(state) in (list, tuple):
        for number, entry in enumerate(state):
            yield from leaves(entry, f"{place}[{number}]")
    else:
        yield place, state


# ---- give and take ---------------------------------------------------------------------------------------------------
def get_state(part: Any) -> Any:
    """The state of an object, or of each object in a dictionary."""
    return {name: entry.state_dict() for name, entry in part.items()} if isinstance(part, dict) else part.state_dict()


def set_state(part: Any, state: Any, what: str, may_hold_nan: bool = False) -> None:
    """Give an object, or each object of a dictionary, its state back. All is checked before the first is changed.

    Args:
        part: modules, optimizers, or whatever else has `load_state_dict`.
        state: what `get_state` returned.
        what: what the message of an error begins with.
        may_hold_nan: take the number NaN in the state of an object that is neither a module nor an optimizer.

    Raises:
        UserError: when names, keys, shapes or types do not fit, or a number is infinite or NaN where none can be.
    """
    whole = [(what, part, state)]
    if isinstance(part, dict):
        if not isinstance(state, dict) or part.keys() != state.keys():
            has = ", ".join(map(str, state)) if isinstance(state, dict) else ""
            raise UserError(f"{what}: it has {has or 'none'}, but this run has {', '.join(part) or 'none'}.")
        whole = [(f"{what}, {name!r},", entry, state[name]) for name, entry in part.items()]
    for where, entry, entry_state in whole:
        if reason := first_fault(entry, entry_state, may_hold_nan):
            raise UserError(f"{where} does not fit this run's options: {reason}")
    for where, entry, entry_state in whole:
        try:
            give(entry, entry_state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{where} does not fit this run's options: {reason}") from None


def give(entry: Any, state: Any) -> None:
    """Give one object its state. Which kernels an optimizer steps with belongs to the machine, and stays as it is."""
    if isinstance(entry, Optimizer):
        own = [{name: group[name] for name in KERNELS if name in group} for group in entry.param_groups]
        groups = zip(state["param_groups"], own, strict=True)
        state = state | {"param_groups": [group | of_machine for group, of_machine in groups]}
    entry.load_state_dict(cut_for(entry, state) if isinstance(entry, nn.Module | Optimizer) else state)


# ---- checks ----------------------------------------------------------------------------------------------------------
def first_fault(entry: Any, state: Any, may_hold_nan: bool) -> str:
    """Return what is wrong with the state that is to become that of `entry`; "" when nothing is."""
    if not isinstance(state, dict):
        return f"its state is of type {type(state).__name__}"
    if isinstance(entry, nn.Module):
        faults = faults_of_module(entry, state)
    elif isinstance(entry, Optimizer):
        faults = faults_of_optimizer(entry, state)
    elif isinstance(entry, LRScheduler):
        faults = faults_of_scheduler(entry, state)
    else:
        faults = faults_of_other(entry, state, may_hold_nan)
    return next(iter(faults), "")


def faults_of_module(module: nn.Module, state: dict) -> Iterator[str]:
    """A parameter that is infinite or NaN makes every output so; a buffer may be infinite: an attention mask is."""
    own = module.state_dict()
    yield from faults_of_keys(own, state)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, value in state.items():
        if not torch.is_tensor(own.get(name)):
            continue  # what a module keeps besides tensors is its own affair
        if not torch.is_tensor(value):
            yield f"{name} is of type {type(value).__name__}"
        elif value.shape != own[name].shape:
            yield f"{name} is {tuple(value.shape)}, here {tuple(own[name].shape)}"
        elif name in parameters and not is_finite(value):
            yield f"the parameter {name} holds infinite values or NaN"
        elif value.isnan().any():
            yield f"the buffer {name} holds NaN"


def faults_of_optimizer(optimizer: Optimizer, state: dict) -> Iterator[str]:
    """A NaN or a wrong shape here would spoil the weights at the first step."""
    groups, entries = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not isinstance(entries, dict) or not all(map(is_group, groups)):
        yield "it has no list of parameter groups"
        return
    own_groups = optimizer.state_dict()["param_groups"]
    if len(groups) != len(own_groups):
        yield f"it has {len(groups)} parameter groups, here {len(own_groups)}"
        return
    for number, (group, own) in enumerate(zip(groups, own_groups, strict=True)):
        settings, own = ({name: value for name, value in g.items() if name != "params"} for g in (group, own))
        for place, value in leaves(settings):
            if not is_finite(value):
                yield f"{place} of group {number} is {value}"
        rate = group.get("lr", 0)
        if not isinstance(rate, int | float | Tensor) or (torch.as_tensor(rate) < 0).any():
            yield f"the learning rate of group {number} is {rate!r}"
        yield from (f"{fault} of group {number}" for fault in faults_of_keys(own, settings))
        yield from (f"{fault} of group {number}" for fault in faults_of_types(own, settings, is_fixed=True))
        if (name := group.get("name")) != own.get("name"):
            yield f"group {number} is of the parameters {name!r}, here {own.get('name')!r}"
    numbers = [number for group in groups for number in group["params"]]
    parameters = dict(zip(numbers, (p for group in optimizer.param_groups for p in group["params"]), strict=False))
    # L-BFGS keeps what belongs to all parameters together, in one line, with the first of them.
    is_joint = isinstance(optimizer, torch.optim.LBFGS)
    joint = torch.Size([sum(parameter.numel() for parameter in parameters.values())]) if is_joint else None
    for number, entry in entries.items():
        if is_joint and isinstance(entry, dict) and len({len(entry.get(name) or ()) for name in HISTORY}) > 1:
            yield f"the lists {', '.join(HISTORY)} of parameter {number} are not of one length"
            return
        if number not in parameters:
            yield f"it has a state of parameter {number}, which is none of its own"
            return
        for place, value in leaves(entry):
            if not place or not isinstance(value, Tensor | float | int | None):
                yield f"{place or 'the state'} of parameter {number} is of type {type(value).__name__}"
            if not is_finite(value):
                yield f"{place} of parameter {number} holds infinite values or NaN"
            if torch.is_tensor(value) and value.shape != joint and not is_fit(value.shape, parameters[number].shape):
                yield f"{place} of parameter {number} is {tuple(value.shape)}, not {tuple(parameters[number].shape)}"


def faults_of_scheduler(scheduler: LRScheduler, state: dict) -> Iterator[str]:
    """Its `load_state_dict` takes all it is given for attributes, so another key could take a method's place."""
    own = scheduler.state_dict()
    yield from faults_of_keys(own, state)
    yield from faults_of_types(own, state, is_fixed=True)
    endless = {place for place, value in leaves(own) if not is_finite(value)}  # such as the best before the first step
    for place, value in leaves(state):
        if not is_finite(value) and (place not in endless or math.isnan(value)):
            yield f"{place} is {value}"


def faults_of_other(entry: Any, state: dict, may_hold_nan: bool) -> Iterator[str]:
    """Keys are the entry's own affair, since an older state may lack some, and names of metrics come and go."""
    yield from faults_of_types(entry.state_dict(), state)
    for place, value in leaves(state):
        if isinstance(value, float) and math.isnan(value) and not may_hold_nan:
            yield f"{place} is NaN"


def faults_of_keys(own: dict, state: dict) -> Iterator[str]:
    if own.keys() != state.keys():
        lacks = [name for name in own if name not in state]
        surplus = [str(name) for name in state if name not in own]
        yield "; ".join(f"it {verb} {some(names)}" for verb, names in (("lacks", lacks), ("has", surplus)) if names)


def faults_of_types(own: Any, state: Any, place: str = "", is_fixed: bool = False) -> Iterator[str]:
    """Compare the types of what stands at the same place in both. None is what is not known yet, or no longer.

    Args:
        own: the state of now.
        state: the one that is to take its place.
        place: where both stand in what is compared as a whole.
        is_fixed: lists keep their lengths, and no number or text becomes None; so it is in torch's own objects.
    """
    may_be_none = bool if is_fixed else (bool, int, float, str)
    if own is None or (state is None and isinstance(own, may_be_none)):
        return
    if kind_of(own) != kind_of(state):
        yield f"{place} is of type {type(state).__name__}, not {type(own).__name__}"
    elif isinstance(own, dict):
        for name in [name for name in own if name in state]:
            yield from faults_of_types(own[name], state[name], f"{place}[{name!r}]", is_fixed)
    elif isinstance(own, list | tuple) and is_fixed:
        if len(own) != len(state):
            yield f"{place} has {len(state)} entries, not {len(own)}"
            return
        for number, (first, second) in enumerate(zip(own, state, strict=True)):
            yield from faults_of_types(first, second, f"{place}[{number}]", is_fixed)


def kind_of(value: Any) -> type:
    """The type, where all numbers are of one, all lists, and all dictionaries."""
    return next((kinds[0] for kinds in ALIKE if isinstance(value, kinds)), type(value))


def is_group(group: Any) -> bool:
    numbers = group.get("params") if isinstance(group, dict) else None
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def is_finite(value: Any) -> bool:
    """False for a number or a tensor with an infinity or a NaN; True for all else."""
    if torch.is_tensor(value):
        return bool(torch.isfinite(value).all())
    return not isinstance(value, float) or math.isfinite(value)


def is_fit(shape: torch.Size, of_parameter: torch.Size) -> bool:
    """A state is as large as its parameter, one number, or factored: one long in some dimensions (Adafactor)."""
    is_factored = len(shape) == len(of_parameter) and all(
        own in (1, other) for own, other in zip(shape, of_parameter, strict=True)
    )
    return shape.numel() == 1 or is_factored


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---- digests ---------------------------------------------------------------------------------------------------------
def digest(value: Any) -> str:
    """A SHA-256 that is the same only for the same content, bit for bit.

    The order of a dictionary does not count, and neither does where a tensor lies in memory. Types count (1, 1.0 and
    True are three values, a list is no tuple), and so do the bits: 0.0 is not -0.0, and NaN is NaN.

    >>> digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1})
    True
    >>> digest(["ab", "c"]) == digest(["a", "bc"])
    False

    Raises:
        TypeError: for what a checkpoint cannot hold.
    """
    sha = hashlib.sha256()
    feed(sha, value)
    return sha.hexdigest()


def feed(sha: Any, value: Any) -> None:
    """Give a value to a hash, led by its kind and length, so that two different values never give the same bytes."""
    if isinstance(value, dict):
        entries = sorted(digest(key) + digest(entry) for key, entry in value.items())
        feed_bytes(sha, "dict", "".join(entries).encode())
    elif type(value) in (list, tuple):
        sha.update(f"{type(value).__name__} {len(value)}:".encode())
        for entry in value:
            feed(sha, entry)
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        kind = f"tensor {value.dtype} {tuple(value.shape)}"
        feed_bytes(sha, kind, memoryview(flat.view(torch.uint8).numpy()))
    elif type(value) is float:
        feed_bytes(sha, "float", struct.pack(">d", value))  # all the bits, where the text would lose those of a NaN
    elif type(value) in PLAIN:
        feed_bytes(sha, type(value).__name__, str(value).encode("utf-8", "surrogatepass"))
    else:
        check_plain(value, "the value")


def feed_bytes(sha: Any, kind: str, content: bytes | memoryview) -> None:
    sha.update(f"{kind} {len(content)}:".encode())
    sha.update(content)


def digests(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each part of a checkpoint's content, and with the name "run" that of all that decides how
    training goes on. Two runs with the same are the same from there on."""
    assert "run" not in state, "'run' is the name of the digest over the parts"
    found = {name: digest(part) for name, part in state.items()}
    return found | {"run": digest({name: text for name, text in found.items() if name not in NOT_THE_RUN})}
