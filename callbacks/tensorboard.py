"""Write curves, pictures and hyper-parameters for TensorBoard."""

import contextlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from callbacks.callback import Callback
from utils.errors import UserError

EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})(\..*)")  # with the second in which it was made


def open_writer(log_dir: Path, purge_step: int) -> Any:
    """Return a writer of event files that makes TensorBoard ignore earlier events in the directory from a step on.

    TensorBoard reads the files of a directory in the order of the seconds in their names. So a directory has one writer
    at a time: a callback that writes events, too, needs a directory of its own. And if the clock went back, or a run is
    resumed within a second, the earlier files get earlier names; else TensorBoard would ignore the new events.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes a while

    if log_dir.is_symlink():
        raise UserError(f"{log_dir} is a link, and events would go into files elsewhere: put a directory in its place.")
    if log_dir.is_dir():
        names = [EVENT_FILE.fullmatch(path.name) for path in log_dir.iterdir()]
        made = sorted(name.groups() for name in names if name)
        ahead = int(made[-1][0]) - int(time.time()) + 1 if made else 0
        for seconds, rest in made if ahead > 0 else ():
            earlier = f"{int(seconds) - ahead:010d}"
            (log_dir / f"events.out.tfevents.{seconds}{rest}").rename(log_dir / f"events.out.tfevents.{earlier}{rest}")
    return SummaryWriter(str(log_dir), purge_step=purge_step)


class TensorBoard(Callback):
    """Writes event files: `train/...`, `lr` and `grad_norm` per logged update, `val/...` and a picture per validation.

    The horizontal axis is always the number of completed updates.

    Args:
        log_dir: directory of the event files.
        hparams: the options of the run, for TensorBoard's table of hyper-parameters.
        monitor: the metric in that table.
    """

    def __init__(self, log_dir: str | Path, hparams: Mapping[str, Any], monitor: str):
        self.log_dir = Path(log_dir)
        self.hparams = {name: value for name, value in hparams.items() if isinstance(value, (bool, int, float, str))}
        self.monitor = monitor
        self.purge_step = 0  # TensorBoard ignores earlier events from this update on
        self._writer = None
        self.last_log: dict[str, Any] = {"update": 0, "values": {}}

    @property
    def writer(self):
        """The writer of event files, made for the first event: importing it would delay the first update."""
        if self._writer is None:
            self._writer = open_writer(self.log_dir, self.purge_step)
        return self._writer

    def on_train_start(self, trainer) -> None:
        # Purge events after the checkpoint, so that no update appears twice. Within an epoch, purge those of the last
        # update too: a validation just before a kill will be repeated.
        update = trainer.progress.update
        is_in_epoch = trainer.progress.sample > 0
        self.purge_step = update if is_in_epoch else update + 1
        if self.log_dir.exists():
            self.writer.flush()
        if is_in_epoch and self.last_log["update"] == update:
            self.write_log()
            self.writer.flush()

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        self.last_log = {"update": trainer.progress.update, "values": dict(values)}
        self.write_log()

    def write_log(self) -> None:
        """Write the values of the last logged update."""
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
        self.writer.flush()  # else a run resumed from this checkpoint would have a gap

    def on_train_end(self, trainer) -> None:
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(self.hparams, {f"best/{self.monitor}": trainer.stopper.best}):
            self.writer.file_writer.add_summary(summary)
        # After the last update, so that it is purged when a finished run is continued.
        self.writer.add_scalar(f"best/{self.monitor}", trainer.stopper.best, trainer.progress.update + 1)
        self.writer.close()

    def on_exception(self, trainer, error: BaseException) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # the exception may be about a full disk
                self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        return {"last_log": self.last_log}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        values = {str(name): float(value) for name, value in state["last_log"]["values"].items()}
        self.last_log = {"update": state["last_log"]["update"], "values": values}
