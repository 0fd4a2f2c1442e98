"""Make an update's step for the sake of its values, without counting it."""

from typing import Any

from engine.epoch_log import read_scalars
from utils.errors import DivergedError


def try_step(trainer, update: Any) -> dict[str, float] | None:
    """Make the trainer's step and return its values, means over all processes.

    Returns:
        The values; {} when no sample could be loaded; None when a loss or gradient was not finite, and then the weights
        are as before.
    """
    if not trainer.distributed.begin_update(update, may_lose_samples=trainer.opt.skip_bad_samples > 0):
        return {}
    trainer.guard.begin_update(update)
    try:
        values = trainer.train_step(update)
        trainer.guard.check_earlier(wait=True)
    except DivergedError:
        trainer.guard.undo()
        values = None
    trainer.precision.finish_update()
    if values is None:
        return None
    numbers = dict(zip(values, read_scalars([*values.values()]), strict=True))
    return trainer.distributed.mean(numbers, update.num_local)
