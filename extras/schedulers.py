"""Learning-rate schedulers of torch and user-defined ones, and any that is stepped once per epoch."""

import copy
import warnings
from argparse import Namespace
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from engine.checkpoints.restore import set_state
from engine.checkpoints.state import plain
from engine.optimizers import make_scheduler
from engine.registry import call, find
from extras.plateau import make_on_plateau
from utils.errors import UserError
from utils.scheduler import SCHEDULERS

OF_OUR_SCHEDULES = ("warmup_epoch", "lr_min", "lr_decay_epochs", "lr_decay_every")  # unset by default
LENGTHS = ("total_steps", "T_max", "total_iters", "_milestones")  # in the state of a scheduler of torch


def make_by_class(opt: Namespace, optimizer: Optimizer, num_steps: int) -> LRScheduler:
    """Return a scheduler of a class of torch, or of a user-defined one, which is stepped `num_steps` times in the run.

    The class is given `num_steps` as `total_steps` or `T_max` if it takes one of these.

    Raises:
        UserError: when it cannot be made with its arguments, or has a state that cannot be saved.
    """
    name = opt.lr_scheduler
    for option in OF_OUR_SCHEDULES:
        if getattr(opt, option):
            raise UserError(f"--{option} is for {', '.join(SCHEDULERS)}, not for --lr_scheduler {name}.")
    scheduler_class = find("scheduler", name)
    if isinstance(scheduler_class, type) and issubclass(scheduler_class, ReduceLROnPlateau):
        return make_on_plateau(opt, optimizer, scheduler_class)
    offered = {} if "epochs" in opt.scheduler_args else {"total_steps": num_steps, "T_max": num_steps}
    scheduler = call(scheduler_class, offered, opt.scheduler_args, "--scheduler_args", first=[optimizer])
    if not isinstance(scheduler, LRScheduler):
        raise UserError(f"--lr_scheduler {name} makes no LRScheduler whose step() needs no arguments.")
    plain(scheduler.state_dict(), f"--lr_scheduler {name} cannot be saved: its state")
    return scheduler


def make_stepped_by_epoch(
    opt: Namespace, optimizer: Optimizer, updates_per_epoch: int, num_updates: int
) -> "OncePerEpoch":
    """Return the scheduler of --lr_scheduler, stepped once per epoch (--scheduler_step epoch).

    Raises:
        UserError: a duration is no whole number of epochs, or the scheduler cannot be made with its arguments.
    """
    durations = {
        "warmup_epoch": [opt.warmup_epoch],
        "lr_decay_epochs": opt.lr_decay_epochs or [],
        "lr_decay_every": [opt.lr_decay_every or 0],
    }
    for option, values in durations.items():
        for value in values:
            if value % 1:
                raise UserError(f"--{option} {value:g} with --scheduler_step epoch: give a whole number of epochs.")
    num_epochs = -(-num_updates // updates_per_epoch)  # rounded up
    return OncePerEpoch(make_scheduler(opt, optimizer, 1, num_epochs), updates_per_epoch)


class OncePerEpoch:
    """Steps a scheduler after the last update of each epoch, while it is itself stepped after every update.

    Args:
        scheduler: steps once per epoch.
        updates_per_epoch: at least 1.
    """

    def __init__(self, scheduler: LRScheduler, updates_per_epoch: int):
        self.scheduler = scheduler
        self.optimizer = scheduler.optimizer
        self.updates_per_epoch = updates_per_epoch
        self.total_steps = None
        if isinstance(getattr(scheduler, "total_steps", None), int):
            self.total_steps = scheduler.total_steps * updates_per_epoch
        self.num_updates = 0

    def step(self) -> None:
        self.num_updates += 1
        if self.num_updates % self.updates_per_epoch == 0:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state(self.scheduler, state["scheduler"], "The scheduler of the checkpoint")
        self.num_updates = state["num_updates"]


def resume_schedule(scheduler: LRScheduler, state: dict[str, Any]) -> None:
    """Restore the position of a scheduler; in a run of another length, the rates go on as those of the new length.

    The state of a scheduler of torch has its length, which would end the new run at the old plan. Many of them compute
    a rate from the one before. So if the length differs, the scheduler makes all steps up to the position once more.

    Args:
        scheduler: new, for the length of this run.
        state: of the same class.
    """
    new = copy.deepcopy({name: value for name, value in scheduler.state_dict().items() if name in state})
    scheduler.load_state_dict(state)
    if lengths_of(new) == lengths_of(state):
        return
    scheduler.load_state_dict(new)
    for group, rate in zip(scheduler.optimizer.param_groups, new["_last_lr"], strict=True):
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], torch.Tensor) else rate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of steps without an update
        for _ in range(position_of(state)):
            scheduler.step()


def lengths_of(state: dict[str, Any]) -> list[Any]:
    """Return what the length of a run decides in the state of a scheduler, and in those of the schedulers in it."""
    own = [state[name] for name in LENGTHS if name in state]
    return own + [lengths_of(inner) for inner in state.get("_schedulers", ())]


def position_of(state: dict[str, Any]) -> int:
    """Return how many steps a scheduler has made; a ChainedScheduler makes all of them with each of its own."""
    return state["last_epoch"] if "last_epoch" in state else position_of(state["_schedulers"][0])
