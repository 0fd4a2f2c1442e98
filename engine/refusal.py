"""What becomes of an update whose loss or gradient is not finite: the run ends, or goes on without it."""

from typing import Any

import torch

from engine.epoch_log import read_scalars
from engine.out_of_memory import step_in_memory
from tools.replay import keep_for_replay
from utils.batch import count_samples
from utils.errors import DivergedError


def guarded_step(trainer, update: Any) -> dict[str, torch.Tensor]:
    """Make the trainer's step; return its values, or none when it was not finite and is passed over (--nan_policy).

    Raises:
        DivergedError: when it was not finite and may not be passed over. All is as it was before the step.
    """
    trainer.guard.begin_update(update)
    was_made = True
    try:
        values = step_in_memory(trainer, update)
    except DivergedError as error:
        trainer.exact = trainer.guard.undo()
        told = keep_for_replay(trainer, update, error)
        if not trainer.guard.may_skip():
            raise DivergedError(told) from None
        skipped = f"Skipped: {trainer.guard.num_skipped} of at most {trainer.opt.max_skips}."
        if trainer.distributed.is_main:
            trainer.logger.warning(f"{told}\n{skipped}")
        values, was_made = {}, False
    finish_update(trainer, was_made)
    return values


def finish_update(trainer, was_made: bool) -> None:
    """Let the scale of float16 adapt, and an average of the weights take in what an update that `was_made` left."""
    if not trainer.averaging:
        trainer.precision.finish_update()
        return
    scale = trainer.precision.scale
    trainer.precision.finish_update()
    if was_made and trainer.precision.scale >= scale:  # it shrinks after an overflow, when no step was made
        trainer.averaging.finish_update()


def settle(trainer, wait: bool = True) -> None:
    """End the run if an update was not finite; on a GPU, a check may be on its way, and `wait` waits for it.

    Raises:
        DivergedError: then all is as it was before that update.
    """
    try:
        trainer.guard.settle(wait)
    except DivergedError as error:
        raise DivergedError(keep_for_replay(trainer, error.update, error)) from None


def try_step(trainer, update: Any) -> dict[str, float] | None:
    """Make the trainer's step for the sake of its values, the means over all processes; nothing is counted or logged.

    Returns:
        The values; {} when no sample could be loaded; None when a loss or gradient was not finite, and then the weights
        are as before.
    """
    num_own = sum(map(count_samples, update.micro_batches[: len(update.micro_batches) - update.num_idle]))
    is_sure = trainer.opt.skip_bad_samples == 0
    if not trainer.distributed.begin_update(num_own, update.num_samples, update.num_idle, is_sure):
        return {}
    trainer.guard.begin_update(update)
    try:
        values = step_in_memory(trainer, update)
        trainer.guard.settle(wait=True)
    except DivergedError:
        trainer.guard.undo()
        values = None
    trainer.precision.finish_update()
    if values is None:
        return None
    return trainer.distributed.mean(dict(zip(values, read_scalars([*values.values()]), strict=True)), num_own)
