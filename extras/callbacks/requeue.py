"""Another turn for a job that ran out of its time."""

import logging
import signal

from callbacks.callback import Callback
from engine.runs.signals import Terminated, TimeIsUp
from extras.callbacks.slurm import requeue


class Requeue(Callback):
    """Puts the SLURM job back in the queue when its time is up: after --max_time, or on the warning signal SIGUSR1.

    The script of the job continues by itself when it is started again, with ``--resume auto``. SIGTERM and Ctrl-C are
    from someone who wants the job to end, and put nothing back.

    Args:
        logger: is told what came of it.
    """

    def __init__(self, logger: logging.Logger):
        self.logger = logger

    def on_exception(self, trainer, error: BaseException) -> None:
        warned = isinstance(error, Terminated) and error.signum == getattr(signal, "SIGUSR1", None)
        if warned or isinstance(error, TimeIsUp):
            requeue(self.logger)
