"""States whose tensors are cut up between processes (FSDP): made whole, and cut again.

A tensor that is cut up is a `DTensor` (https://docs.pytorch.org/docs/stable/distributed.tensor.html); its shape is that
of the whole.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def is_cut(value: Any) -> bool:
    """Whether it is a `DTensor`; asked in every update, so without an import where there are none."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def whole(state: Any, keep: bool = True) -> Any:
    """Return the state with every tensor whole, and those that were cut up on the CPU; to be called by all processes.

    Args:
        state: nested dictionaries, lists and tuples.
        keep: whether this process wants them; otherwise it only helps the others, and has None in their place.
    """
    if is_cut(state):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {name: whole(value, keep) for name, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(whole(value, keep) for value in state)
    return state


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, cut up as `like`; itself if `like` is whole, or it is cut up."""
    if not is_cut(like) or is_cut(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def cut_for(owner: nn.Module | Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a whole state cut up as the tensors of its owner are.

    Args:
        owner: a module, whose own tensors tell how; or an optimizer, whose parameters do: what an optimizer keeps for a
            parameter in the shape of it is cut up like it.
        state: what its `load_state_dict` takes.
    """
    if isinstance(owner, nn.Module):
        own = owner.state_dict()
        return {name: cut_like(value, own[name]) if is_cut(own.get(name)) else value for name, value in state.items()}
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = dict(zip(numbers, (p for group in owner.param_groups for p in group["params"]), strict=True))
    if not any(map(is_cut, parameters.values())):
        return state
    entries = {
        number: {
            name: cut_like(value, parameters[number])
            if torch.is_tensor(value) and value.shape == parameters[number].shape else value
            for name, value in entry.items()
        } for number, entry in state["state"].items()
    }  # fmt: skip
    return state | {"state": entries}


def num_bytes(tensors: Any) -> int:
    """Bytes of this process's part of tensors."""
    local = [tensor.to_local() if is_cut(tensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def models_of(owner: nn.Module | Optimizer, state: Any, place: str) -> dict[str, Tensor]:
    """The tensors that those of a state are to be laid out and cut up like.

    Args:
        owner: see `cut_for`.
        state: what its `load_state_dict` would take, with anything in the place of tensors; not checked yet.
        place: where it stands in a larger state.

    Returns:
        Tensors by the places, in the larger state, of those that are like them if they have their shape.
    """
    if isinstance(owner, nn.Module):
        return {f"{place}[{name!r}]": value for name, value in owner.state_dict().items() if torch.is_tensor(value)}
    try:
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        parameters = zip(numbers, (p for group in owner.param_groups for p in group["params"]), strict=False)
        return {
            f"{place}['state'][{number!r}][{name!r}]": parameter
            for number, parameter in parameters for name in state["state"].get(number, {})
        }  # fmt: skip
    except (LookupError, TypeError, AttributeError):
        return {}  # it is refused when it is checked
