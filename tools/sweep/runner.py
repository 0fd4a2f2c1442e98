"""Run the trials of a sweep as processes of their own, some side by side, and take down what becomes of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from engine.devices.launch import end_with_parent
from engine.runs.run_dir import ENDED
from engine.runs.signals import TIME_IS_UP, StopSignal, exit_status
from tools.sweep.record import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    OUTPUT,
    PRUNED,
    RUNNING,
    TO_DO,
    WAITING,
    Run,
    Trial,
    best_of,
    last_line,
    read_curve,
    save_trials,
    short,
)
from utils.errors import UserError

POLL = 0.2  # seconds between two looks at the runs


class Supply(Protocol):
    """Where trials come from: nowhere for a grid, which has all from the start, or from a search."""

    def more(self) -> Trial | None:
        """The next trial to run; None when there is none."""

    def should_prune(self, trial: Trial, epoch: int, value: float) -> bool:
        """Take the metric of an epoch of a trial's first run, and say whether to go on is in vain."""

    def tell(self, trial: Trial) -> None:
        """Take the result of a trial whose runs have all ended."""


class NoMore:
    """The supply of a grid."""

    def more(self) -> None:
        return None

    def should_prune(self, trial: Trial, epoch: int, value: float) -> bool:
        return False

    def tell(self, trial: Trial) -> None:
        pass


@dataclass
class Process:
    """A run that is going on."""

    trial: Trial
    run: Run
    slot: int
    popen: subprocess.Popen
    output: IO
    started: float
    last_epoch: int = 0
    is_in_vain: bool = False


class Runner:
    """Runs trials until none is left.

    Args:
        root: the directory of the sweep.
        trials: those that there are; more are added to this list.
        supply: where more come from.
        command: makes the command of (settings, seed, output directory, slot).
        num_slots: how many runs go on side by side.
        metric: the name of the monitored metric.
        mode: "max" or "min", which of its values is best.
        say: takes a line for the user.
    """

    def __init__(
        self,
        root: Path,
        trials: list[Trial],
        supply: Supply,
        command: Callable[[dict[str, str], int, Path, int], list[str]],
        num_slots: int,
        metric: str,
        mode: str,
        say: Callable[[str], object] = print,
    ):
        self.root, self.trials, self.supply, self.command = root, trials, supply, command
        self.metric, self.mode, self.say = metric, mode, say
        self.free = list(range(num_slots))
        self.running: list[Process] = []
        self.waiting = [(trial, run) for trial in trials for run in trial.runs if run.state in TO_DO]
        for _, run in self.waiting:
            run.state = WAITING
        threads = max(1, (os.cpu_count() or 1) // num_slots)
        self.environment = {"OMP_NUM_THREADS": str(threads)} if num_slots > 1 else {}
        self.environment |= os.environ

    def run(self) -> None:
        """Run everything; after a signal stop all runs in good order, and raise what the signal stands for."""
        with StopSignal() as stop_signal:
            is_stopping = False
            while True:
                signum = stop_signal.pending()
                if signum and not is_stopping:
                    is_stopping = True
                    self.say(f"Stopping {len(self.running)} runs, which save first; a second signal ends them at once.")
                    for process in self.running:
                        self.stop(process)
                while self.free and not is_stopping and self.start_next():
                    pass
                if not self.running:
                    break
                time.sleep(POLL)
                for process in [*self.running]:
                    self.look_at(process, may_prune=not is_stopping)
            for trial in self.trials:
                for run in trial.runs:
                    run.state = INTERRUPTED if is_stopping and run.state == WAITING else run.state
            self.save()
            stop_signal.raise_if_set()

    def save(self) -> None:
        save_trials(self.root / "trials.json", self.trials)

    # ---- one run -----------------------------------------------------------------------------------------------------
    def start_next(self) -> bool:
        """Start the next run; False when there is none."""
        if not self.waiting:
            trial = self.supply.more()
            if trial is None:
                return False
            self.trials.append(trial)
            self.waiting = [(trial, run) for run in trial.runs]
        trial, run = self.waiting.pop(0)
        directory = trial.directory(self.root, run)
        if any(directory.glob(f"*/{ENDED}")):  # it ended, but the sweep did not live to write it down
            self.end(trial, run, 0)
            return True
        slot = self.free.pop(0)
        directory.mkdir(parents=True, exist_ok=True)
        output = open(directory / OUTPUT, "ab")  # noqa: SIM115 - closed when the run has ended
        run.state = RUNNING
        self.save()
        # In a group of its own: Ctrl-C goes to this process alone, which passes it on once. And when this process is
        # gone, the system sends SIGTERM: the first signal to a run that nobody stopped, the second to one that saves.
        popen = subprocess.Popen(
            self.command(trial.settings, run.seed, directory, slot), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, env=self.environment, process_group=0,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        self.running.append(Process(trial, run, slot, popen, output, time.monotonic()))
        return True

    def stop(self, process: Process) -> None:
        """Ask a run to save and end."""
        if process.popen.poll() is None:
            process.popen.send_signal(signal.SIGTERM)

    def look_at(self, process: Process, may_prune: bool) -> None:
        """See how far a run is, stop it if it is in vain, and take down its end."""
        trial, run = process.trial, process.run
        status = process.popen.poll()
        if status is None:
            is_first = run is trial.runs[0]
            if may_prune and is_first and not process.is_in_vain and self.is_in_vain(process):
                process.is_in_vain = True
                self.stop(process)
            return
        process.output.close()
        self.running.remove(process)
        self.free.append(process.slot)
        run.seconds += round(time.monotonic() - process.started, 1)
        self.end(trial, run, status, process.is_in_vain)

    def is_in_vain(self, process: Process) -> bool:
        """Hand the epochs that are new to the supply, until one is enough for it."""
        curve = read_curve(process.trial.directory(self.root, process.run), self.metric)
        new = [(epoch, value) for epoch, value in curve if epoch > process.last_epoch]
        process.last_epoch = max((epoch for epoch, _ in new), default=process.last_epoch)
        answers = [self.supply.should_prune(process.trial, epoch, value) for epoch, value in new]  # it takes in each
        return any(answers)

    def end(self, trial: Trial, run: Run, status: int, is_in_vain: bool = False) -> None:
        """Take down how a run ended, and pass its trial's result on when it was the last."""
        directory = trial.directory(self.root, run)
        run.status, run.last_line = status, ""
        try:
            curve = read_curve(directory, self.metric)
        except UserError as error:
            curve, run.last_line = [], str(error)
        run.value = best_of([value for _, value in curve], self.mode)
        run.epochs = max((epoch for epoch, _ in curve), default=0)
        if status == 0:  # also a run that was to be stopped but came to its end
            run.state = FINISHED if run.value is not None else FAILED
            run.last_line = run.last_line or ("" if run.value is not None else f"it has no finite val/{self.metric}")
        elif is_in_vain and status in STOPPED:
            run.state = PRUNED
            self.drop(trial)
        else:
            run.state = INTERRUPTED if status in STOPPED else FAILED
            run.last_line = run.last_line or last_line(directory / OUTPUT)
        self.say(line_of(trial, run, self.metric))
        if all(run.state not in TO_DO for run in trial.runs):
            self.supply.tell(trial)
        self.save()

    def drop(self, trial: Trial) -> None:
        """Give up the other runs of a trial."""
        for other, run in self.waiting:
            if other is trial:
                run.state = PRUNED
        self.waiting = [(other, run) for other, run in self.waiting if other is not trial]
        for process in self.running:
            if process.trial is trial:
                process.is_in_vain = True
                self.stop(process)


STOPPED = (exit_status(signal.SIGINT), exit_status(signal.SIGTERM), exit_status(signal.SIGHUP), TIME_IS_UP,
           -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)  # fmt: skip


def line_of(trial: Trial, run: Run, metric: str) -> str:
    """What is said when a run has ended."""
    what = " ".join(f"{name}={short(value)}" for name, value in trial.settings.items())
    value = "" if run.value is None else f", best val/{metric} {run.value:.6g}"
    line = f"{trial.name} {what} seed={run.seed}: {run.state} after {run.epochs} epochs, {run.seconds:.1f} s{value}"
    return f"{line}\n    status {run.status}: {run.last_line}" if run.state == FAILED else line


def python_command(program: str, flags: Sequence[str]) -> list[str]:
    """The command that runs a file NAME.py, or a module by its dotted name, with flags."""
    return [sys.executable, *([program] if program.endswith(".py") else ["-m", program]), *flags]
