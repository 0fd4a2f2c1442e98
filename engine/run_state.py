"""The state of a run: collected from its parts in all processes, and restored to any number of processes."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data.data_entry import SeenGroups
from engine.checkpoints.file import FORMAT, for_shards
from engine.checkpoints.state import get_state, plain, set_state
from engine.devices.process_group import Distributed
from engine.epoch_log import add_totals
from engine.progress import Progress
from engine.runs.scores import Score
from utils.errors import UserError
from utils.seed import seed_apart

# The parts whose states are those of process 0 in all processes, except for the buffers of modules.
COMMON = (
    "networks", "criterion", "optimizers", "schedulers", "scaler", "progress", "stopper", "guard", "loader", "seconds",
    "score", "groups", "callbacks", "averaging",
)  # fmt: skip


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
        own = {name: state[name] for name in state if name not in COMMON}
        first, *others = distributed.gather(own | {"buffers": buffers_in(parts)})
        for other in others:
            other["buffers"] = unlike(other["buffers"], first["buffers"])
        state["processes"] = others
    return state


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
        key: value for key, value in values.items()
        if key not in others or value.layout is not torch.strided or not torch.equal(value, others[key])
    }  # fmt: skip


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
