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
        self.purge_step = 0  # the first update whose events are struck out
        self._writer = None
        self.last_log: dict[str, Any] = {"update": 0, "values": {}}

    @property
    def writer(self):
        """What writes, made for the first event: so a new run makes its first updates before this import, not after."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.log_dir), purge_step=self.purge_step)
        return self._writer

    def on_train_start(self, trainer) -> None:
        # Events after the checkpoint that is resumed are struck out, so no update stands there twice. In the middle of
        # an epoch so are those of the last update: a validation that a process made before it was killed comes again.
        update, is_in_epoch = trainer.progress.update, trainer.progress.sample > 0
        self.purge_step = update if is_in_epoch else update + 1
        if self.log_dir.exists():  # else there is nothing to strike out yet
            self.writer.flush()
        if is_in_epoch and self.last_log["update"] == update:
            self.write_log()
            self.writer.flush()

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        self.last_log = {"update": trainer.progress.update, "values": dict(values)}
        self.write_log()

    def write_log(self) -> None:
        for name, value in self.last_log["values"].items():
            tag = name if name.split("/")[0] == "lr" else f"train/{name}"
            self.writer.add_scalar(tag, value, self.last_log["update"])

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
        if self._writer is not None:
            with contextlib.suppress(OSError):  # a full disk may be what the exception is about
                self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        return {"last_log": self.last_log}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        values = {str(name): float(value) for name, value in state["last_log"]["values"].items()}
        self.last_log = {"update": state["last_log"]["update"], "values": values}
