"""Fixtures for tests of whole runs: small data, small runs, commands as a user gives them, and a comparison."""

import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.callback import Callback, CallbackList
from callbacks.csv_logger import CSVLogger
from extras.callbacks.checked import call_checked
from tests import fork_server
from tools.synthetic.make_carvana_like import make_carvana_like
from trainer import TrainerBase
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

ROOT = Path(__file__).resolve().parent.parent
SMALL_VANILLA = [  # 510 train, 90 val: seven updates of 64 an epoch, and one of 62
    *("--train_val_sample_rate", "600", "--batch_size", "64", "--n_epoch", "2", "--gpu_devices", "cpu"),
]
SMALL_SEG = [
    *("--train_val_sample_rate", "1", "--test_sample_rate", "4", "--val_split", "4"),  # 16 train, 4 val, 4 test
    *("--patch_size", "32", "--width", "4", "--batch_size", "5", "--n_epoch", "2"),  # updates of 5, 5, 5 and 1
    *("--num_workers", "0", "--gpu_devices", "cpu"),
]

# Runs that name code keep a key there, see extras/own_runs.py; those of the tests leave the user's home alone.
os.environ["XDG_CONFIG_HOME"] = str(ROOT / ".pytest_cache" / "config")

# A job in the background of a shell, or under nohup, ignores them, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

DIRECTORIES = {  # the marker of the tests in a directory of tests/; see `make test`
    "docs": "docs", "examples": "docs", "tools": "tools", "benchmarks": "tools", "extras": "extras", "torture": "slow",
}  # fmt: skip
CORE = {"test_plain_loop.py"}  # files in these directories that are in the core set all the same


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the directory that it is in."""
    for item in items:
        room = item.path.relative_to(ROOT / "tests").parts[0]
        if room in DIRECTORIES and item.path.name not in CORE:
            item.add_marker(DIRECTORIES[room])


CallbackList.call_one = staticmethod(call_checked)  # a callback that changes the training fails, as with --debug

torch.set_num_threads(1)  # the networks are too small for more, and several tests may run side by side


class Watched:
    """Exchanges the callbacks of a task, since TensorBoard's pictures take longer than these small runs.

    `watched_by` come after a CSVLogger; None keeps the callbacks of the task, TensorBoard included.
    """

    watched_by: Sequence[Callback] | None = None

    def build_callbacks(self) -> list[Callback]:
        if self.watched_by is None:
            return super().build_callbacks()
        return [CSVLogger(self.run_dir.path / "metrics.csv"), *self.watched_by]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def cars(tmp_path_factory) -> Path:
    """A directory like Carvana's: 6 cars with 4 views each, 96 x 64 pixels. Tests only read it."""
    directory = tmp_path_factory.mktemp("cars")
    make_carvana_like(directory, cars=6, views=4, size=(96, 64))
    return directory


@pytest.fixture(scope="session")
def small(cars) -> Callable[[type[TrainerBase]], list[str]]:
    """A function that returns the flags of a small run of a task."""
    return lambda task: [*SMALL_SEG, "--data_dir", str(cars)] if issubclass(task, TrainerSeg) else SMALL_VANILLA


def build_trainer(
    task: type[TrainerBase], argv: Sequence[str], output_dir: Path, watched_by: Sequence[Callback] | None
) -> TrainerBase:
    """Return a trainer of `task` with the callbacks of `Watched`."""
    trainer_class = type(task.__name__, (Watched, task), {"watched_by": watched_by})
    if "--resume" not in argv:
        argv = ["--output_dir", str(output_dir), *argv]
    return trainer_class(trainer_class.parse_options(list(argv)))


@pytest.fixture
def build(tmp_path, small) -> Iterator[Callable[..., TrainerBase]]:
    """A function that builds a small trainer: `build(*flags, task=TrainerVanilla, seed=0, callbacks=())`.

    With --config or --resume among the flags, nothing is added to them. For `callbacks` see `Watched`.
    """

    def build(*flags, task=TrainerVanilla, seed=0, callbacks=()) -> TrainerBase:
        flags = [str(flag) for flag in flags]
        if not {"--config", "--resume"} & set(flags):
            of_task = SMALL_VANILLA[2:] if task is TrainerVanilla and "--data_type" in flags else small(task)
            flags = [*of_task, *([] if seed is None else ["--seed", str(seed)]), *flags]
        return build_trainer(task, flags, tmp_path / "runs", callbacks)

    yield build
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)  # pytest would keep the checkpoints of hundreds of runs


@pytest.fixture
def train(build) -> Callable[..., TrainerBase]:
    """A function that builds a small trainer, as `build` does, trains, and returns it."""

    def train(*flags, **settings) -> TrainerBase:
        trainer = build(*flags, **settings)
        trainer.train()
        return trainer

    return train


@pytest.fixture(scope="session")
def vanilla_run(tmp_path_factory) -> Path:
    """The directory of a finished run of `TrainerVanilla`. Tests only read it."""
    argv = [*SMALL_VANILLA, "--seed", "0"]
    trainer = build_trainer(TrainerVanilla, argv, tmp_path_factory.mktemp("vanilla"), watched_by=None)
    trainer.train()
    return trainer.run_dir.path


@pytest.fixture(scope="session")
def seg_run(tmp_path_factory, small) -> Path:
    """The directory of a finished run of `TrainerSeg`. Tests only read it."""
    argv = [*small(TrainerSeg), "--seed", "0"]
    trainer = build_trainer(TrainerSeg, argv, tmp_path_factory.mktemp("seg"), watched_by=None)
    trainer.train()
    return trainer.run_dir.path


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs a program in the root as a user does: `command("trainer_vanilla.py", "--debug")`.

    The process is forked off one that has imported torch, which saves seconds. See `fresh_python`.
    """

    def command(*arguments, cwd=ROOT, timeout=180, **environment) -> subprocess.CompletedProcess:
        return fork_server.run(arguments, cwd, os.environ | {"OMP_NUM_THREADS": "1"} | environment, timeout)

    return command


@pytest.fixture(scope="session")
def fresh_python() -> Callable[..., subprocess.CompletedProcess]:
    """A function that does as `command` in a new interpreter, where the start or the imports are what is tested."""

    def fresh_python(*arguments, cwd=ROOT, timeout=180, **environment) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    return fresh_python


@pytest.fixture(scope="session")
def differences() -> Callable[..., list[str]]:
    """A function that names the places where two nested states differ, bit for bit; NaN equals NaN.

    The name of a run is passed over: two runs never share it.
    """

    def differences(a: Any, b: Any, ignore: Sequence[str] = (), place: str = "") -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            ignore = [*ignore, "run_name"]
            found = [f"{place}/{key} is in one only" for key in a.keys() ^ b.keys() if key not in ignore]
            for key in a.keys() & b.keys() - set(ignore):
                found += differences(a[key], b[key], ignore, f"{place}/{key}")
            return found
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            return [found for i in range(len(a)) for found in differences(a[i], b[i], ignore, f"{place}/{i}")]
        if torch.is_tensor(a) and torch.is_tensor(b):
            same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        else:
            both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
            same = type(a) is type(b) and (a == b or both_nan)
        return [] if same else [f"{place}: {str(a)[:50]} and {str(b)[:50]}"]

    return differences


@pytest.fixture(scope="session")
def weights() -> Callable[[TrainerBase], dict[str, torch.Tensor]]:
    """A function that copies the weights of a trainer's only network."""
    return lambda trainer: {
        name: value.detach().clone() for name, value in trainer.networks["model"].state_dict().items()
    }


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """A function that returns a digest of every file below a directory, to show that nothing was touched."""
    return lambda directory: {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*") if path.is_file()
    }  # fmt: skip
