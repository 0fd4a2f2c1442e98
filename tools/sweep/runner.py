"""Run the trials of a sweep as processes, several side by side, and record how each ends."""

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.runs.run_dir import ENDED
from engine.runs.signals import SIGNALS, TIME_IS_UP, StopSignal, exit_status
from tools.plot_log import read_metrics
from tools.processes import start
from tools.sweep.study import FAILED, FINISHED, INTERRUPTED, PRUNED, RUNNING, WAITING, Run, Study, Trial
from utils.errors import UserError
from utils.logger import open_own

ROOT = Path(__file__).resolve().parents[2]  # of the repository
OUTPUT = "output.txt"  # in the directory of a run: its output
POLL = 0.2  # seconds between two looks at the runs
STOPPED = (TIME_IS_UP, *map(exit_status, SIGNALS), *[-number for number in SIGNALS])  # exit statuses


@dataclass
class Job:
    """A run in progress."""

    trial: Trial
    run: Run
    slot: int
    process: subprocess.Popen
    started: float
    is_stopped: bool = False
    last_epoch: int = 0  # the last one that was reported to the study


class Runner:
    """Runs the trials of a study until none is left.

    Args:
        root: the directory of the sweep.
        study: where the trials come from, and where their results go.
        command: makes the command of (settings, seed, output directory, slot).
        num_slots: how many runs are in progress at once.
    """

    def __init__(
        self,
        root: Path,
        study: Study,
        command: Callable[[dict[str, str], int, Path, int], list[str]],
        num_slots: int,
    ):
        self.root = root
        self.study = study
        self.command = command
        self.num_slots = num_slots
        self.stop_signal = StopSignal()
        path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        if num_slots > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_slots)))

    def run(self) -> None:
        """Run everything. After a signal, let all runs save and end, and raise the exception of the signal."""
        runs = self.left()
        jobs: list[Job] = []
        slots = [*range(self.num_slots)]
        with self.stop_signal:
            while True:
                while slots and not self.stop_signal.pending() and (chosen := next(runs, None)):
                    jobs.append(self.start(*chosen, slots.pop(0)))
                if not jobs:
                    break
                time.sleep(POLL)
                for job in [job for job in jobs if self.is_over(job)]:
                    jobs.remove(job)
                    slots.append(job.slot)
            self.stop_signal.raise_if_set()

    def left(self) -> Iterator[tuple[Trial, Run]]:
        """Yield the runs to start. One that ended after the sweep was killed is recorded instead."""
        for trial, run in self.study.runs():
            if any(trial.directory(self.root, run).glob(f"*/{ENDED}")):
                self.end(trial, run, 0)
            else:
                yield trial, run

    def start(self, trial: Trial, run: Run, slot: int) -> Job:
        """Start the process of a run."""
        directory = trial.directory(self.root, run)
        directory.mkdir(parents=True, exist_ok=True)
        run.state = RUNNING
        self.study.record(trial)
        try:
            output = open_own(directory / OUTPUT)
        except OSError as error:
            raise UserError(f"Cannot write {directory / OUTPUT}: {error.strerror}.") from None
        with output:
            process = start(self.command(trial.settings, run.seed, directory, slot), output, self.environment)
        return Job(trial, run, slot, process, time.monotonic())

    def is_over(self, job: Job) -> bool:
        """Look at a run: record its end, or stop it when a signal came or its trial is not worth continuing."""
        if job.process.poll() is not None:
            job.run.seconds += round(time.monotonic() - job.started, 1)
            self.end(job.trial, job.run, job.process.returncode)
            return True
        if not job.is_stopped and (self.should_prune(job) or self.stop_signal.pending()):
            job.is_stopped = True
            job.process.send_signal(signal.SIGTERM)  # it saves, and ends
        return False

    def should_prune(self, job: Job) -> bool:
        """Report the new epochs of a trial's first run; say whether the trial is not worth continuing."""
        trial = job.trial
        if job.run is trial.runs[0] and not trial.is_pruned:
            for epoch, value in read_curve(trial.directory(self.root, job.run), self.study.plan.metric):
                if epoch > job.last_epoch and not trial.is_pruned:
                    job.last_epoch = epoch
                    trial.is_pruned = self.study.should_prune(trial, epoch, value)
        return trial.is_pruned

    def end(self, trial: Trial, run: Run, status: int) -> None:
        """Record how a run ended."""
        plan = self.study.plan
        directory = trial.directory(self.root, run)
        curve = read_curve(directory, plan.metric)
        best_of = max if plan.mode == "max" else min
        run.value = best_of((value for _, value in curve), default=None)
        run.epochs = max((epoch for epoch, _ in curve), default=0)
        run.status = status
        run.last_line = ""
        if status in STOPPED:
            run.state = PRUNED if trial.is_pruned else INTERRUPTED
        elif status == 0 and curve:  # also a run that was to be pruned but reached its end
            run.state = FINISHED
        else:
            run.state = FAILED
            run.last_line = last_line(directory / OUTPUT) if status else f"it has no finite val/{plan.metric}"
        for other in trial.runs if trial.is_pruned else ():
            if other.state == WAITING:
                other.state = PRUNED
        print(describe(trial, run, plan.metric), flush=True)
        self.study.record(trial)


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
    """Return the (epoch, finite value) of each validation of the newest run in a directory.

    Args:
        directory: the --output_dir of the run.
        metric: the name of the metric, without val/.
    """
    runs = sorted(path.parent for path in directory.glob("*/metrics.csv"))
    try:
        points = read_metrics(runs[-1])
    except (IndexError, UserError):  # it has not come to its first validation
        return []
    return [(int(epoch), value) for epoch, value in points.get(f"val/{metric}", ()) if math.isfinite(value)]


def last_line(path: Path) -> str:
    """Return the last line of a file that is not blank, cut at 300 letters; "" without one."""
    lines = path.read_bytes()[-4096:].decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
