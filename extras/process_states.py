"""Collect the states of several processes, as far as they differ from that of process 0."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.devices.process_group import Distributed

# The parts whose states are those of process 0 in all processes, except for the buffers of modules.
COMMON = (
    "networks", "criterion", "optimizers", "schedulers", "scaler", "progress", "stopper", "guard", "loader", "seconds",
    "score", "groups", "callbacks", "averaging",
)  # fmt: skip


def states_of_others(
    parts: Mapping[str, Any], state: Mapping[str, Any], distributed: Distributed
) -> list[dict[str, Any]]:
    """Return what differs in the state of each process but the first; all processes call it."""
    own = {name: state[name] for name in state if name not in COMMON}
    first, *others = distributed.gather(own | {"buffers": buffers_in(parts)})
    for other in others:
        other["buffers"] = unlike(other["buffers"], first["buffers"])
    return others


def buffers_in(parts: Mapping[str, Any]) -> dict[tuple[str, str, str], Tensor]:
    """Return the buffers in the states of modules, by part, name in the part ("" for the part itself) and name.

    A forward pass changes them, and each process sees other samples.
    """
    named = [(part, name, entry) for part in parts for name, entry in entries_of(parts[part])]
    modules = [(part, name, entry) for part, name, entry in named if isinstance(entry, nn.Module)]
    found = {}
    for part, name, module in modules:
        parameters = {key for key, _ in module.named_parameters(remove_duplicate=False)}
        for key, value in module.state_dict().items():
            if key not in parameters and torch.is_tensor(value):
                found[part, name, key] = value.cpu()
    return found


def entries_of(part: Any) -> Iterable[tuple[str, Any]]:
    return part.items() if isinstance(part, dict) else [("", part)]


def unlike(values: dict[Any, Tensor], others: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """Return the tensors that have another value under the same key of another dictionary."""
    return {
        key: value
        for key, value in values.items()
        if key not in others or value.layout is not torch.strided or not torch.equal(value, others[key])
    }
