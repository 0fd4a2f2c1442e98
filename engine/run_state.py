"""The state of a run: collected from its parts in all processes, and restored to any number of processes."""

from collections.abc import Mapping
from typing import Any

from engine.checkpoints.file import for_shards
from engine.checkpoints.state import get_state, plain, set_state
from engine.devices.process_group import Distributed
from engine.epoch_log import add_totals
from utils.errors import UserError
from utils.seed import seed_apart

OF_EACH_PROCESS = ("random", "epoch_log")  # parts whose states differ between the processes


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
        own = {name: state[name] for name in OF_EACH_PROCESS}
        state["processes"] = distributed.gather(own)[1:]
    return state


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
            state = state | {name: processes[distributed.rank][name] for name in OF_EACH_PROCESS}
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
