"""Profile a few updates: write a trace and a table of operators by time."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from callbacks.callback import Callback
from utils.errors import UserError
from utils.files import write_atomically

WARM_UP = 5  # updates that are not recorded: they choose algorithms and fill caches
ROWS_IN_LOG = 12
NAME_WIDTH = 38  # of an operator in the log; with the numbers a line has at most 80 characters
NAMES = {  # of the time in annotations that belongs to no operator
    "update ": "(Python, in the update)",
    "ProfilerStep": "(Python, between updates)",  # torch's own annotation: from the end of an update to the next
}


class Profiler(Callback):
    """Records updates with `torch.profiler`, after a warm-up; then training continues.

    It writes to RUN/profile: a trace for https://ui.perfetto.dev, chrome://tracing or TensorBoard, in which every
    update has its name ("update 12"), and a table of the operators. All updates are of one epoch, because an evaluation
    between them would be recorded too. Without an epoch of enough updates it records fewer and warns.

    Args:
        num_updates: number of updates to record.
        logger: gets the paths of the files and the top of the table.
    """

    def __init__(self, num_updates: int, logger: logging.Logger):
        self.num_updates = num_updates
        self.logger = logger
        self.profile: profile | None = None
        self.annotation: record_function | None = None
        self.recorded: list[int] = []  # the updates, by their numbers
        self.num_warm_up = 0
        self.is_done = False

    def on_epoch_start(self, trainer) -> None:
        loader, progress = trainer.train_loader, trainer.progress
        of_epoch, left = loader.updates_per_epoch, loader.num_samples - progress.sample
        left = -(-left * of_epoch // loader.num_samples)  # updates, rounded up
        is_last = progress.epoch + 1 == trainer.opt.n_epoch
        if self.is_done or left == 0 or (left < min(self.num_updates + WARM_UP, of_epoch) and not is_last):
            return
        self.num_warm_up = min(WARM_UP, max(left - self.num_updates, left > 1))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trainer.device.type == "cuda" else [])]
        plan = {"wait": 0, "warmup": self.num_warm_up, "active": self.num_updates, "repeat": 1}
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints when it starts, and an error without a GPU
        self.profile = profile(activities=activities, schedule=schedule(**plan), acc_events=True)
        self.profile.start()

    def on_update_start(self, trainer, update) -> None:
        if self.profile is not None:
            self.annotation = record_function(f"update {trainer.progress.update + 1}")
            self.annotation.__enter__()

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        if self.profile is None:
            return
        self.leave_annotation()
        if self.num_warm_up:
            self.num_warm_up -= 1
        else:
            self.recorded.append(trainer.progress.update)
        is_epoch_over = trainer.progress.sample >= trainer.train_loader.num_samples
        if len(self.recorded) == self.num_updates or is_epoch_over:
            self.finish(trainer.run_dir.path)
        else:
            self.profile.step()

    def on_train_end(self, trainer) -> None:
        if self.profile is not None:  # a callback asked to stop
            self.finish(trainer.run_dir.path)
        elif not self.is_done:
            self.logger.warning("--profile: there was no update to record.")

    def on_exception(self, trainer, error: BaseException) -> None:
        if self.profile is None:
            return
        try:
            self.finish(trainer.run_dir.path)
        except Exception as failure:  # it must not replace the exception that ended the run
            self.logger.warning(f"The profile could not be written: {failure or type(failure).__name__}")

    def leave_annotation(self) -> None:
        """End the annotation of the update under way."""
        if self.annotation is not None:
            self.annotation.__exit__(None, None, None)
            self.annotation = None

    def finish(self, run_dir: Path) -> None:
        """Stop recording and write the files."""
        recorder, self.profile, self.is_done = self.profile, None, True
        self.leave_annotation()
        recorder.stop()  # waits for the device
        if not self.recorded:
            self.logger.warning("--profile: the run ended before the warm-up was over, so nothing was recorded.")
            return
        if len(self.recorded) < self.num_updates:
            self.logger.warning(f"--profile: there were only {len(self.recorded)} of {self.num_updates} to record.")
        directory, name = run_dir / "profile", f"updates_{self.recorded[0]}-{self.recorded[-1]}"
        trace, table = directory / f"{name}.pt.trace.json", directory / f"{name}_operators.txt"
        try:
            directory.mkdir(exist_ok=True)
            recorder.export_chrome_trace(str(trace))
        except (OSError, RuntimeError) as error:
            raise UserError(f"Cannot write the profile {trace}: {error}") from None
        rows = operators(recorder)
        write_atomically(table, (format_operators(rows, len(self.recorded), 80, len(rows)) + "\n").encode())
        self.logger.info(
            f"Profiled updates {self.recorded[0]} to {self.recorded[-1]}:\n"
            f"{format_operators(rows, len(self.recorded), NAME_WIDTH, ROWS_IN_LOG)}\n"
            f"All operators: {table}\nTrace, for https://ui.perfetto.dev or chrome://tracing: {trace}"
        )


def operators(recorder: profile) -> list[tuple[str, int, float, float]]:
    """Return (name, calls, CPU seconds, GPU seconds) of each operator, the longest first.

    Times exclude the operators that an operator calls. GPU seconds are those of the kernels that it started. The time
    between operators has rows of its own.
    """
    rows: dict[str, list] = {}
    for event in recorder.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # kernels are counted with the operators that started them
        name = next((name for begin, name in NAMES.items() if event.key.startswith(begin)), event.key)
        row = rows.setdefault(name, [0, 0.0, 0.0])
        row[0] += event.count
        row[1] += event.self_cpu_time_total / 1e6
        row[2] += event.self_device_time_total / 1e6
    has_gpu = any(row[2] for row in rows.values())
    return sorted(((name, *row) for name, row in rows.items()), key=lambda row: row[3 if has_gpu else 2], reverse=True)


def format_operators(rows: list[tuple[str, int, float, float]], num_updates: int, name_width: int, most: int) -> str:
    """Format the first `most` rows of `operators` as a table, per update; with GPU columns if it was used."""
    columns = {"CPU": 2} | ({"GPU": 3} if any(row[3] for row in rows) else {})
    sums = {name: sum(row[place] for row in rows) or 1e-9 for name, place in columns.items()}
    numbers = "".join(f"{name + ' ms':>10}{name + ' %':>7}" for name in columns)
    lines = [f"{'operator, per update':<{name_width}}{'calls':>8}{numbers}"]
    for row in rows:
        name = row[0] if len(row[0]) < name_width else f"{row[0][: name_width - 4]}..."
        seconds = {name: row[place] for name, place in columns.items()}
        numbers = "".join(f"{1000 * s / num_updates:>10.3f}{100 * s / sums[name]:>7.1f}" for name, s in seconds.items())
        lines.append(f"{name:<{name_width}}{row[1] / num_updates:>8.4g}{numbers}")
    return "\n".join(lines[: most + 1])
