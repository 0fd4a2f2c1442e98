"""Log a line per epoch, and lines in between where no progress bar is drawn."""

import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from callbacks.callback import Callback
from engine.runs.signals import Terminated, TimeIsUp
from utils.advice import shares_text, time_shares
from utils.errors import DivergedError, LoadingError
from utils.files import NO_SPACE, StorageError
from utils.model_summary import memory_of, memory_text

SECONDS_BETWEEN_LINES = 10.0
LEAST_WAIT = 1.0  # seconds of waiting for data in an epoch, below which no advice is given
MORE_SKIPS = 10  # added to --max_skips in the proposed command, when they are used up
REASONS = {
    KeyboardInterrupt: "Ctrl-C",
    TimeIsUp: "the time limit",
    StorageError: "a full disk",
    DivergedError: "a loss or gradient that is not finite",
    LoadingError: "a loading process that died or hangs",
}


def reason_of(error: BaseException) -> str:
    """Name what stopped a run; the class of any error that is not expected."""
    if isinstance(error, Terminated):
        return f"the signal {signal.Signals(error.signum).name}"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return REASONS[StorageError]
    return next((text for kind, text in REASONS.items() if isinstance(error, kind)), type(error).__name__)


class Console(Callback):
    """Logs epoch, loss, learning rate, samples per second, the time left, and how the time of the epoch was spent.

    After the first epoch of a process it also logs the memory of parameters, gradients and optimizer state.

    Args:
        logger: writes to the terminal and to the log file.
        monitor: the metric that chooses the best checkpoint.
        num_epochs: epochs of the whole run.
        advise: returns a hint, or "", given the trainer and the share of an epoch that was spent waiting for data, 0 to
            1. A hint is logged once, and again when it changes.
    """

    def __init__(
        self,
        logger: logging.Logger,
        monitor: str,
        num_epochs: int,
        advise: Callable[[Any, float], str] = lambda trainer,
        share: "",
    ):
        self.logger = logger
        self.monitor = monitor
        self.num_epochs = num_epochs
        self.last_line = time.perf_counter()
        self.advise = advise
        self.advice = ""  # the last one logged
        self.started = (0.0, 0)  # (time, update) at the start of this process, for the time left
        self.epoch_began: float | None = None
        self.logged_memory = False
        self.saved = (0.0, 0.0)  # seconds of saving, up to the start of the epoch and up to its first update

    def on_train_start(self, trainer) -> None:
        self.started = (time.perf_counter(), trainer.progress.update)
        groups = [group for optimizer in trainer.optimizers.values() for group in optimizer.param_groups]
        if trainer.in_eval_mode or any("name" in group for group in groups):
            from utils.param_groups import frozen_table, group_table  # here, as few runs have groups

            tables = (frozen_table(trainer.networks, trainer.in_eval_mode), group_table(trainer.optimizers))
            self.logger.info("\n".join(filter(None, tables)))
        if trainer.progress.update:
            where = f"{trainer.progress.epoch} of {self.num_epochs} epochs and {trainer.progress.sample:,} samples done"
            self.logger.info(f"Resumed {trainer.opt.resume} after update {trainer.progress.update:,}: {where}.")

    def on_epoch_start(self, trainer) -> None:
        if self.epoch_began is None:  # include the time that an earlier process spent on this epoch
            self.epoch_began = time.perf_counter() - trainer.epoch_log.seconds["train"]
        self.saved = (self.saved[0], trainer.checkpointer.seconds)

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        if sys.stderr.isatty():
            return  # a progress bar shows it
        now = time.perf_counter()
        if now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.logger.info(
            f"epoch {trainer.progress.epoch + 1}/{self.num_epochs}, sample {trainer.progress.sample:,} of "
            f"{trainer.train_loader.num_samples:,}: {shown}, {self.time_left(trainer)} left"
        )

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        shown = [f"{name} {value:.4f}" for name, value in row.items() if name.startswith(("train/", "val/"))]
        shown += [f"{name} {value:.3g}" for name, value in row.items() if name.split("/")[0] == "lr"]
        improved = trainer.stopper.num_bad == 0 and f"val/{self.monitor}" in row
        shares = self.shares(trainer, row)
        self.logger.info(
            f"epoch {row['epoch']}/{self.num_epochs}: {', '.join(shown)}, "
            f"{row['samples_per_second']:,.0f} samples/s, {self.time_left(trainer)} left{' (best)' if improved else ''}"
            f"; time: {shares_text(shares)}"
        )
        if not self.logged_memory:
            self.logged_memory = True
            bytes_of = memory_of(trainer.networks.values(), trainer.optimizers.values())
            self.logger.info(memory_text(bytes_of, trainer.device))
        advice = self.advise(trainer, shares["data"]) if row["time/data_wait"] >= LEAST_WAIT else ""
        if advice and advice != self.advice:
            self.advice = advice
            self.logger.warning(advice)

    def shares(self, trainer, row: Mapping[str, float]) -> dict[str, float]:
        """Return the shares of the time since the last epoch, the saving after that one included."""
        now = time.perf_counter()
        saved = trainer.checkpointer.seconds
        shares = time_shares(
            now - self.epoch_began,
            row["time/train"],
            row["time/data_wait"],
            row.get("time/val", 0.0),
            saving=saved - self.saved[0],
            saving_in_train=saved - self.saved[1],
        )
        self.epoch_began = now
        self.saved = (saved, saved)
        return shares

    def on_train_end(self, trainer) -> None:
        stopper = trainer.stopper
        if stopper.should_stop:
            self.logger.info(f"Early stop: {stopper.num_bad} validations without a better {self.monitor}.")
        elif trainer.should_stop and trainer.progress.epoch < self.num_epochs:
            self.logger.info("Stopped by a callback.")
        elif trainer.opt.resume and trainer.progress.update == self.started[1]:
            self.logger.info("Nothing was left to do: to continue, give a higher --n_epoch (or --max_updates).")
        was_validated = math.isfinite(stopper.best)
        best = f" Best val/{self.monitor}: {stopper.best:.4f}" if was_validated else ""
        self.logger.info(f"Finished after {trainer.progress.update:,} updates.{best}")
        best = trainer.checkpointer.path("best")
        if best.exists():
            self.logger.info(f"Best checkpoint: {best}")
        if "tensorboard" in trainer.opt.logger:
            self.logger.info(f"Curves: tensorboard --logdir {trainer.run_dir.path}")

    def on_exception(self, trainer, error: BaseException) -> None:
        self.logger.error(f"Stopped by {reason_of(error)} after update {trainer.progress.update:,}.")
        checkpointer = trainer.checkpointer
        if any(checkpointer.path(kind).exists() for kind in checkpointer.KINDS):
            how = f"To go on: --resume {trainer.run_dir.path}"
            if isinstance(error, DivergedError) and not trainer.guard.stepped:  # the same update would diverge again
                how = f"To go on without this update: --resume {trainer.run_dir.path} --nan_policy skip"
                if trainer.guard.num_skipped >= trainer.opt.max_skips:
                    how += f" --max_skips {trainer.guard.num_skipped + MORE_SKIPS}"
            self.logger.info(how)
            if isinstance(error, DivergedError):
                self.logger.info(f"To look into the update: python -m tools.replay {trainer.run_dir.path}")

    def time_left(self, trainer) -> str:
        """Return the time to the end at the speed so far, as h:mm:ss."""
        began, first = self.started
        done = trainer.progress.update - first
        whole = self.num_epochs * trainer.train_loader.updates_per_epoch
        left = min(whole, trainer.opt.max_updates or whole) - trainer.progress.update
        seconds = int((time.perf_counter() - began) / max(done, 1) * left)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
