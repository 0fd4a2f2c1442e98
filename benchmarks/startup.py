"""How long from the command to the first update, to --help, and to the error about a wrong flag?

    python -m benchmarks.startup --data_dir ./Dataset
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, Benchmark, Case, Column, Mark, main
from engine.options.parser import OptionParser, file_path
from utils.errors import UserError

ABOUT = """
From the start of the Python process, with the files already in the system's cache. **first update** is
`python -m tools.kill --at 1 trainer_vanilla.py` on the full FashionMNIST, which ends itself right after its first
update; **torch and the data** is a process that imports torch, unpacks the same four files into tensors, and ends
itself the same way. **help** is `trainer_vanilla.py --help`, **wrong flag** is `trainer_vanilla.py --lrr 1`, **import
torch** is `python -c "import torch"`; of these three, the time of `python -c pass` is subtracted. Each run starts the
program twice, and the second start counts.
"""
BARE = """
import gzip, os, signal, sys
import torch
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        opened = gzip.open if file.read(2) == b"\\x1f\\x8b" else open
    with opened(path, "rb") as file:
        torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
os.kill(os.getpid(), signal.SIGKILL)
"""


def second_start(command: list[str], status: int) -> dict[str, float]:
    """Start a program twice and return the seconds of the second one."""
    for _ in range(2):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode != status:
            raise UserError(f"it ended with status {done.returncode}, not {status}: {done.stderr.strip()[-200:]}")
    return {"seconds": seconds}


def data_of(opt: argparse.Namespace) -> tuple[list[str], list[Path]]:
    """The flags that name the data, and its files: the full set or, with --quick, the sample."""
    from data.FashionMNIST import SAMPLE_DIR, find_files

    places = [SAMPLE_DIR] if opt.quick else [Path(opt.data_dir), Path(opt.data_dir, "FashionMNIST", "raw")]
    files = next((list(found.values()) for place in places if len(found := find_files(place.resolve())) == 4), None)
    if files is None:
        raise UserError(f"FashionMNIST is not in {opt.data_dir}: put its four files there, and name it by --data_dir.")
    full = ["--data_type=FashionMNIST", f"--data_dir={Path(opt.data_dir).resolve()}"]
    return ["--data_type=FashionMNISTSample"] if opt.quick else full, files


def first_update(opt: argparse.Namespace) -> dict[str, float]:
    """Until the first update of the trainer is made."""
    with tempfile.TemporaryDirectory() as directory:
        own = [f"--output_dir={directory}", "--seed=0", "--gpu_devices=cpu"]
        kill = ["-m", "tools.kill", "--at=1"]
        return second_start([*kill, "trainer_vanilla.py", *data_of(opt)[0], *own], status=-9)


def torch_and_data(opt: argparse.Namespace) -> dict[str, float]:
    """Until torch is imported and the four files are in memory."""
    return second_start(["-c", BARE, *map(str, data_of(opt)[1])], status=-9)


def beyond_python(command: list[str], status: int) -> dict[str, float]:
    """Return the seconds of the second start, without those of a bare Python."""
    bare = second_start(["-c", "pass"], status=0)["seconds"]
    return {"seconds": second_start(command, status)["seconds"] - bare}


def import_torch(opt: argparse.Namespace) -> dict[str, float]:
    """Import torch alone."""
    return beyond_python(["-c", "import torch"], status=0)


def show_help(opt: argparse.Namespace) -> dict[str, float]:
    """Print the help."""
    return beyond_python(["trainer_vanilla.py", "--help"], status=0)


def wrong_flag(opt: argparse.Namespace) -> dict[str, float]:
    """Give a flag that does not exist."""
    return beyond_python(["trainer_vanilla.py", "--lrr", "1"], status=2)


def add_options(parser: OptionParser) -> None:
    parser.add_argument(
        "--data_dir",
        type=file_path,
        default="./Dataset",
        metavar="DIR",
        help="where FashionMNIST is (default: ./Dataset)",
    )


CASE = Case(
    "start",
    "From the command to the first update",
    ABOUT,
    {
        "first update": first_update,
        "torch and the data": torch_and_data,
        "import torch": import_torch,
        "help": show_help,
        "wrong flag": wrong_flag,
    },
    [
        Mark("first update / torch and the data", "first update", "torch and the data", at_most=1.3),
        Mark("help / import torch", "help", "import torch", at_most=0.25),
        Mark("wrong flag / import torch", "wrong flag", "import torch", at_most=0.25),
    ],
    [Column("seconds", "seconds", "{:.2f}")],
)
BENCHMARK = Benchmark("startup", __doc__, [CASE], add_options)

if __name__ == "__main__":
    main(BENCHMARK)
