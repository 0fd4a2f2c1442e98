"""Requeue a SLURM job that ran out of time."""

import logging
import signal

from callbacks.callback import Callback
from engine.runs.signals import Terminated, TimeIsUp
from extras.callbacks.slurm import requeue


class Requeue(Callback):
    """Puts the SLURM job back in the queue when its time is up: after --max_time, or on the warning signal SIGUSR1.

    The job continues with ``--resume auto``. SIGTERM and Ctrl-C mean that it should end, so they do not requeue it.

    Args:
        logger: gets the result.
    """

    def __init__(self, logger: logging.Logger):
        self.logger = logger

    def on_exception(self, trainer, error: BaseException) -> None:
        warned = isinstance(error, Terminated) and error.signum == getattr(signal, "SIGUSR1", None)
        if warned or isinstance(error, TimeIsUp):
            requeue(self.logger)
