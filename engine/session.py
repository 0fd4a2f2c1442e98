"""Hold what surrounds the loop: the lock of the run directory, signals, resume, and a checkpoint at the end."""

import contextlib
import os
import signal
from argparse import Namespace
from types import TracebackType
from typing import Any

import torch

from engine.checkpoints.file import load_checkpoint
from engine.registry import load
from engine.runs.signals import STOP_ASKED, StopSignal
from utils.errors import UserError
from utils.files import NO_SPACE


class Session:
    """A `with` block in which a trainer trains. Whatever ends it after the first update, it leaves a checkpoint.

    On entering, the trainer takes the state of the checkpoint that it resumes. In the block its run directory is
    locked, and the first signal only sets a flag, which `should_stop` reads between two updates. When an exception
    leaves the block, the state is saved and the callbacks are called.

    The first update and the first validation are the trial of the task's own code, data and options. What they raise,
    or a callback at any time, ends the run with one line that names the option and the line of code; the traceback is
    kept in the log.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        max_time = trainer.opt.max_time
        self.stop_signal = load("extras.time_limit:TimeLimit", "max_time")(max_time) if max_time else StopSignal()
        self.connect_loaders()

    def connect_loaders(self) -> None:
        """Let the loaders warn in the log of the run, and stop waiting for data when the run must end."""
        for loader in (self.trainer.train_loader, self.trainer.val_loader):
            loader.bad.warn = self.trainer.logger.warning
            if self.trainer.distributed.size == 1:  # several processes stop together, after an update
                loader.interrupt = self.stop_signal.raise_if_set

    # ---- the block -----------------------------------------------------------------------------------------------
    def __enter__(self) -> "Session":
        trainer = self.trainer
        with contextlib.ExitStack() as block:
            block.enter_context(trainer.run_dir.lock)
            block.enter_context(self.stop_signal)
            block.callback(lambda: trainer.train_loader.close())  # ends the loading processes; it may yet be replaced
            if trainer.opt.micro_batch_size == "auto":
                self.find_micro_batch_size()
            put_aside = []
            if trainer.opt.resume:
                # tensors_of: the tensors of a sharded checkpoint are read where each process needs them.
                trainer.load_state_dict(load_checkpoint(trainer.opt.resume, tensors_of=()))
                trainer.run_dir.strike_out(trainer.progress.epoch)  # marks log lines of epochs that are made once more
                # Checkpoints ahead of the position are put aside.
                put_aside = trainer.checkpointer.begin(trainer.progress.position, trainer.opt.resume)
            for note in (*trainer.opt.resume_notes, *put_aside):
                trainer.logger.warning(note)
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell, for a job in the background
                stops = f"kill {os.getpid()} stops the run, and saves it"
                trainer.logger.info(f"SIGINT (Ctrl-C) is ignored, as in any job in the background: {stops}.")
            self.block = block.pop_all()
        self.first_update = trainer.progress.update  # made before this session
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.block:
            if error is not None:
                self.rescue(error)  # raises
            self.trainer.run_dir.end(self.trainer.progress.state_dict())
            self.trainer.distributed.leave()

    def should_stop(self, at_once: bool = False) -> bool:
        """Raise whatever must end the run; return whether a callback has asked to stop.

        Several processes go by the signals that they knew of one update ago, so that they need not wait for each other.

        Args:
            at_once: go by the signals of now.

        Raises:
            KeyboardInterrupt, Terminated, TimeIsUp: a signal has reached any process, or the time is over.
        """
        trainer = self.trainer
        wish = self.stop_signal.pending()
        if not wish and trainer.should_stop:
            wish = STOP_ASKED
        code = trainer.distributed.agree(wish, at_once)
        if code == STOP_ASKED:
            trainer.should_stop = True
        self.stop_signal.raise_for(code)
        return code == STOP_ASKED

    # ---- what an exception leaves --------------------------------------------------------------------------------
    def rescue(self, error: BaseException) -> None:
        """Save what an exception breaks off, call the callbacks, and raise the cause."""
        trainer, distributed = self.trainer, self.trainer.distributed
        is_common = distributed.is_common(error)  # all processes raise it at one place, as for a signal
        # What is behind the error: a signal that has ended a loading process, or the failure of another process.
        cause = distributed.cause_of(self.stop_signal.cause_of(error))
        failed = ""
        if trainer.opt.max_restarts == 0:  # else the next attempt may succeed
            failed = of_failure("failed_part", trainer, error, self.first_update)
        is_explained = bool(failed) and (is_unexpected(cause) or type(cause) is UserError)
        is_nothing_lost = is_explained and self.is_new_run()
        if is_common and not is_nothing_lost:  # alone, a process would wait for the others forever
            trainer.checkpointer.rescue(trainer.state_dict, trainer.logger)  # unless a step was broken off
        if isinstance(cause, torch.OutOfMemoryError):
            cause = of_failure("out_of_memory", trainer, cause)
        elif is_explained:
            cause = of_failure("explained", trainer, cause, failed, self.is_new_run())
        trainer.call("on_exception", cause)
        if is_nothing_lost:
            trainer.run_dir.discard()
        distributed.leave(in_order=is_common)  # alone, it leaves without waiting
        # Raised instead of the error. The traceback, which the log keeps, shows where it came from.
        origin = error if is_explained else error.__cause__
        raise cause from origin

    def is_new_run(self) -> bool:
        """Return whether the run began in this session and has made no update: its directory holds no result."""
        return self.trainer.progress.update == 0 and not self.trainer.opt.resume

    # ---- --micro_batch_size auto ---------------------------------------------------------------------------------
    def find_micro_batch_size(self) -> None:
        """Set the trainer's micro-batch size to the largest that fits into the memory of a GPU."""
        load("extras.micro_batch_size:find_micro_batch_size", "micro_batch_size")(self.trainer)
        self.connect_loaders()  # they may be new


def build_trainer(trainer_class: type, opt: Namespace) -> Any:
    """Return `trainer_class(opt)`; if that fails, no run directory is left.

    Raises:
        UserError: instead of what the task's own code raised, with the line of code; the traceback is in a file.
    """
    trainer = trainer_class.__new__(trainer_class)
    try:
        trainer.__init__(opt)
    except BaseException as error:
        run_dir = getattr(trainer, "run_dir", None)
        if run_dir is not None and not opt.resume:
            run_dir.discard()
        if not is_unexpected(error):
            raise
        raise of_failure("before_the_run", trainer_class, opt, error) from error
    return trainer


def of_failure(function: str, *arguments: Any) -> Any:
    """Return what a function of extras/failures.py says of a failure, which explains it to people."""
    return load(f"extras.failures:{function}", "debug")(*arguments)


def is_unexpected(error: BaseException) -> bool:
    """Return whether an error comes from code, data or options of the task: not a signal, and not explained yet."""
    explained = (UserError, torch.OutOfMemoryError, BrokenPipeError)
    is_disk_full = isinstance(error, OSError) and error.errno in NO_SPACE
    return isinstance(error, Exception) and not isinstance(error, explained) and not is_disk_full
