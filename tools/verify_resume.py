"""Check that a run which is killed and resumed ends with the same bits as one that is not interrupted.

    python -m tools.verify_resume trainer_vanilla.py --seed 0
    python -m tools.verify_resume --kills 5 trainer_vanilla.py

The task trains briefly in fresh processes: without interruption, the same again, with another number of workers, and
finally killed with SIGKILL and resumed. A trace of all updates (see tools/trace.py) and the last checkpoint are
compared. The first difference shows where to look.
"""

import contextlib
import csv
import itertools
import json
import random
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
from engine.options.parser import OptionParser, number, run_main
from engine.runs.signals import SIGNALS, Terminated
from tools.digest import NOT_THE_RUN, digests
from utils.errors import PeerError, UserError

EPOCHS, BATCHES, SAVE_EVERY = 3, 8, 3
FLAGS = {
    "n_epoch": EPOCHS, "limit_batches": BATCHES, "save_every_updates": SAVE_EVERY, "val_every": 1, "debug": False,
    "requeue": False,
}  # fmt: skip
CONTRADICTING = {  # options that its runs cannot take, and why
    "--resume": "which begin at the beginning", "--max_time": "which go on to their end",
}  # fmt: skip
TIMES = ("time/", "samples_per_second")  # columns of metrics.csv that differ between any two runs
NUM_LAST_LINES = 15  # of the output of a run that failed
WIDTH = 100  # of the report


# ---- runs ------------------------------------------------------------------------------------------------------------
@dataclass
class Run:
    """The result of a run: everything that is compared.

    Attributes:
        lines: of the trace, in the order of writing.
        parts: a digest of each part of the last checkpoint, and of metrics.csv.
    """

    lines: list[dict[str, Any]]
    parts: dict[str, str]

    @property
    def updates(self) -> dict[int, dict[str, Any]]:
        """The last line of each update."""
        return {line["update"]: line for line in self.lines}


class Runs:
    """Runs a task and reads the results.

    Args:
        program: the task's.
        options: of the task; those of the check win.
        directory: where everything goes.
        seed: of all runs.
    """

    def __init__(self, program: str, options: Sequence[str], directory: Path, seed: int):
        self.program = program
        self.options = list(options)
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
            status = self.start(name, next(num_workers), *resume, kill_at=update)
            if status == 0:
                break  # with a fault, the end may come before the last kill
            # Of several processes one is killed, and their launcher ends with the status for that.
            if update is None or status not in (-signal.SIGKILL, PeerError.status):
                self.stop(name, status)
        return self.read(name)

    def start(self, name: str, num_workers: int, *flags: str, kill_at: int | None = None) -> int:
        """Run the program to its end and return its status."""
        tool = ["tools.trace", f"--file={self.trace(name)}"]
        if kill_at:
            tool = ["tools.kill", f"--at={kill_at}", f"--trace={self.trace(name)}"]
        own = FLAGS | {"seed": self.seed, "num_workers": num_workers, "output_dir": self.directory / name}
        own_flags = [f"--{flag}={value}" for flag, value in own.items()]
        command = [sys.executable, "-m", *tool, self.program, *self.options, *own_flags, *flags]
        with open(self.output(name), "ab") as output:  # no pipe: loading processes of a killed run would keep it open
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                return process.wait()
            finally:
                process.kill()  # when this process is interrupted; else there is nothing left to kill
                process.wait()

    def stop(self, name: str, status: int) -> None:
        """Exit with the status of a run that failed by itself, after the last lines of its output."""
        lines = self.output(name).read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LAST_LINES:]
        how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        print(f"\nverify_resume: a run ended {how}, so the check ends. Its last lines:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
        print(f"Everything is in {self.directory}", file=sys.stderr)
        sys.exit(status if status > 0 else 1)

    def read(self, name: str) -> Run:
        """Read the results of a run that has ended."""
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
    """Read the lines of a trace, without one that a kill has truncated."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def read_metrics(path: Path) -> dict[str, str]:
    """Read metrics.csv without the times, as one more part; nothing when the task does not write it."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{n: text for n, text in row.items() if not n.startswith(TIMES)} for row in csv.DictReader(file)]
    return {path.name: json.dumps(rows, sort_keys=True)}


# ---- comparison ------------------------------------------------------------------------------------------------------
@dataclass
class Difference:
    """The first difference between two runs; the others follow from it.

    Attributes:
        kind: "data and random", "data", "random", "step" (other values or states from the same data), "length" (one
            run makes more updates), or "end" (only the last checkpoint differs).
        where: the update and the entries of its line in the trace, or the parts of the last checkpoint.
    """

    kind: str
    where: str


def compare(whole: Run, other: Run) -> Difference | None:
    """Return the first difference of `other`, in the order of its updates; None when there is none."""
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
# For each comparison: the meaning of a difference, and by its kind the likely cause and remedy.
REPEATED, WORKERS, KILLED = "again", "other workers", "killed"
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
        "random": "Something seeds a global generator again, or the clock decides how often one is drawn from.",
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
    """Describe a difference: its meaning, its place and its likely cause."""
    causes = CAUSES[comparison]
    cause = causes.get(difference.kind) or causes[difference.kind.split(" and ")[0]]
    return "\n".join(
        textwrap.fill(text, WIDTH, subsequent_indent="  ")
        for text in (MEANING[comparison], f"Where: {difference.where}.", f"Likely: {cause}")
    )


# ---- the check -------------------------------------------------------------------------------------------------------
def prove(runs: Runs, num_kills: int, num_workers: int) -> bool:
    """Make all runs, print the result of each, and return whether all are the same."""
    others = {}
    with reported("without interruption") as note:
        whole = runs.train("whole", num_workers)
        note.append(f"{len(whole.updates)} updates")
    last = max(whole.updates)
    if last <= SAVE_EVERY:
        raise UserError(
            f"verify_resume kills after update {SAVE_EVERY}, the first that is saved, but {EPOCHS} epochs of this "
            f"run have only {last} updates: give a smaller --batch_size, more data, or a higher --max_updates."
        )
    with reported("the same again") as note:
        others[REPEATED] = runs.train("again", num_workers)
        note.append(outcome(whole, others[REPEATED]))
    if not compare(whole, others[REPEATED]):
        other_number = 0 if num_workers else 2
        with reported(f"with {other_number} loading processes, not {num_workers}") as note:
            others[WORKERS] = runs.train("workers", other_number)
            note.append(outcome(whole, others[WORKERS]))
        # A difference by the number of loading processes would hide one by the resume.
        free = not compare(whole, others[WORKERS])
        numbers = itertools.cycle([num_workers, 0, 1, 2]) if free else itertools.repeat(num_workers)
        dice = random.Random(runs.seed)
        kills = sorted(dice.randint(SAVE_EVERY + 1, last) for _ in range(num_kills))
        with reported(f"killed {times(num_kills)} and resumed") as note:
            others[KILLED] = run = runs.train_and_kill("killed", kills, numbers)
            note.append(f"{outcome(whole, run)}; killed after update {', '.join(map(str, kills))}")
            note.append(f"{len(run.lines) - len(run.updates)} updates lost and repeated")
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
def reported(name: str) -> Iterator[list[str]]:
    """Print the name of a step, and after it the seconds it took and the notes added to the list."""
    print(f"  {name:<42}", end="", flush=True)
    started = time.perf_counter()
    notes: list[str] = []
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
    """Turn any signal into an exception, so that the run under way is ended and the directory removed."""

    def leave(signum: int, frame: Any) -> None:
        raise Terminated(signum)

    taken = [signum for signum in SIGNALS if signal.getsignal(signum) is signal.SIG_DFL]  # not SIGINT, which raises
    for signum in taken:
        signal.signal(signum, leave)
    try:
        yield
    finally:
        for signum in taken:
            signal.signal(signum, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> None:
    from tools.task import read_command

    parser = OptionParser(prog="python -m tools.verify_resume", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=number(int, low=1), default=2, metavar="N", help="number of kills")
    own, task, options = read_command(parser, argv)
    for text in options:
        if (flag := text.split("=")[0]) in CONTRADICTING:
            raise UserError(f"verify_resume makes runs of its own, {CONTRADICTING[flag]}: leave {flag} out.")
    opt = task.parse_options(options)
    num_workers = 2 if opt.num_workers == "auto" else opt.num_workers  # "auto" could be any number
    verify_resume(own.program, options, own.kills, opt.seed, num_workers)


def verify_resume(program: str, options: Sequence[str], num_kills: int, seed: int, num_workers: int = 0) -> None:
    """Check that a task's runs are the same, killed and resumed or not, and print a report.

    Args:
        program: the task's.
        options: of the task.
        num_kills: number of kills, each after an update that is drawn.
        seed: of the runs, and of the updates.
        num_workers: workers of the uninterrupted run; the resumed ones use other numbers too.

    Raises:
        UserError: the run is too short for a check.
        SystemExit: with status 1 when there is a difference, with that of a run which fails by itself.
    """
    if not hasattr(signal, "SIGKILL"):
        raise UserError("verify_resume needs the signal SIGKILL, which this system does not have.")
    directory = Path(tempfile.mkdtemp(prefix="verify_resume_"))
    try:
        print(f"{EPOCHS} epochs of at most {BATCHES} updates, a checkpoint every {SAVE_EVERY} updates, --seed {seed}:")
        with interruptible():
            is_exact = prove(Runs(program, options, directory, seed), num_kills, num_workers)
        if not is_exact:
            print(f"\nThe runs, their traces and their output are in {directory}", flush=True)
    except (KeyboardInterrupt, Terminated, UserError, BrokenPipeError):
        shutil.rmtree(directory, ignore_errors=True)
        raise
    if not is_exact:
        sys.exit(1)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    run_main(main)
