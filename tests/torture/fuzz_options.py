"""Malformed command lines and option files: each ends with status 2 and a line that names what is wrong.

python -m tests.torture.fuzz_options

They are given to all programs, before any training, and nothing may be left behind. A sample is also tried in processes
of their own.
"""

import contextlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

import benchmarks.accuracy
import tools.configcmp
import tools.plot_log
import tools.synthetic.make_carvana_like
import tools.synthetic.make_sample
from data.FashionMNIST import SAMPLE_DIR
from engine.checkpoints.file import load_checkpoint, save_checkpoint
from engine.options.parser import run_main
from eval import EvaluatorBase
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from extras.gan.eval_gan import EvaluatorGAN
from extras.gan.trainer_gan import TrainerGAN
from tests.torture.malformed import BASE, Example, any_wrong_example
from trainer import TrainerBase
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

ROOT = Path(__file__).resolve().parent.parent.parent
WHAT = "malformed command lines and option files: exit status 2, no traceback, nothing left behind"
COUNT, QUICK = 2000, 150
NOTE = "drawn by hypothesis, all different, for eleven programs; 20 of them in processes of their own, too"
SECONDS = 20  # what an example may take at most; most take milliseconds
PROGRAMS: dict[str, Callable[[], int | None]] = {
    "trainer_vanilla": TrainerVanilla.main,
    "trainer_seg_on_carvana": TrainerSeg.main,
    "trainer_gan": TrainerGAN.main,
    "eval_vanilla": EvaluatorVanilla.main,
    "eval_seg_on_carvana": EvaluatorSeg.main,
    "eval_gan": EvaluatorGAN.main,
    "configcmp": tools.configcmp.main,
    "make_carvana_like": tools.synthetic.make_carvana_like.main,
    "make_sample": tools.synthetic.make_sample.main,
    "plot_log": lambda: run_main(tools.plot_log.main),
    "accuracy": lambda: run_main(benchmarks.accuracy.main),
}
MODULES = {"configcmp": "utils", "make_carvana_like": "tools.synthetic", "make_sample": "tools.synthetic",
           "plot_log": "tools", "accuracy": "benchmarks"}  # fmt: skip


class NotRefusedError(Exception):
    """A program began with its work."""


class HangsError(BaseException):
    """A program takes too long. No OSError, as TimeoutError is, and no Exception, which a program might catch."""


def begin(*arguments, **keywords):
    raise NotRefusedError("the work began")


def run_quietly(program: str, *flags: str) -> None:
    with mock.patch.object(sys, "argv", [f"{program}.py", *BASE[program], *flags]):
        PROGRAMS[program]()


def scenery(directory: Path) -> None:
    """Make the places that the command lines of `fuzz_options` name: two small runs, and what is no run."""
    tools.synthetic.make_carvana_like.make_carvana_like(directory / "cars", cars=6, views=4, size=(64, 48))
    logging.disable(logging.INFO)
    with contextlib.chdir(directory), contextlib.redirect_stdout(io.StringIO()):
        run_quietly("trainer_vanilla", "--debug", "--seed", "0")
        run_quietly("trainer_seg_on_carvana", "--debug", "--seed", "0")
    for name, file in (("Vanilla", "vanilla.pth"), ("UNet", "seg.pth")):
        shutil.copy(next((directory / "runs").glob(f"*/{name}_best_ckpt.pth")), directory / file)
    with contextlib.chdir(directory), contextlib.redirect_stdout(io.StringIO()):
        run_quietly("trainer_gan", "--debug", "--seed", "0")  # the judge is vanilla.pth
    logging.disable(logging.NOTSET)
    shutil.copy(next((directory / "runs").glob("*/GAN_best_ckpt.pth")), directory / "gan.pth")
    shutil.copytree(next((directory / "runs").glob("*/Vanilla_best_ckpt.pth")).parent, directory / "curves")
    shutil.rmtree(directory / "runs")
    state = load_checkpoint(directory / "vanilla.pth")
    odd = {"lr": [1, {"a": "--debug"}], "batch_size": {"a": 1}, "output_dir": "\0", "seed": "nan", 5: 1, "../x": None}
    save_checkpoint({**state, "options": odd}, directory / "odd.pth")
    torch.save({"weight": torch.zeros(2)}, directory / "bare.pth")
    (directory / "rubbish.pth").write_bytes(b"these are not weights\n\x00\xff")
    (directory / "taken").write_text("precious")
    (directory / "good.json").write_text('{"seed": 1}')
    (directory / "empty").mkdir()
    (directory / "loop").symlink_to("loop")
    os.mkfifo(directory / "fifo")
    shutil.copytree(SAMPLE_DIR, directory / "sample")


def contents(directory: Path) -> set[tuple[str, int]]:
    return {(entry.path, entry.stat(follow_symlinks=False).st_mtime_ns) for entry in walk(directory)}


def walk(directory: Path | str) -> Iterator[os.DirEntry]:
    for entry in os.scandir(directory):
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(number, frame):
        raise HangsError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_here(example: Example) -> tuple[int | None, str]:
    """Run a program in this process; return its exit status and what it wrote on standard error."""
    argv, said = [f"{example.program}.py", *example.argv], io.StringIO()
    with (
        mock.patch.object(sys, "argv", argv), mock.patch.object(TrainerBase, "train", begin),
        mock.patch.object(EvaluatorBase, "evaluate", begin), contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()), time_limit(SECONDS),
    ):  # fmt: skip
        try:
            status = PROGRAMS[example.program]()
        except SystemExit as end:
            status = end.code
    return status, said.getvalue()


def run_process(example: Example) -> tuple[int | None, str]:
    """The same in a process of its own, as a user starts it."""
    place = MODULES.get(example.program)
    start = [str(ROOT / f"{example.program}.py")] if place is None else ["-m", f"{place}.{example.program}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, *example.argv]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stderr.decode(errors="replace")


def complaint(example: Example, run: Callable[[Example], tuple[int | None, str]] = run_here) -> str | None:
    """Run a wrong example in the present directory, a scenery; return what is wrong with how it ends, if anything."""
    before = contents(Path.cwd())
    for name, content in example.files:
        Path(name).write_bytes(content)
    try:
        status, said = run(example)
    except NotRefusedError as error:
        return f"{error}"
    except (Exception, HangsError) as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        for name, _ in example.files:
            Path(name).unlink()
        made = sorted(contents(Path.cwd()) - before)
        for path, _ in made:
            shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else Path(path).unlink(missing_ok=True)
    num_lines = said.count("\n")
    if status != 2:
        return f"status {status}: {said[-300:]}"
    if made:
        return f"left behind: {made[0]}"
    if not 1 <= num_lines <= 3 or len(said) > 3000 or "Traceback" in said:
        return f"{num_lines} lines, {len(said)} characters: {said[-300:]!r}"
    if not all(letter.isprintable() for line in said.splitlines() for letter in line if letter != "\ufffd"):
        return f"letters that cannot be printed: {said!r}"
    names = (example.program, f"python -m {MODULES.get(example.program)}.{example.program}")
    if not said.removeprefix("usage: ").startswith(names):
        return f"it does not begin with the name of the program: {said}"
    if example.names and not any(name in said for name in example.names):
        return f"it names none of {example.names}: {said}"
    return None


def can_be_typed(example: Example) -> bool:
    """Tell whether the operating system takes the command line: no NUL, no lone surrogate."""
    try:
        return all("\0" not in text for text in example.argv if os.fsencode(text) or not text)
    except UnicodeEncodeError:
        return False


def attempt(count: int, first_seed: int = 0, num_processes: int = 20) -> tuple[int, list[str]]:
    """Try `count` different wrong examples here, and `num_processes` of them in processes of their own, too.

    Args:
        count: how many.
        first_seed: what is drawn is a function of it.
        num_processes: how many of them are also given to the program as a user starts it.

    Returns:
        The number tried, and a text for each that did not end as it must.
    """
    tried: set[tuple] = set()
    in_processes: list[Example] = []
    failures: list[str] = []

    @seed(first_seed)
    @settings(
        max_examples=4 * count, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    @given(any_wrong_example())
    def try_one(example: Example) -> None:
        fault = (example.program, example.fault, example.files)  # what surrounds it makes no other example
        if fault in tried or len(tried) == count:
            return
        tried.add(fault)
        wrong = complaint(example)
        is_due = len(in_processes) < len(tried) * num_processes // count
        if wrong is None and is_due and can_be_typed(example):
            in_processes.append(example)
            wrong = complaint(example, run_process)
        if wrong is not None:
            failures.append(f"{' '.join((example.program, *example.fault))!r:.300}: {wrong}")

    with tempfile.TemporaryDirectory() as directory:
        scenery(Path(directory))
        with contextlib.chdir(directory):
            try_one()
    return len(tried), failures


def run(count: int = COUNT, seed: int = 0):
    """Try `count` examples; return the row of figures, a `tests.torture.harness.Row`."""
    from tests.torture.harness import Row

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tried, failures = attempt(count, seed)
    torch.set_num_threads(num_threads)
    return Row(tried=tried, passed=tried - len(failures), failures=failures, note=NOTE)


if __name__ == "__main__":
    from tests.torture import harness

    harness.main(run, COUNT, WHAT)
