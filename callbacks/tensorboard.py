"""Curves, pictures and hyper-parameters for TensorBoard."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from callbacks.callback import Callback


class TensorBoard(Callback):
    """Writes event files: `train/...`, `lr` and `grad_norm` per logged update, `val/...` and a picture per validation.

    The horizontal axis is always the number of completed updates.

    Args:
        log_dir: where the event files go.
        hparams: the options of the run, for TensorBoard's table of hyper-parameters.
        monitor: the metric shown in that table.
    """

    def __init__(self, log_dir: str | Path, hparams: Mapping[str, Any], monitor: str):
        self.log_dir = Path(log_dir)
        self.hparams = {name: value for name, value in hparams.items() if isinstance(value, (bool, int, float, str))}
        self.monitor = monitor
        self.writer = None

    def on_train_start(self, trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events after the checkpoint that is resumed are struck out, so no update stands there twice.
        purge_step = trainer.progress.update + 1 if trainer.progress.update else None
        self.writer = SummaryWriter(str(self.log_dir), purge_step=purge_step)

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            tag = name if name.split("/")[0] == "lr" else f"train/{name}"
            self.writer.add_scalar(tag, value, trainer.progress.update)

    def on_validation_end(self, trainer, results: Mapping[str, float]) -> None:
        for name, value in results.items():
            self.writer.add_scalar(f"val/{name}", value, trainer.progress.update)
        picture = trainer.evaluator.picture(trainer.val_loader)
        if picture is not None:
            self.writer.add_image("val/predictions", picture, trainer.progress.update)
        self.writer.flush()

    def on_save(self, trainer) -> None:
        self.writer.flush()  # a run that is killed and resumed from this checkpoint has no gap

    def on_train_end(self, trainer) -> None:
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(self.hparams, {f"best/{self.monitor}": trainer.stopper.best}):
            self.writer.file_writer.add_summary(summary)
        # After the last update, so that it is struck out with what comes then when a finished run is lengthened.
        self.writer.add_scalar(f"best/{self.monitor}", trainer.stopper.best, trainer.progress.update + 1)
        self.writer.close()

    def on_exception(self, trainer, error: BaseException) -> None:
        if self.writer is not None:
            with contextlib.suppress(OSError):  # a full disk may be what the exception is about
                self.writer.close()
