"""ReduceLROnPlateau: the learning rate follows the validation instead of the updates."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from engine.registry import call
from utils.earlystopper import direction
from utils.errors import UserError


class OnPlateau:
    """Steps a ReduceLROnPlateau by the result of each validation, and not by updates.

    Args:
        scheduler: of torch, or of a class derived from it.
    """

    def __init__(self, scheduler: ReduceLROnPlateau):
        self.scheduler = scheduler
        self.optimizer = scheduler.optimizer

    def step(self) -> None:
        """Do nothing: it is called after each update."""

    def step_by(self, score: float) -> None:
        """Count the result of a validation, and lower the learning rate if too many were not better."""
        self.scheduler.step(score)

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state; the rates are in that of the optimizer."""
        if set(state) != set(self.scheduler.state_dict()):
            raise ValueError("it is that of another scheduler")
        self.scheduler.load_state_dict(dict(state))


def make_on_plateau(opt: Namespace, optimizer: Optimizer, scheduler_class: type) -> OnPlateau:
    """Return the scheduler of --lr_scheduler ReduceLROnPlateau, driven by --monitor.

    Raises:
        UserError: nothing is validated, or an option contradicts it.
    """
    if not opt.val_every:
        raise UserError(f"--lr_scheduler {opt.lr_scheduler} follows the validation, and --val_every is 0.")
    if opt.scheduler_step == "epoch":
        raise UserError(f"--lr_scheduler {opt.lr_scheduler} is stepped by each validation: no --scheduler_step epoch.")
    mode = direction(opt.monitor, opt.monitor_mode)
    if opt.scheduler_args.get("mode", mode) != mode:
        raise UserError(f"--scheduler_args: mode contradicts --monitor {opt.monitor}, whose best is the {mode}.")
    scheduler = call(scheduler_class, {"mode": mode}, opt.scheduler_args, "--scheduler_args", first=[optimizer])
    return OnPlateau(scheduler)
