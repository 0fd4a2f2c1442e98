"""The state of a run: collected from the trainer's parts and its processes, and given back to them."""

import contextlib
from typing import Any

from data.data_entry import unite
from engine.checkpoints.shard_record import Shards, put_in
from engine.checkpoints.sharded_state import models_of, whole
from engine.checkpoints.state import get_state, set_state
from engine.devices.process_group import Distributed
from engine.epoch_log import EpochLog, add_totals
from engine.options.parser import saved_options
from utils.errors import DivergedError, UserError
from utils.seed import random_state, seed_apart, set_random_state


def collect_state(trainer) -> dict[str, Any]:
    """What a resume and an evaluation need, as data that `torch.load(weights_only=True)` accepts.

    To be called by all processes. What is cut up between them is made whole, in process 0; unless each writes its part.
    """
    with contextlib.suppress(DivergedError):  # then it is the state before the update that was not finite
        trainer.guard.check_earlier(wait=True)
    states = {name: get_state(part) for name, part in trainer.stateful().items()}
    if trainer.distributed.is_sharded and not trainer.checkpointer.in_shards:
        states = whole(states, keep=trainer.distributed.is_main)
    state = {
        **states, "random": random_state(), "score": trainer.score, "seconds": trainer.epoch_log.seconds,
        "options": saved_options(trainer.opt), "groups": trainer.seen_groups, "exact": trainer.progress.is_exact,
    }  # fmt: skip
    return states_of_processes(state, trainer.epoch_log, trainer.distributed)


def restore_state(trainer, state: dict[str, Any]) -> None:
    """Let the trainer continue from a state; UserError when it belongs to other networks or optimizers."""
    state = with_tensors(trainer, state)
    for name, part in trainer.stateful().items():
        what = f"The {name} of the checkpoint {trainer.opt.resume}"
        set_state(part, state.get(name), what, may_hold_nan=name == "callbacks")  # a metric that one shows may be NaN
    trainer.score, trainer.epoch_log.seconds = state["score"], state["seconds"]
    trainer.seen_groups = unite(trainer.seen_groups, state["groups"])
    take_back_process(state, trainer.opt.seed, trainer.epoch_log, trainer.distributed)


def with_tensors(trainer, state: dict[str, Any]) -> dict[str, Any]:
    """Read the tensors of a checkpoint in shards: of what is cut up, this process's part."""
    if "shards" not in state:
        return state
    from engine.checkpoints.shard_files import read_shards

    path, parts = trainer.opt.resume, {"networks": trainer.networks, "optimizers": trainer.optimizers}
    shards, models = Shards.of(state, path), {}
    for part, owners in parts.items():
        for name, owner in owners.items():
            models |= models_of(owner, state[part].get(name), f"[{part!r}][{name!r}]")
    for name, network in trainer.networks.items():  # their averages are cut up as they are
        models |= models_of(network, None, f"['averaging']['networks'][{name!r}]")
    return put_in(state, read_shards(shards, path, models))


def states_of_processes(state: dict[str, Any], epoch_log: EpochLog, distributed: Distributed) -> dict[str, Any]:
    """Add what only the other processes know to a trainer's state; to be called by all."""
    if distributed.size == 1:
        return state
    own = {"random": random_state(), "epoch_log": epoch_log.state_dict(), "loader": state["loader"]}
    others = distributed.gather(own)[1:]
    for other in others:
        state["loader"] |= other.pop("loader")
    return state | {"processes": others}


def take_back_process(state: dict[str, Any], seed: int, epoch_log: EpochLog, distributed: Distributed) -> None:
    """Give this process its random numbers and means back, from a state that any number of processes has saved.

    As many processes go on as if nothing had been: bit for bit. Another number of them begins new random numbers, and
    process 0 takes over the means of all.
    """
    others, rank = state.get("processes") or [], distributed.rank
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise UserError("The states of the other processes in the checkpoint are damaged.")
    what = "The state of a process in the checkpoint"
    if len(others) + 1 == distributed.size:
        own = others[rank - 1] if rank else state
        set_state(epoch_log, own["epoch_log"], what)
        set_random_state(own["random"])
        return
    if distributed.is_main:
        logs = [EpochLog() for _ in others]
        for log, other in zip(logs, others, strict=True):
            set_state(log, other["epoch_log"], what)
        epoch_log.totals = add_totals([epoch_log.totals, *(log.totals for log in logs)])
        set_random_state(state["random"])
    else:
        epoch_log.clear()
        seed_apart(seed, rank, state["progress"]["epoch"], state["progress"]["update"])
