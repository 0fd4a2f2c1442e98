"""Learning-rate schedules. The learning rate is a function of the number of updates made, and of nothing else.

The options count in epochs, fractions allowed. `build_scheduler` turns them into a `Plan`, which counts in updates:
integers have no rounding error that moves a decay by an update. `lr_factor` is the function itself. To plot a plan:

    plan = Plan("cosine", num_updates=940, warmup_updates=94)
    plt.plot([lr_factor(update, plan) for update in range(plan.num_updates)])

To add a schedule, write a function of (update, plan) and give it a name in `SCHEDULERS`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from utils.errors import UserError


def check_range(option: str, value: float, allowed: bool, range_in_words: str) -> None:
    if not allowed:
        raise UserError(f"{option}={value:g} is out of range: it must be {range_in_words}.")


@dataclass(frozen=True)
class Plan:
    """A schedule, in updates.

    Args:
        lr_scheduler: a name in `SCHEDULERS`.
        num_updates: updates of the whole run, at least 1; they are numbered from 0 to num_updates - 1.
        warmup_updates: the first update at the full learning rate.
        warmup_multiplier: at least 1. The warm-up starts at this part of the learning rate, 100 for a hundredth.
        updates_per_epoch: updates of one epoch, for "exponential".
        decay_updates: the updates from which on the rate is decayed once more, for "step".
        lr_decay_rate: the factor of one decay, for "step" and "exponential", above 0.
        floor: the lowest factor after the warm-up.
    """

    lr_scheduler: str
    num_updates: int
    warmup_updates: int = 0
    warmup_multiplier: float = 100.0
    updates_per_epoch: int = 1
    decay_updates: tuple[int, ...] = ()
    lr_decay_rate: float = 0.1
    floor: float = 0.0

    def progress(self, update: int) -> float:
        """Return how much of the way from the end of the warm-up to the last update is behind, from 0 to 1."""
        length = self.num_updates - 1 - self.warmup_updates
        if length <= 0:  # no way to go: a run of one update makes it at the full rate
            return 0.0
        return min(max(update - self.warmup_updates, 0) / length, 1.0)


def constant(update: int, plan: Plan) -> float:
    """Stay at the learning rate."""
    return 1.0


def step(update: int, plan: Plan) -> float:
    """Multiply by the decay rate at each update of `decay_updates`."""
    num_decays = sum(update >= decay_update for decay_update in plan.decay_updates)
    return max(plan.lr_decay_rate**num_decays, plan.floor)


def cosine(update: int, plan: Plan) -> float:
    """Fall along half a cosine to the floor, which the last update has (Loshchilov and Hutter 2017)."""
    return plan.floor + (1 - plan.floor) * (1 + math.cos(math.pi * plan.progress(update))) / 2


def linear(update: int, plan: Plan) -> float:
    """Fall along a line to the floor, which the last update has."""
    return plan.floor + (1 - plan.floor) * (1 - plan.progress(update))


def exponential(update: int, plan: Plan) -> float:
    """Multiply by the decay rate once per epoch after the warm-up, in equal parts at every update."""
    epochs = max(update - plan.warmup_updates, 0) / plan.updates_per_epoch
    return max(plan.lr_decay_rate**epochs, plan.floor)


SCHEDULERS: dict[str, Callable[[int, Plan], float]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "linear": linear,
    "exponential": exponential,
}


def lr_factor(update: int, plan: Plan) -> float:
    """Return what the learning rate is multiplied with at this update, counted from 0."""
    factor = SCHEDULERS[plan.lr_scheduler](update, plan)
    if update < plan.warmup_updates:
        start = 1 / plan.warmup_multiplier
        factor *= start + (1 - start) * update / plan.warmup_updates
    return factor


def learning_rates(optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
    """Return the learning rate of each optimizer, as "lr" for a single one, else as "lr/NAME".

    It is that of the first group without a name; groups with a "name" follow as "lr/GROUP", or "lr/NAME/GROUP".
    """
    rates: dict[str, float] = {}
    for name, optimizer in optimizers.items():
        label = "lr" if len(optimizers) == 1 else f"lr/{name}"
        for group in optimizer.param_groups:
            rates.setdefault(f"{label}/{group['name']}" if group.get("name") else label, group["lr"])
    return rates


def find_decay_updates(
    num_epochs: int, updates_per_epoch: int, lr_decay_epochs: Sequence[float] | None, lr_decay_every: float | None
) -> tuple[int, ...]:
    """Return the updates at which "step" decays. Exactly one of the last two arguments must be given."""
    if bool(lr_decay_epochs) == bool(lr_decay_every):
        raise UserError(
            f"lr_scheduler=step got lr_decay_epochs={lr_decay_epochs} and lr_decay_every={lr_decay_every}: give either "
            f"the epochs of the decays, such as 30 60 90, or the number of epochs between two decays, such as 30."
        )
    if lr_decay_every:
        shortest = 1 / updates_per_epoch  # with two decays at one update, there would be no end of decays
        check_range("lr_decay_every", lr_decay_every, lr_decay_every >= shortest, f"at least {shortest:g}, an update")
        num_decays = math.ceil(num_epochs / lr_decay_every)
        lr_decay_epochs = [lr_decay_every * count for count in range(1, num_decays + 1)]
    for epoch in lr_decay_epochs:
        words = f"above {0.5 / updates_per_epoch:g}, half an update (to begin at a lower rate, lower lr)"
        check_range("lr_decay_epochs", epoch, round(epoch * updates_per_epoch) > 0, words)
    return tuple(round(epoch * updates_per_epoch) for epoch in lr_decay_epochs)


def build_scheduler(
    optimizer: Optimizer,
    lr_scheduler: str = "cosine",
    *,
    num_epochs: int,
    updates_per_epoch: int,
    warmup_epoch: float = 0.0,
    warmup_multiplier: float = 100.0,
    lr_decay_epochs: Sequence[float] | None = None,
    lr_decay_every: float | None = None,
    lr_decay_rate: float = 0.1,
    lr_min: float = 0.0,
    num_updates: int | None = None,
) -> LRScheduler:
    """Return a scheduler whose `step()` is called once after every update.

    The rates that the optimizer has now are the full rates, one for each group. Every duration is in epochs, fractions
    allowed, and is rounded to whole updates. The scheduler's state is the position and the full rates: a run that is
    resumed with another length follows the new schedule.

    Args:
        lr_scheduler: a name in `SCHEDULERS`, see the functions there.
        num_epochs: epochs of the whole run, at least 1.
        updates_per_epoch: updates of one epoch, at least 1.
        warmup_epoch: how long the rate rises in a line to lr (Goyal et al. 2017), at least 0.
        warmup_multiplier: the warm-up starts at lr / warmup_multiplier; at least 1.
        lr_decay_epochs: for "step", the epochs of the decays, counted from the start of the run.
        lr_decay_every: for "step", instead of `lr_decay_epochs`: decay after every so many epochs.
        lr_decay_rate: for "step" and "exponential", above 0.
        lr_min: the lowest learning rate after the warm-up, from 0 to the rate of the first group without a name,
            or without such a group to that of the optimizer. Other groups end in the same proportion to theirs.
        num_updates: of the whole run, where it ends before the last epoch does; at least 1.

    Raises:
        UserError: when `lr_min` or a decay is out of range; unless exactly one of `lr_decay_epochs` and
            `lr_decay_every` is given for "step", and none for any other.
    """
    decay_updates: tuple[int, ...] = ()
    if lr_scheduler == "step":
        decay_updates = find_decay_updates(num_epochs, updates_per_epoch, lr_decay_epochs, lr_decay_every)
    elif lr_decay_epochs or lr_decay_every:
        raise UserError(f"lr_decay_epochs and lr_decay_every belong to lr_scheduler=step, not to {lr_scheduler}.")
    plan = Plan(
        lr_scheduler,
        num_updates=num_updates or num_epochs * updates_per_epoch,
        warmup_updates=round(warmup_epoch * updates_per_epoch),
        warmup_multiplier=warmup_multiplier,
        updates_per_epoch=updates_per_epoch,
        decay_updates=decay_updates,
        lr_decay_rate=lr_decay_rate,
        floor=lowest_factor(optimizer, lr_min) if lr_min else 0.0,
    )
    # One function for all groups, so that each keeps its ratio to the others. It is no object, because LambdaLR saves
    # the attributes of one, and a resume would restore the old plan.
    return LambdaLR(optimizer, lambda update: lr_factor(update, plan))


def lowest_factor(optimizer: Optimizer, lr_min: float) -> float:
    """Return `lr_min` as a part of the optimizer's learning rate; UserError when it is no part."""
    of_no_name = (group for group in optimizer.param_groups if not group.get("name"))
    first = next(of_no_name, optimizer.defaults)
    base_lr = float(first.get("initial_lr", first["lr"]))
    check_range("lr_min", lr_min, 0 <= lr_min <= base_lr, f"from 0 to the learning rate, {base_lr:g}")
    return lr_min / base_lr


def resume_schedule(scheduler: LambdaLR, state: dict[str, Any]) -> None:
    """Restore the position of a schedule, and set the rates of the next update: its plan may be another one now."""
    scheduler.load_state_dict(state)
    groups = scheduler.optimizer.param_groups
    for group, rate, function in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = rate * function(scheduler.last_epoch)
