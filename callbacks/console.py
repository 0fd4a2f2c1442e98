"""What a person watching the run sees: a progress bar on a terminal, plain lines elsewhere, one line per epoch."""

import logging
import sys
import time
from collections.abc import Mapping

from callbacks.callback import Callback

SECONDS_BETWEEN_LINES = 10.0


class Console(Callback):
    """Shows epoch, loss, learning rate, samples per second and the time that is left.

    Args:
        logger: takes the lines, and so the log file has them too.
        monitor: the metric that chooses the best checkpoint.
        num_epochs: epochs of the whole run.
    """

    def __init__(self, logger: logging.Logger, monitor: str, num_epochs: int):
        self.logger = logger
        self.monitor = monitor
        self.num_epochs = num_epochs
        self.bar = None
        self.last_line = 0.0
        self.started = (0.0, 0)  # (time, update) where this process began, for the time left

    def on_train_start(self, trainer) -> None:
        self.started = (time.perf_counter(), trainer.progress.update)
        if trainer.progress.update:
            self.logger.info(
                f"Resumed {trainer.opt.resume} after update {trainer.progress.update:,} "
                f"(epoch {trainer.progress.epoch}, sample {trainer.progress.sample:,})"
            )

    def on_epoch_start(self, trainer) -> None:
        self.last_line = time.perf_counter()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=trainer.train_loader.num_samples,
                initial=trainer.progress.sample,
                desc=f"epoch {trainer.progress.epoch + 1}/{self.num_epochs}",
                unit="img",
                dynamic_ncols=True,
                leave=False,
            )

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        if self.bar is not None:
            shown = {name: f"{values[name]:.4g}" for name in ("loss", "lr") if name in values}
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(trainer.progress.sample - self.bar.n)
        now = time.perf_counter()
        if not sys.stdout.isatty() and now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.logger.info(
                f"epoch {trainer.progress.epoch + 1}/{self.num_epochs}, sample {trainer.progress.sample:,} of "
                f"{trainer.train_loader.num_samples:,}: {shown}, {self.time_left(trainer)} left"
            )

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        self.close_bar()
        shown = [f"{name} {value:.4f}" for name, value in row.items() if name.startswith(("train/", "val/"))]
        improved = trainer.stopper.num_bad == 0 and f"val/{self.monitor}" in row
        self.logger.info(
            f"epoch {row['epoch']}/{self.num_epochs}: {', '.join(shown)}, lr {row.get('lr', float('nan')):.3g}, "
            f"{row['samples_per_second']:,.0f} samples/s, {self.time_left(trainer)} left{' (best)' if improved else ''}"
        )

    def on_train_end(self, trainer) -> None:
        stopper = trainer.stopper
        if stopper.should_stop:
            self.logger.info(f"Early stop: {stopper.num_bad} validations without a better {self.monitor}.")
        elif trainer.progress.epoch < self.num_epochs:
            self.logger.info("Stopped as a callback asked for.")
        updates = f"{trainer.progress.update:,} updates"
        self.logger.info(f"Finished after {updates}. Best val/{self.monitor}: {stopper.best:.4f}")
        best = trainer.checkpointer.path("best")
        if best.exists():
            self.logger.info(f"Best checkpoint: {best}")
        self.logger.info(f"Curves: tensorboard --logdir {trainer.run_dir.path}")

    def on_exception(self, trainer, error: BaseException) -> None:
        self.close_bar()
        kept = trainer.checkpointer.path("InT")
        self.logger.error(f"Stopped by {type(error).__name__} after update {trainer.progress.update:,}. Saved: {kept}")
        self.logger.info(f"To go on: --resume {trainer.run_dir.path}")

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def time_left(self, trainer) -> str:
        """The time to the end at the speed so far, as h:mm:ss."""
        began, first = self.started
        done = trainer.progress.update - first
        left = self.num_epochs * trainer.train_loader.updates_per_epoch - trainer.progress.update
        seconds = int((time.perf_counter() - began) / max(done, 1) * left)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
