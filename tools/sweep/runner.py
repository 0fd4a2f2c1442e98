"""Run the trials of a sweep as processes, several side by side, and record how each ends."""

import asyncio
import csv
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from engine.runs.run_dir import ENDED
from engine.runs.signals import TIME_IS_UP, StopSignal, exit_status
from extras.launch import end_with_parent
from tools.sweep.study import FAILED, FINISHED, INTERRUPTED, PRUNED, RUNNING, UNFINISHED, Run, Study, Trial
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the repository
OUTPUT = "output.txt"  # in the directory of a run: its output
POLL = 0.2  # seconds between two looks at the runs
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = (TIME_IS_UP, *map(exit_status, STOP_SIGNALS), *[-number for number in STOP_SIGNALS])  # exit statuses


class Runner:
    """Runs the trials of a study until none is left.

    Args:
        root: the directory of the sweep.
        study: where the trials come from, and where their results go.
        command: makes the command of (settings, seed, output directory, slot).
        num_slots: how many runs are in progress at once.
        metric: the name of the monitored metric.
        mode: "max" or "min": which values of the metric are best.
        say: takes a line for the user.
    """

    def __init__(
        self,
        root: Path,
        study: Study,
        command: Callable[[dict[str, str], int, Path, int], list[str]],
        num_slots: int,
        metric: str,
        mode: str,
        say: Callable[[str], object] = print,
    ):
        self.root = root
        self.study = study
        self.command = command
        self.num_slots = num_slots
        self.metric = metric
        self.mode = mode
        self.say = say
        self.stop_signal = StopSignal()
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *python_path()])}
        if num_slots > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_slots)))

    def run(self) -> None:
        """Run everything. After a signal, let all runs save and end, and raise the exception of the signal."""
        with self.stop_signal:
            asyncio.run(self.run_all())
            self.stop_signal.raise_if_set()

    async def run_all(self) -> None:
        """Start a run whenever a slot is free."""
        slots = asyncio.Queue()
        for slot in range(self.num_slots):
            slots.put_nowait(slot)
        runs = self.runs()
        async with asyncio.TaskGroup() as tasks:
            while True:
                slot = await slots.get()
                if self.stop_signal.pending():
                    break
                trial, run = next(runs, (None, None))
                if trial is None:
                    break
                task = tasks.create_task(self.run_one(trial, run, slot))
                task.add_done_callback(lambda _, slot=slot: slots.put_nowait(slot))

    def runs(self) -> Iterator[tuple[Trial, Run]]:
        """Yield the runs that are left, those of unfinished trials first. A trial is proposed when a slot is free."""
        unfinished = iter(self.study.unfinished())
        while trial := next(unfinished, None) or self.study.next_trial():
            for run in trial.runs:
                if run.state in UNFINISHED:
                    yield trial, run

    async def run_one(self, trial: Trial, run: Run, slot: int) -> None:
        """Start a run, wait for its end, and stop it when a signal came or its trial is not worth continuing."""
        directory = trial.directory(self.root, run)
        if any(directory.glob(f"*/{ENDED}")):  # it ended, but the sweep was killed before it recorded that
            return self.end(trial, run, 0)
        directory.mkdir(parents=True, exist_ok=True)
        run.state = RUNNING
        self.study.record(trial)
        started = time.monotonic()
        with open(directory / OUTPUT, "ab") as output:
            process = subprocess.Popen(
                self.command(trial.settings, run.seed, directory, slot),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                process_group=0,  # Ctrl-C reaches this process alone, which passes it on once
                preexec_fn=end_with_parent,  # SIGTERM when the sweep is killed
            )
        is_stopped = False
        while process.poll() is None:
            await asyncio.sleep(POLL)
            if not is_stopped and (self.stop_signal.pending() or self.should_prune(trial, run)):
                is_stopped = True
                process.send_signal(signal.SIGTERM)  # it saves, and ends
        run.seconds += round(time.monotonic() - started, 1)
        self.end(trial, run, process.returncode)

    def should_prune(self, trial: Trial, run: Run) -> bool:
        """Report the new epochs of a trial's first run; say whether the trial is not worth continuing."""
        if run is trial.runs[0] and not trial.is_pruned:
            for epoch, value in read_curve(trial.directory(self.root, run), self.metric):
                if epoch > trial.last_epoch and math.isfinite(value) and not trial.is_pruned:
                    trial.last_epoch = epoch
                    trial.is_pruned = self.study.should_prune(trial, epoch, value)
        return trial.is_pruned

    def end(self, trial: Trial, run: Run, status: int) -> None:
        """Record how a run ended, and the result of its trial when it was the last one."""
        directory = trial.directory(self.root, run)
        run.status = status
        run.last_line = ""
        try:
            curve = read_curve(directory, self.metric)
        except UserError as error:
            curve = []
            run.last_line = str(error)
        run.value = best_of((value for _, value in curve), self.mode)
        run.epochs = max((epoch for epoch, _ in curve), default=0)
        if status == 0 and run.value is not None:  # also a run that was to be pruned but reached its end
            run.state = FINISHED
        elif status == 0:
            run.state = FAILED
            run.last_line = run.last_line or f"it has no finite val/{self.metric}"
        elif trial.is_pruned and status in STOPPED:
            run.state = PRUNED
        else:
            run.state = INTERRUPTED if status in STOPPED else FAILED
            run.last_line = run.last_line or last_line(directory / OUTPUT)
        self.say(describe(trial, run, self.metric))
        if trial.is_pruned:
            trial.drop_waiting()
        if trial.is_over:
            self.study.finish(trial)
        else:
            self.study.record(trial)


def python_path() -> list[str]:
    """Return the directories that Python's own environment variable names."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def python_command(program: str, flags: Sequence[str]) -> list[str]:
    """Return the command that runs a file NAME.py, or a module by its dotted name, with flags."""
    return [sys.executable, *([program] if program.endswith(".py") else ["-m", program]), *flags]


# ---- the files of a run ----------------------------------------------------------------------------------------------
def describe(trial: Trial, run: Run, metric: str) -> str:
    """Return the line that is printed when a run has ended."""
    settings = " ".join(f"{name}={short(value)}" for name, value in trial.settings.items())
    value = "" if run.value is None else f", best val/{metric} {run.value:.6g}"
    line = f"{trial.name} {settings} seed={run.seed}: {run.state} after {run.epochs} epochs, {run.seconds:.1f} s{value}"
    return f"{line}\n    status {run.status}: {run.last_line}" if run.state == FAILED else line


def short(text: str) -> str:
    """Round a long number to four digits; return any other text as it is.

    >>> short("0.0015676677195506068"), short("1e-3"), short("adamW")
    ('0.001568', '1e-3', 'adamW')
    """
    try:
        return text if len(text) <= 8 else f"{float(text):.4g}"
    except ValueError:
        return text


def read_curve(directory: Path, metric: str) -> list[tuple[int, float]]:
    """Return the (epoch, value) of each validation of the newest run in a directory; empty while there is none.

    Args:
        directory: the --output_dir of the run.
        metric: the name of the metric, without val/.

    Raises:
        UserError: when metrics.csv cannot be read as numbers.
    """
    paths = sorted(directory.glob("*/metrics.csv"))
    if not paths:
        return []
    with open(paths[-1], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        curve = [(int(row["epoch"]), float(row.get(f"val/{metric}") or "nan")) for row in rows]
    except (LookupError, ValueError, TypeError) as error:
        raise UserError(f"{paths[-1]} is not the metrics.csv of a run: {error}.") from None
    return [(epoch, value) for epoch, value in curve if not math.isnan(value)]


def best_of(values: Iterable[float], mode: str) -> float | None:
    """Return the largest ("max") or smallest ("min") of the finite values; None without one."""
    finite = [value for value in values if math.isfinite(value)]
    return (max if mode == "max" else min)(finite) if finite else None


def last_line(path: Path) -> str:
    """Return the last line of a file that is not blank, cut at 300 letters; "" without one."""
    try:
        lines = path.read_bytes()[-4096:].decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
