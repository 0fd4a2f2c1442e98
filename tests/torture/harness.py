"""The common parts of the torture scripts: small runs in separate processes, their comparison, and a row of figures."""

import argparse
import contextlib
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.checkpoints.file import load_checkpoint, verify
from tests import fork_server
from tools.digest import NOT_THE_RUN, digests
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
# Columns of metrics.csv that may differ.
TIMES = ("time/train", "time/data_wait", "time/save", "time/val", "samples_per_second")
TIMEOUT = 180  # seconds that a run may take; then it hangs
STARTED = "Device: "  # what a trainer logs last before it trains
OF_A_LAUNCH = {*NOT_THE_RUN, "run"}  # parts of a checkpoint that differ between two runs which compute the same


# ---- figures ---------------------------------------------------------------------------------------------------------
@dataclass
class Row:
    """The figures of one claim.

    Attributes:
        tried: how often it was tried.
        passed: how often it held.
        failures: what did not hold, one line each.
        note: what exactly was tried.
        seconds: how long that took.
    """

    tried: int = 0
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""
    seconds: float = 0.0
    _guard: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, what: str, faults: Sequence[str]) -> None:
        """Count one try, which passed if it has no faults."""
        with self._guard:
            self.tried += 1
            self.passed += not faults
            self.failures += [f"{what}: {fault}" for fault in faults]
            if faults:
                print(f"  FAILED {what}: {'; '.join(faults)}", file=sys.stderr, flush=True)

    @property
    def is_good(self) -> bool:
        return self.tried > 0 and self.passed == self.tried and not self.failures


def main(run: Callable[..., Row], count: int, description: str) -> None:
    """The command line of one script."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=count, metavar="N", help=f"how often (default: {count})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of what is drawn (default: 0)")
    arguments = parser.parse_args()
    row = timed(run, arguments.count, arguments.seed)
    print(f"{row.passed} of {row.tried} passed in {row.seconds:.0f} s. {row.note}")
    sys.exit(0 if row.is_good else 1)


def timed(run: Callable[..., Row], count: int, seed: int) -> Row:
    """Return run(count, seed) with its duration."""
    began = time.monotonic()
    row = run(count, seed)
    row.seconds = time.monotonic() - began
    return row


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that is removed in the end."""
    path = Path(tempfile.mkdtemp(prefix="torture_"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def side_by_side(function: Callable[[Any], Any], inputs: Sequence[Any], jobs: int = 2) -> list[Any]:
    """Return [function(input) ...], so many at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(function, inputs))


# ---- small runs ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """A small run: the arguments of Python, without where the run goes.

    Attributes:
        name: for messages.
        program: the program.
        flags: what the run is.
        data: where its data is; what is drawn there is always the same.
    """

    name: str
    program: tuple[str, ...]
    flags: tuple[str, ...]
    data: tuple[str, ...] = field(default=(), compare=False)

    def command(self, *flags: Any) -> list[str]:
        return [sys.executable, *self.program, *self.data, *self.flags, *map(str, flags)]

    def under(self, *tool: Any) -> "Job":
        """The same run, by a tool that is given its task: `job.under("tools.kill", "--at", 7)`."""
        prefix, program = (), self.program
        if "tests.torture.switched_off" in program:
            prefix, program = program[:3], program[3:]
        task = program[0]
        if task == "-m":
            task = f"{program[1]}:Trainer{program[2].capitalize()}"
        return replace(self, program=(*prefix, "-m", *map(str, tool), task))

    def resume(self, run_dir: Path, *flags: Any) -> list[str]:
        return [sys.executable, *self.program, "--resume", str(run_dir), *map(str, flags)]


VANILLA = ("--train_val_sample_rate", "1200", "--seed", "1", "--gpu_devices", "cpu", "--log_every", "3")
SEG = (
    *("--train_val_sample_rate", "1", "--test_sample_rate", "4", "--val_split", "4", "--patch_size", "32"),
    *("--width", "4", "--seed", "2", "--gpu_devices", "cpu", "--log_every", "1", "--augment"),
)
DROPOUT = ("-m", "tests.torture.tasks", "dropout")
SHORT = "TORTURE_SHORT"  # a variable of the environment, with which the runs are half as long


def epochs(number: int) -> str:
    return str(number // 2 if SHORT in os.environ else number)


def vanilla_job(name: str = "vanilla", *flags: str, program: tuple[str, ...] = ("trainer_vanilla.py",)) -> Job:
    """1,020 samples in 64 updates an epoch, the last one of 12 instead of 16."""
    own = ("--batch_size", "16", "--n_epoch", epochs(4), "--save_every_updates", "5")
    return Job(name, program, (*VANILLA, *own, *flags))


def seg_job(cars: Path, name: str = "segmentation", *flags: str) -> Job:
    """32 images in 7 updates an epoch: six of 5, and one of 2. UNet has batch normalization."""
    own = ("--batch_size", "5", "--n_epoch", epochs(8), "--save_every_updates", "2")
    return Job(name, ("trainer_seg_on_carvana.py",), (*SEG, *own, *flags), ("--data_dir", str(cars)))


def make_cars(directory: Path) -> Path:
    """Draw what the segmentation trains on: 10 cars with 4 views each, 96 x 64 pixels."""
    from tools.synthetic.make_carvana_like import make_carvana_like

    make_carvana_like(directory, cars=10, views=4, size=(96, 64))
    return directory


def start(words: list[str], variables: dict[str, str]) -> tuple[Path, Any]:
    """Start a command; return the file that its standard error goes to, and the process.

    A command of this Python is forked off a process that has imported torch.
    """
    if words[0] == sys.executable:
        program = fork_server.Program(words[1:], ROOT, variables, new_session=True)
        return program.paths[1], program
    file = Path(tempfile.mkstemp(prefix="torture_")[1])  # no pipe, which a loading process may keep open
    with open(file, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            words, cwd=ROOT, env=variables, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
    return file, process


class Life:
    """One process of a run, from its start to its end.

    Args:
        command: what to run.
        run_dir: the directory of the run; None when it will be made in `output_dir`.
        output_dir: the parent of the run's directory.
        environment: added to that of this process.
    """

    def __init__(self, command: Sequence[str], output_dir: Path, run_dir: Path | None = None, **environment: str):
        self.output_dir, self._run_dir = output_dir, run_dir
        self.starts_before = self.log().count(STARTED)
        self.resumes_before = len(resumed_updates(self.log()))
        self.began = time.monotonic()
        words = [str(word) for word in command]
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self.errors, self.process = start(words, variables)

    @property
    def run_dir(self) -> Path | None:
        if self._run_dir is None:
            self._run_dir = next((path for path in sorted(self.output_dir.glob("*")) if path.is_dir()), None)
        return self._run_dir

    def log(self) -> str:
        """The log of the run so far; "" without one."""
        logs = list(self.run_dir.glob("*_log.txt")) if self.run_dir else []
        return logs[0].read_text(encoding="utf-8", errors="replace") if logs else ""

    def wait_for(self, condition: Callable[[], Any], seconds: float = TIMEOUT, every: float = 0.02) -> bool:
        """Wait until a condition holds; False when the process ended before, or the time was over."""
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(every)
        return True

    def wait_for_start(self) -> bool:
        """Wait until the process trains, or goes to; False when it ended before."""
        return self.wait_for(lambda: self.log().count(STARTED) > self.starts_before)

    def wait_for_save(self, seconds: float) -> bool:
        """Wait until a checkpoint is being written; False when the process ended, or the time was over."""
        run_dir = self.run_dir
        return run_dir is not None and self.wait_for(lambda: any(run_dir.glob(".*ckpt*.tmp")), seconds, every=0.0002)

    def send(self, signum: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signum)

    def end(self, seconds: float = TIMEOUT) -> int:
        """Wait for the end, and return the exit status; -9 also for what hung and was killed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return self.process.returncode

    def kill(self) -> bool:
        """Kill with SIGKILL; False when it had ended by itself."""
        self.send(signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def stderr(self) -> str:
        return self.errors.read_text(encoding="utf-8", errors="replace")

    def told(self) -> str:
        """The last lines of what the process wrote to stderr, for a message."""
        return " / ".join(self.stderr().strip().splitlines()[-3:])


# ---- what is left of a run -------------------------------------------------------------------------------------------
def checkpoints(run_dir: Path) -> list[Path]:
    """The files with the name of a checkpoint."""
    return sorted(path for path in run_dir.glob("*_ckpt.pth") if not path.name.startswith("."))


def newest_update(run_dir: Path | None) -> tuple[int | None, list[str]]:
    """The highest update in a checkpoint that can be continued from, None without one; and faults of the others."""
    newest, faults = None, []
    for path in checkpoints(run_dir) if run_dir else []:
        try:
            verify(path)
            state = load_checkpoint(path)
        except UserError as error:
            faults.append(f"{path.name} was left damaged: {error}")
            continue
        if state["progress"]["is_exact"]:
            newest = max(newest or 0, state["progress"]["update"])
    return newest, faults


def resumed_updates(log: str) -> list[int]:
    """After which update each process of a run went on, from its log."""
    return [int(number.replace(",", "")) for number in re.findall(r"Resumed .* after update ([0-9,]+)", log)]


@dataclass(frozen=True)
class End:
    """The compared results of a finished run: none may depend on the number of interruptions."""

    last: dict[str, str]  # the digest of each part of the newest checkpoint
    best: dict[str, str]
    rows: list[dict[str, str]]  # of metrics.csv
    curves: dict[str, list[tuple[int, float]]]  # of TensorBoard: name, then (update, value)


def digests_of(run_dir: Path, kind: str) -> dict[str, str]:
    """The digest of each part of a checkpoint, without those that say how the process was started."""
    (path,) = run_dir.glob(f"*_{kind}_ckpt.pth")
    return {name: text for name, text in digests(load_checkpoint(path)).items() if name not in OF_A_LAUNCH}


def end_of(run_dir: Path) -> End:
    """Read a finished run."""
    with open(run_dir / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [{name: row[name] for name in row if name not in TIMES} for row in csv.DictReader(file)]
    return End(digests_of(run_dir, "last"), digests_of(run_dir, "best"), rows, curves_of(run_dir))


def curves_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard shows them."""
    import logging

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each event that a resume struck out
    events = EventAccumulator(str(run_dir / "summary"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def differences(whole: End, resumed: End) -> list[str]:
    """Name what is not the same in two finished runs."""
    found = []
    for kind in ("last", "best"):
        a, b = getattr(whole, kind), getattr(resumed, kind)
        parts = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        found += [f"the {kind} checkpoint differs in {', '.join(parts)}"] if parts else []
    if whole.rows != resumed.rows:
        found.append(f"metrics.csv differs: epochs {[row['epoch'] for row in resumed.rows]}")
    for tag in sorted(whole.curves.keys() | resumed.curves.keys()):
        a, b = whole.curves.get(tag, []), resumed.curves.get(tag, [])
        steps = {step for step, _ in a} ^ {step for step, _ in b}
        if len({step for step, _ in b}) < len(b):
            found.append(f"TensorBoard's {tag} has a step twice")
        elif a != b:
            found.append(f"TensorBoard's {tag} differs, at {sorted(steps)[:5]} of {len(steps)} steps")
    return found


def finish(job: Job, run_dir: Path, whole: End, *flags: Any) -> list[str]:
    """Resume a run to its end; return what is not as in one that was never interrupted."""
    life = Life(job.resume(run_dir, *flags), run_dir.parent, run_dir)
    status = life.end()
    return [f"resumed, it ended with {status}: {life.told()}"] if status else differences(whole, end_of(run_dir))


WHOLE: dict[Job, tuple[End, float]] = {}
GUARDS: dict[Job, threading.Lock] = {}


def train_whole(job: Job) -> tuple[End, float]:
    """Train without interruption, once for each job; return the end, and for how many seconds it trained."""
    with GUARDS.setdefault(job, threading.Lock()):
        if job not in WHOLE:
            with scratch() as output_dir:
                life = Life(job.command("--output_dir", output_dir), output_dir)
                life.wait_for_start()
                started = time.monotonic()
                if life.end() != 0:
                    raise RuntimeError(f"{job.name} does not even run without interruption: {life.told()}")
                WHOLE[job] = end_of(life.run_dir), time.monotonic() - started
            names = {tag.split("/")[0] for tag in WHOLE[job][0].curves}
            assert names >= {"train", "val", "best"}, "there is too little to compare"
    return WHOLE[job]


def draw(seed: int, *names: Any) -> random.Random:
    """A generator for one try, whatever order the tries run in."""
    return random.Random(f"{seed} {names}")
