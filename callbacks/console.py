"""Log a line per epoch, and lines in between where no progress bar is drawn."""

import logging
import math
import sys
import time
from collections.abc import Mapping

from callbacks.callback import Callback
from engine.registry import load
from utils.model_summary import memory_of, memory_text
from utils.time_shares import shares_text, time_shares

SECONDS_BETWEEN_LINES = 10.0
MUCH_WAITING = 0.2  # of an epoch, spent waiting for data, above which advice is given
LEAST_WAIT = 1.0  # seconds of waiting in an epoch, below which none is given


class Console(Callback):
    """Logs epoch, loss, learning rate, samples per second, the time left, and how the time of the epoch was spent.

    After the first epoch of a process it also logs the memory of parameters, gradients and optimizer state.

    Args:
        logger: writes to the terminal and to the log file.
        monitor: the metric that chooses the best checkpoint.
        num_epochs: epochs of the whole run.
    """

    def __init__(self, logger: logging.Logger, monitor: str, num_epochs: int):
        self.logger = logger
        self.monitor = monitor
        self.num_epochs = num_epochs
        self.last_line = time.perf_counter()
        self.advice = ""  # the last one logged: once is enough
        self.started = (0.0, 0)  # (time, update) at the start of this process, for the time left
        self.epoch_began: float | None = None
        self.logged_memory = False

    def on_train_start(self, trainer) -> None:
        self.started = (time.perf_counter(), trainer.progress.update)
        groups = [group for optimizer in trainer.optimizers.values() for group in optimizer.param_groups]
        if trainer.in_eval_mode or any("name" in group for group in groups):
            table = load("extras.param_groups:table", "freeze")
            self.logger.info(table(trainer.networks, trainer.in_eval_mode, trainer.optimizers))
        if trainer.progress.update:
            where = f"{trainer.progress.epoch} of {self.num_epochs} epochs and {trainer.progress.sample:,} samples done"
            self.logger.info(f"Resumed {trainer.opt.resume} after update {trainer.progress.update:,}: {where}.")

    def on_epoch_start(self, trainer) -> None:
        if self.epoch_began is None:  # include the time that an earlier process spent on this epoch
            self.epoch_began = time.perf_counter() - trainer.epoch_log.seconds["train"]

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if now - self.last_line < SECONDS_BETWEEN_LINES or sys.stderr.isatty():  # there a progress bar shows it
            return
        self.last_line = now
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.logger.info(
            f"epoch {trainer.progress.epoch + 1}/{self.num_epochs}, sample {trainer.progress.sample:,} of "
            f"{trainer.train_loader.num_samples:,}: {shown}, {self.time_left(trainer)} left"
        )

    def on_validation_end(self, trainer, results: Mapping[str, float]) -> None:
        if math.isnan(results[self.monitor]):
            self.logger.warning(f"val/{self.monitor}, which chooses the best checkpoint, is not a number.")

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        shown = [f"{name} {value:.4f}" for name, value in row.items() if name.startswith(("train/", "val/"))]
        shown += [f"{name} {value:.3g}" for name, value in row.items() if name.split("/")[0] == "lr"]
        improved = trainer.stopper.num_bad == 0 and f"val/{self.monitor}" in row
        shares = self.shares(row)
        self.logger.info(
            f"epoch {row['epoch']}/{self.num_epochs}: {', '.join(shown)}, "
            f"{row['samples_per_second']:,.0f} samples/s, {self.time_left(trainer)} left{' (best)' if improved else ''}"
            f"; time: {shares_text(shares)}"
        )
        if not self.logged_memory:
            self.logged_memory = True
            bytes_of = memory_of(trainer.networks.values(), trainer.optimizers.values())
            self.logger.info(memory_text(bytes_of, trainer.device))
        if shares["data"] > MUCH_WAITING and row["time/data_wait"] >= LEAST_WAIT:
            self.log_advice(trainer)

    def shares(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the shares of the time since the last epoch, the saving after that one included."""
        now = time.perf_counter()
        began, self.epoch_began = self.epoch_began, now
        parts = {
            "step": row["time/train"] - row["time/data_wait"],
            "data": row["time/data_wait"],
            "evaluation": row.get("time/val", 0.0),
            "saving": row["time/save"],
        }
        return time_shares(now - began, parts)

    def log_advice(self, trainer) -> None:
        """Log a hint on the loading of data, unless it is the last one again."""
        advice = load("extras.data_advice:advise", "num_workers")(trainer)
        if advice and advice != self.advice:
            self.advice = advice
            self.logger.warning(advice)

    def on_train_end(self, trainer) -> None:
        stopper = trainer.stopper
        if stopper.should_stop:
            self.logger.info(f"Early stop: {stopper.num_bad} validations without a better {self.monitor}.")
        elif trainer.should_stop and trainer.progress.epoch < self.num_epochs:
            self.logger.info("Stopped by a callback.")
        elif trainer.opt.resume and trainer.progress.update == self.started[1]:
            self.logger.info("Nothing was left to do: to continue, give a higher --n_epoch (or --max_updates).")
        best = f" Best val/{self.monitor}: {stopper.best:.4f}" if stopper.has_best else ""
        self.logger.info(f"Finished after {trainer.progress.update:,} updates.{best}")
        best = trainer.checkpointer.path("best")
        if best.exists():
            self.logger.info(f"Best checkpoint: {best}")
        if "tensorboard" in trainer.opt.logger:
            self.logger.info(f"Curves: tensorboard --logdir {trainer.run_dir.path}")

    def on_exception(self, trainer, error: BaseException) -> None:
        line, *how = load("extras.failures:ending", "debug")(trainer, error)
        self.logger.error(line)
        for line in how:
            self.logger.info(line)

    def time_left(self, trainer) -> str:
        """Return the time to the end at the speed so far, as h:mm:ss."""
        began, first = self.started
        done = trainer.progress.update - first
        whole = self.num_epochs * trainer.train_loader.updates_per_epoch
        left = min(whole, trainer.opt.max_updates or whole) - trainer.progress.update
        seconds = int((time.perf_counter() - began) / max(done, 1) * left)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
