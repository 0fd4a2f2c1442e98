"""Prove that a run which is killed and resumed ends with the same bits as one that is not.

The program that is running trains anew, briefly and in fresh processes: without interruption, the same once more, with
another number of loading processes, and at last killed with SIGKILL and resumed. What each update took in and gave
(see tools/trace.py) and what the last checkpoint holds are compared. If they differ, the first difference tells
where to look.
"""

import contextlib
import csv
import itertools
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoints.file import load_checkpoint
from engine.checkpoints.state import NOT_THE_RUN, digests
from engine.runs.provenance import command_line
from engine.runs.signals import SIGNALS, Terminated
from utils.errors import UserError

EPOCHS, BATCHES, SAVE_EVERY = 3, 8, 3
FLAGS = {
    "n_epoch": EPOCHS, "limit_batches": BATCHES, "save_every_updates": SAVE_EVERY, "val_every": 1, "debug": False,
    "requeue": False, "verify_resume": 0,
}  # fmt: skip
CONTRADICTING = {  # flags that its runs cannot take, and why
    "--resume": "which begin at the beginning", "--replay": "which begin at the beginning",
    "--find_lr": "which train", "--doctor": "which train",
    "--kill_at": "which it kills itself", "--max_time": "which go on to their end", "--trace": "which it traces itself",
}  # fmt: skip
TIMES = ("time/", "samples_per_second")  # columns of metrics.csv that no two runs have in common
NUM_LAST_WORDS = 15  # lines
WIDTH = 100  # of the report


# ---- runs ------------------------------------------------------------------------------------------------------------
@dataclass
class Run:
    """What came of a run, with everything that is compared.

    Attributes:
        lines: of the trace, in the order in which they were written.
        parts: a digest of each part of the last checkpoint, and of metrics.csv.
    """

    lines: list[dict[str, Any]]
    parts: dict[str, str]

    @property
    def updates(self) -> dict[int, dict[str, Any]]:
        """The last line of each update."""
        return {line["update"]: line for line in self.lines}


class Runs:
    """Starts the program, and reads what it leaves in a directory of ours.

    Args:
        command: the program and its flags; those given here later win.
        directory: where everything goes.
        seed: of all runs.
    """

    def __init__(self, command: Sequence[str], directory: Path, seed: int):
        self.command = list(command)
        self.directory = directory
        self.seed = seed

    def train(self, name: str, num_workers: int) -> Run:
        """Train without interruption."""
        if status := self.start(name, num_workers):
            self.stop(name, status)
        return self.read(name)

    def train_and_kill(self, name: str, kills: Sequence[int], num_workers: Iterator[int]) -> Run:
        """Train and be killed after each of these updates, and go on each time with the next number of workers."""
        for count, update in enumerate([*kills, None]):
            resume = ["--resume", str(self.run_dir(name))] if count else []
            status = self.start(name, next(num_workers), *resume, *([f"--kill_at={update}"] if update else []))
            if status == 0:
                break  # with a fault, the end may come before the last kill
            if status != -signal.SIGKILL or update is None:
                self.stop(name, status)
        return self.read(name)

    def start(self, name: str, num_workers: int, *flags: str) -> int:
        """Run the program to its end and return its status."""
        own = FLAGS | {"seed": self.seed, "num_workers": num_workers}
        own |= {"output_dir": self.directory / name, "trace": self.trace(name)}
        command = [*self.command, *(f"--{flag}={value}" for flag, value in own.items()), *flags]
        with open(self.output(name), "ab") as output:  # no pipe: loading processes of a killed run would keep it open
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                return process.wait()
            finally:
                process.kill()  # when this process is interrupted; else there is nothing left to kill
                process.wait()

    def stop(self, name: str, status: int) -> None:
        """End because a run failed by itself, with its status and its last words."""
        lines = self.output(name).read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LAST_WORDS:]
        how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        print(f"\n--verify_resume: a run ended {how}, which ends the proof. It said:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
        print(f"Everything is in {self.directory}", file=sys.stderr)
        sys.exit(status if status > 0 else 1)

    def read(self, name: str) -> Run:
        """What is compared of a run that has ended."""
        run_dir = self.run_dir(name)
        state = load_checkpoint(next(run_dir.glob("*_last_ckpt.pth")))
        parts = {part: text for part, text in digests(state).items() if part not in (*NOT_THE_RUN, "run")}
        return Run(read_trace(self.trace(name)), parts | read_metrics(run_dir / "metrics.csv"))

    def run_dir(self, name: str) -> Path:
        return next((self.directory / name).iterdir())

    def trace(self, name: str) -> Path:
        return self.directory / f"{name}_trace.txt"

    def output(self, name: str) -> Path:
        return self.directory / f"{name}_output.txt"


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The lines of a trace; one that was cut short by the death of its process is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def read_metrics(path: Path) -> dict[str, str]:
    """The content of metrics.csv without the times, as one more part; nothing when the task does not write it."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{n: text for n, text in row.items() if not n.startswith(TIMES)} for row in csv.DictReader(file)]
    return {path.name: json.dumps(rows, sort_keys=True)}


# ---- comparison ------------------------------------------------------------------------------------------------------
@dataclass
class Difference:
    """The first difference between two runs: from it follow the others.

    Attributes:
        kind: "data and random", "data", "random", "step" (other values or states come out though the same goes in),
            "length" (one run makes more updates), or "end" (only the last checkpoint differs).
        where: the update and the entries of its line in the trace, or the parts of the last checkpoint.
    """

    kind: str
    where: str


def compare(whole: Run, other: Run) -> Difference | None:
    """Return the first difference of `other`, in the order in which its updates were made; None when there is none."""
    expected = whole.updates
    for line in other.lines:
        update = line["update"]
        if update not in expected:
            return Difference("length", f"update {update} is made, and it is not without")
        entries = [name for name, value in expected[update].items() if line.get(name) != value]
        if entries:
            kind = " and ".join(name for name in ("data", "random") if name in entries) or "step"
            return Difference(kind, f"update {update} is the first, in {', '.join(entries)}")
    if missing := expected.keys() - other.updates.keys():
        return Difference("length", f"update {min(missing)} is not made")
    parts = differing_parts(whole, other)
    return Difference("end", f"all updates are the same, but at the end {', '.join(parts)}") if parts else None


def differing_parts(whole: Run, other: Run) -> list[str]:
    return [part for part in whole.parts | other.parts if whole.parts.get(part) != other.parts.get(part)]


# ---- causes ----------------------------------------------------------------------------------------------------------
# For each comparison: what a difference means, and by its kind what may be behind it and what to do.
REPEATED, WORKERS, KILLED = "once more", "other workers", "killed"
MEANING = {
    REPEATED: "The same command does not give the same twice, so the resume is not to blame, and none can be exact.",
    WORKERS: "The number of loading processes (--num_workers) changes the result.",
    KILLED: "A run that is killed and resumed ends differently.",
}
DRAWS = (
    "The data set or its collate_fn draws from the global generators (random, numpy.random, torch) where no sample has "
    "a seed of its own: it declares is_random = False, or draws outside of __getitem__. Take is_random = False away, "
    "and draw in __getitem__ only."
)
REMEMBERS = (
    "The data set keeps something from one sample to the next (a counter, a generator of its own, an order that it "
    "shuffles), of which each loading process has its own, and a resumed run a fresh one. Let a sample follow from its "
    "index, and from what __getitem__ draws from random, numpy.random or torch, alone."
)
VALIDATION = (
    "Score, stopper, metrics.csv: the validation, so its data set, or eval_step and the meters of the evaluator. "
    "Schedulers, criterion, loader and what else is in stateful(): the object of that name. Random: what is drawn "
    "after the last update."
)
CAUSES = {
    REPEATED: {
        "data": "The data set draws from the system's randomness (os.urandom, secrets, a generator without a seed), or "
        "depends on the clock, or on an order that varies: of a set, of os.listdir() or glob() without sorted().",
        "random": "Something seeds a global generator anew, or the clock decides how often one is drawn from.",
        "step": "The loss or the network depends on the clock, or on the system's randomness (os.urandom, a generator "
        "without a seed). Or sums are made in an order that varies: on a GPU try --deterministic, on a CPU the "
        "environment variable OMP_NUM_THREADS=1.",
        "length": "The clock decides when to stop.",
        "end": VALIDATION,
    },
    WORKERS: {
        "data and random": DRAWS,
        "data": REMEMBERS,
        "random": DRAWS,
        "step": "The trainer, the network or the loss reads num_workers, or something that the data set counts.",
        "length": "Something that the data set counts decides when to stop.",
        "end": VALIDATION,
    },
    KILLED: {
        "data and random": DRAWS,
        "data": REMEMBERS,
        "random": "Something draws from a global generator once per process, such as at its first use after the start. "
        "Draw it in the constructor, before the random states are put back, and keep what came of it in a state_dict. "
        "Or a load_state_dict of your own does not put the random states back, or draws afterwards.",
        "step": "Something that decides the update is in no state_dict: an attribute of the trainer; a plain attribute "
        "of a network or of the loss, or a buffer with persistent=False; a generator, a schedule or an average of your "
        "own. In a module use register_buffer, or get_extra_state and set_extra_state; for the trainer, return the "
        "object that has it from stateful().",
        "length": "What decides when to stop is in no state_dict: that of the callback, say, which sets should_stop.",
        "end": VALIDATION,
    },
}


def explain(comparison: str, difference: Difference) -> str:
    """What a difference means, where it shows, and what is likely behind it."""
    causes = CAUSES[comparison]
    cause = causes.get(difference.kind) or causes[difference.kind.split(" and ")[0]]
    return "\n".join(
        textwrap.fill(text, WIDTH, subsequent_indent="  ")
        for text in (MEANING[comparison], f"Where: {difference.where}.", f"Likely: {cause}")
    )


# ---- the proof -------------------------------------------------------------------------------------------------------
def prove(runs: Runs, num_kills: int, num_workers: int) -> bool:
    """Make all runs, print what came of each, and return whether all are the same."""
    others = {}
    with told("without interruption") as note:
        whole = runs.train("whole", num_workers)
        note.append(f"{len(whole.updates)} updates")
    last = max(whole.updates)
    if last <= SAVE_EVERY:
        raise UserError(
            f"--verify_resume kills after update {SAVE_EVERY}, the first that is saved, but {EPOCHS} epochs of this "
            f"run have only {last} updates: give a smaller --batch_size, more data, or a higher --max_updates."
        )
    with told("the same once more") as note:
        others[REPEATED] = runs.train("again", num_workers)
        note.append(outcome(whole, others[REPEATED]))
    if not compare(whole, others[REPEATED]):
        other_number = 0 if num_workers else 2
        with told(f"with {other_number} loading processes, not {num_workers}") as note:
            others[WORKERS] = runs.train("workers", other_number)
            note.append(outcome(whole, others[WORKERS]))
        # If the number of loading processes changes the result, it would hide what a resume changes.
        free = not compare(whole, others[WORKERS])
        numbers = itertools.cycle([num_workers, 0, 1, 2]) if free else itertools.repeat(num_workers)
        dice = random.Random(runs.seed)
        kills = sorted(dice.randint(SAVE_EVERY + 1, last) for _ in range(num_kills))
        with told(f"killed {times(num_kills)} and resumed") as note:
            others[KILLED] = run = runs.train_and_kill("killed", kills, numbers)
            note.append(f"{outcome(whole, run)}; killed after update {', '.join(map(str, kills))}")
            note.append(f"{len(run.lines) - len(run.updates)} updates lost and made again")
    print_table(whole, others)
    differences = {comparison: compare(whole, run) for comparison, run in others.items()}
    for comparison, difference in differences.items():
        if difference:
            print(f"\n{explain(comparison, difference)}")
    if not differences.get(KILLED, True):
        alike = "" if not differences[WORKERS] else ", if the number of loading processes stays the same"
        print(f"\nThe resume is exact{alike}: killed {times(num_kills)}, the run ends with the same bits.")
    return not any(differences.values())


@contextlib.contextmanager
def told(what: str) -> Iterator[list[str]]:
    """Say what is going on, and afterwards how long it took and what was noted in the list."""
    print(f"  {what:<42}", end="", flush=True)
    started, notes = time.perf_counter(), []
    yield notes
    print(f"{time.perf_counter() - started:4.0f} s  {', '.join(notes)}", flush=True)


def times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def outcome(whole: Run, other: Run) -> str:
    return "differs" if compare(whole, other) else "same"


def print_table(whole: Run, others: dict[str, Run]) -> None:
    """Print a row for all updates and for each part of the last checkpoint, a column for each comparison."""
    rows = {"the updates": [run.updates != whole.updates for run in others.values()]}
    rows |= {part: [part in differing_parts(whole, run) for run in others.values()] for part in whole.parts}
    print(f"\n  {'':<14}" + "".join(f"{comparison:<15}" for comparison in others))
    for name, differs in rows.items():
        print(f"  {name:<14}" + "".join(f"{'differs' if differ else 'same':<15}" for differ in differs))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Leave by an exception on any signal, so that the run under way is ended and the directory removed."""

    def leave(signum: int, frame: Any) -> None:
        raise Terminated(signum)

    taken = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]  # not SIGINT, which raises
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def verify_resume(num_kills: int, seed: int, num_workers: int | str = 0, command: Sequence[str] | None = None) -> None:
    """Prove that a program's runs are the same, killed and resumed or not, and print a report; else exit with status 1.

    Args:
        num_kills: how often a run is killed, each time after an update that is drawn.
        seed: of the runs, and of the updates.
        num_workers: loading processes of the uninterrupted run, "auto" for 2; the resumed ones use other numbers too.
        command: the program and its flags; None for this one.

    Raises:
        UserError: when a flag contradicts the proof, or the run is too short for it.
        SystemExit: with status 1 when there is a difference, with that of a run which fails by itself.
    """
    command = command or [sys.executable, *shlex.split(command_line())[1:]]
    if not hasattr(signal, "SIGKILL"):
        raise UserError("--verify_resume needs the signal SIGKILL, which this system does not have.")
    for text in command:
        if (flag := text.split("=")[0]) in CONTRADICTING:
            raise UserError(f"--verify_resume makes new runs of its own, {CONTRADICTING[flag]}: leave {flag} out.")
    directory = Path(tempfile.mkdtemp(prefix="verify_resume_"))
    try:
        print(f"{EPOCHS} epochs of at most {BATCHES} updates, a checkpoint every {SAVE_EVERY} updates, --seed {seed}:")
        with interruptible():
            num_workers = 2 if num_workers == "auto" else num_workers  # "auto" could be any
            is_exact = prove(Runs(command, directory, seed), num_kills, num_workers)
        if not is_exact:
            print(f"\nThe runs, their traces and what they said are in {directory}", flush=True)
    except (KeyboardInterrupt, Terminated, UserError, BrokenPipeError):
        shutil.rmtree(directory, ignore_errors=True)
        raise
    if not is_exact:
        sys.exit(1)
    shutil.rmtree(directory, ignore_errors=True)
