"""Draw a progress bar on a terminal."""

from collections.abc import Mapping
from typing import Any

from callbacks.callback import Callback


class ProgressBar(Callback):
    """Shows the position in the epoch, samples per second, the time left in it, the loss and the learning rate.

    It moves ten times a second. It shows the loss of the last log entry, because reading a loss makes a GPU wait.

    Args:
        num_epochs: epochs of the whole run.
    """

    seconds_between = 0.1

    def __init__(self, num_epochs: int):
        self.num_epochs = num_epochs
        self.bar = None

    def on_epoch_start(self, trainer) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            total=trainer.train_loader.num_samples,
            initial=trainer.progress.sample,
            desc=f"epoch {trainer.progress.epoch + 1}/{self.num_epochs}",
            unit="img",
            dynamic_ncols=True,
            leave=False,
        )

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        self.bar.update(trainer.progress.sample - self.bar.n)

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        shown = {name: f"{values[name]:.4g}" for name in ("loss", "lr") if name in values}
        self.bar.set_postfix(shown, refresh=False)

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        self.close()

    def on_train_end(self, trainer) -> None:
        self.close()

    def on_exception(self, trainer, error: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
