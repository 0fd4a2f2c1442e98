"""Hold what surrounds the loop: the lock of the run directory, signals, resume, and a checkpoint at the end."""

import contextlib
import traceback
from argparse import Namespace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from callbacks.callback import call_one
from engine.checkpoints.file import load_checkpoint
from engine.devices.process_group import share_of
from engine.registry import load
from engine.runs.signals import STOP_ASKED, StopSignal
from utils.errors import UserError
from utils.files import NO_SPACE

MEMORY_ADVICE = "--activation_checkpointing and --amp bf16 need less memory, too."


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
            block.callback(lambda: trainer.train_loader.close())  # ends the loading processes
            if trainer.opt.micro_batch_size == "auto":
                self.find_micro_batch_size()
            if trainer.opt.resume:
                trainer.load_state_dict(load_checkpoint(trainer.opt.resume, tensors_of=()))
                trainer.run_dir.strike_out(trainer.progress.epoch)
            for note in (*trainer.opt.resume_notes, *trainer.checkpointer.begin(trainer.progress.position)):
                trainer.logger.warning(note)
            self.block = block.pop_all()
        self.first_update = trainer.progress.update
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.block:
            if error is not None:
                self.rescue(error)
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
        is_common = distributed.is_common(error)
        cause = distributed.cause_of(self.stop_signal.cause_of(error))
        failed = self.failed_part(error) if trainer.opt.max_restarts == 0 else ""  # else the next attempt may succeed
        is_explained = bool(failed) and (is_unexpected(cause) or type(cause) is UserError)
        is_nothing_lost = is_explained and self.is_new_run()
        if is_common and not is_nothing_lost:  # an error of one process alone: it would wait for the others forever
            trainer.checkpointer.rescue(trainer.state_dict, trainer.logger)
        if isinstance(cause, torch.OutOfMemoryError):
            cause = self.out_of_memory(cause)
        elif is_explained:
            cause = self.explained(cause, failed)
        trainer.call("on_exception", cause)
        if is_nothing_lost:
            trainer.run_dir.discard()
        distributed.leave(is_common)
        raise cause from error if is_explained else error.__cause__  # instead of the error

    def is_new_run(self) -> bool:
        """Return whether the run began in this session and has made no update: its directory holds no result."""
        return self.trainer.progress.update == 0 and not self.trainer.opt.resume

    def is_validating(self, error: BaseException) -> bool:
        """Return whether an error has broken off a validation."""
        evaluate = self.trainer.evaluator.evaluate.__code__
        return any(frame.f_code is evaluate for frame, _ in traceback.walk_tb(error.__traceback__))

    def failed_part(self, error: BaseException) -> str:
        """Name what an error has broken off: a callback, the first update or the first validation; else ""."""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is call_one.__code__:
                return f"{type(frame.f_locals['callback']).__name__}.{frame.f_locals['hook']}"
        if "Expected more than 1 value per channel" in str(error):  # of torch, perhaps in the last batch of an epoch
            return "a batch of one sample, which cannot be normalized: give another --batch_size or --micro_batch_size"
        if self.trainer.progress.update == self.first_update:
            return "the first update"
        return "the first validation" if self.is_validating(error) and not self.trainer.score else ""

    def explained(self, error: Exception, failed: str) -> UserError:
        """Turn what the task's own code, data or options raised into one line; keep the traceback in the log."""
        from engine.first_batch import blame

        trainer = self.trainer
        text = "".join(traceback.format_exception(error))
        if trainer.distributed.is_main:
            trainer.run_dir.log_quietly(text)
        else:
            trainer.logger.error(text)  # to standard error: process 0 alone writes files
        parts = {
            "--model_type": list(trainer.networks.values()),
            "--loss_type": [trainer.criterion],
            "--optim": list(trainer.optimizers.values()),
            "--lr_scheduler": list(trainer.schedulers.values()),
            "--data_type": list(trainer.datasets.values()),
        }
        suspects = [
            ("default_collate", type(trainer.datasets["train"]).__getitem__),
            ("eval_step", trainer.evaluator.eval_step),
            ("backward", trainer.compute_loss),
            ("train_update", trainer.train_step),
        ]
        line = blame(error, parts, suspects)
        if not isinstance(error, UserError):
            line = f"Failed in {failed}: {line}"
        if not trainer.distributed.is_main:
            return UserError(line)
        path = trainer.run_dir.discarded_log_path if self.is_new_run() else trainer.run_dir.log_path
        return UserError(f"{line}\nThe traceback is in {path}.")

    def out_of_memory(self, error: torch.OutOfMemoryError) -> UserError:
        """Say how to go on with smaller batches, which change no result."""
        trainer = self.trainer
        if self.is_validating(error):
            option = "--eval_batch_size"
            size = trainer.evaluator.eval_batch_size(trainer.opt, trainer.micro_batch_size)
        else:
            option = "--micro_batch_size"
            _, largest_share = share_of(trainer.opt.batch_size, 0, trainer.distributed.size)
            size = min(trainer.micro_batch_size, largest_share)
        reason = str(error).split(". ")[0].rstrip(".")
        if size < 2:
            return UserError(f"{reason}, with a single sample at once. {MEMORY_ADVICE}")
        how = f"{option} {size // 2}"
        if trainer.checkpointer.candidates(trainer.run_dir.path):
            how = f"--resume {trainer.run_dir.path} {how}"
        return UserError(f"{reason}, with {size} samples at once. To go on: {how}. {MEMORY_ADVICE}")

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
        from engine.first_batch import blame

        path = Path(opt.output_dir, f"{opt.proj_name}_failed_log.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        suspects = [
            ("place_networks", trainer_class.evaluator_class.build_networks),
            ("place_networks", trainer_class.build_networks),
            ("checked_optimizers", trainer_class.build_optimizers),
            ("checked_schedulers", trainer_class.build_schedulers),
            ("__init__", trainer_class.build_callbacks),
        ]
        message = f"Failed before the first update: {blame(error, suspects=suspects)}\nThe traceback is in {path}."
        raise UserError(message) from error
    return trainer


def is_unexpected(error: BaseException) -> bool:
    """Return whether an error comes from code, data or options of the task: not a signal, and not explained yet."""
    explained = (UserError, torch.OutOfMemoryError, BrokenPipeError)
    is_disk_full = isinstance(error, OSError) and error.errno in NO_SPACE
    return isinstance(error, Exception) and not isinstance(error, explained) and not is_disk_full
