"""Write report.html and curves.png of a run after its epochs: --logger tensorboard csv report."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from callbacks.callback import Callback
from engine.registry import load
from extras.run_report.page import write_report
from utils.errors import UserError

MOST_OF_TIME = 0.01  # the share of the run that may be spent on each of the two


class Paced:
    """Calls a function as often as it costs at most a share of the time; the first time, `cost` seconds are assumed.

    >>> paced = Paced(lambda: None, cost=0.0)
    >>> paced(), paced.calls
    (None, 1)
    """

    def __init__(self, function: Callable[[], Any], cost: float):
        self.function = function
        self.cost = cost
        self.calls = 0
        self.began = time.perf_counter()

    def __call__(self, is_last: bool = False) -> None:
        """Call the function if it is due, or `is_last`."""
        started = time.perf_counter()
        if is_last or started - self.began >= self.cost / MOST_OF_TIME:
            self.function()
            self.calls += 1
            self.began = time.perf_counter()
            self.cost = self.began - started


class Report(Callback):
    """Writes report.html, which a browser loads again while the run lives, and curves.png.

    Each is written after an epoch when so much time has passed that it costs at most 1 % of it, the page also after the
    first epoch, and both at the end. When an exception ends the run, the page alone is written.

    Args:
        run_dir: of the run.
        options: of the run. The curves are read from metrics.csv, which --logger csv writes.
    """

    def __init__(self, run_dir: str | Path, options: Mapping[str, Any]):
        if "csv" not in options["logger"]:
            raise UserError("--logger report draws the curves of metrics.csv: name csv, too, as in --logger csv report")
        self.run_dir = Path(run_dir)
        self.row: Mapping[str, float] | None = None
        self.status: str | None = "running"
        self.task: type | None = None
        self.page = Paced(self.write_page, cost=0.0)
        self.picture = Paced(self.draw, cost=0.6)

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        self.row, self.task = row, type(trainer)
        self.page()
        self.picture()

    def on_train_end(self, trainer) -> None:
        is_whole = trainer.progress.epoch >= trainer.opt.n_epoch or trainer.progress.update == trainer.opt.max_updates
        self.end(trainer, "finished" if is_whole else "stopped early")
        if self.row is not None:
            self.picture(is_last=True)

    def on_exception(self, trainer, error: BaseException) -> None:
        with contextlib.suppress(UserError, OSError):  # the exception may be about a full disk
            self.end(trainer, None)  # without the picture: who stops a run may give it seconds

    def end(self, trainer, status: str | None) -> None:
        """Write the page for the last time."""
        self.task, self.status = type(trainer), status
        self.page(is_last=True)

    def write_page(self) -> None:
        write_report(self.run_dir, self.row, self.status, self.task)

    def draw(self) -> None:
        load("tools.plot_log:plot_runs", "logger")([self.run_dir], self.run_dir / "curves.png")
