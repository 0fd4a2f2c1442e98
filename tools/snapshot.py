"""Keep the state of a training in memory and restore it, bit for bit: for trials without a trace."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.seed import RandomBookmark


def copied(state: Any, device: torch.device | str | None = None) -> Any:
    """Copy a state, to `device` if it is given, so that no change of the original reaches the copy.

    >>> weight = torch.zeros(1)
    >>> kept = copied({"weight": weight})
    >>> _ = weight.fill_(1)
    >>> kept
    {'weight': tensor([0.])}
    """
    if isinstance(state, Tensor):
        return state.detach().to(device or state.device, copy=True)
    if isinstance(state, Mapping):
        return {name: copied(value, device) for name, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(copied(value, device) for value in state)
    return copy.deepcopy(state)


class Snapshot:
    """The current state of objects and of the global random generators. It can be restored any number of times.

    Take it between two updates: gradients are not kept, and `put_back` removes them.

    Args:
        parts: by name, an object with `state_dict` and `load_state_dict`, or a dictionary of such objects. Of modules,
            buffers that are not part of their state are kept, too.
        device: where to keep tensors; None for where they are.
    """

    def __init__(self, parts: Mapping[str, Any], device: torch.device | str | None = None):
        entries = [e for part in parts.values() for e in (part.values() if isinstance(part, dict) else [part])]
        self._states = [(entry, copied(entry.state_dict(), device)) for entry in entries]
        self._modules = [entry for entry in entries if isinstance(entry, nn.Module)]
        owners = [owner for module in self._modules for owner in module.modules()]
        # By owner and name, because a forward pass may replace a buffer by a new tensor.
        self._buffers = [
            (owner, name, buffer, copied(buffer, device))
            for owner in owners
            for name, buffer in owner.named_buffers(recurse=False)
        ]
        self._modes = [(owner, owner.training) for owner in owners]
        self._random = RandomBookmark()

    def put_back(self) -> None:
        """Restore everything."""
        with torch.no_grad():
            for owner, name, buffer, kept in self._buffers:
                setattr(owner, name, buffer)
                buffer.copy_(kept)
        for entry, state in self._states:
            entry.load_state_dict(copied(state))  # a copy, because an optimizer changes the tensors that it loads
        for module in self._modules:
            for parameter in module.parameters():
                parameter.grad = None
        for owner, mode in self._modes:
            owner.training = mode
        self._random.put_back()
