"""Malicious checkpoints, given to the programs as a user would: nothing is executed, filled or written.

python -m tests.torture.malicious_programs
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from engine.checkpoints.file import make_footer
from tests.torture import harness
from tests.torture.harness import Row
from tests.torture.malicious import KINDS

WHAT = "malicious checkpoints: none executed"
COUNT, QUICK = len(KINDS), 1
MOST_MEMORY = 1500  # MB; PyTorch alone takes some 400
MOST_SECONDS = 60
PROGRAMS = {
    "evaluate": ("eval_vanilla.py", "--gpu_devices", "cpu", "--model_path"),
    "resume": ("trainer_vanilla.py", "--gpu_devices", "cpu", "--resume"),
    "start from": ("trainer_vanilla.py", "--gpu_devices", "cpu", "--debug", "--pretrained", "--model_path"),
    "show": ("-m", "tools.checkpoint", "show"),
}
NOTE = "each evaluated, resumed, started from (--pretrained) and shown; with a right SHA-256 and without, in turn"


# A process of its own between this one and the program: the memory that the kernel tells of a child includes what its
# parent held when it started it, and that of the tests is large.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measured(command: list[str], directory: Path) -> tuple[int, str, float]:
    """Run a command; return its exit status, what it wrote to stderr, and its highest memory in MB."""
    with tempfile.TemporaryFile("w+") as errors:
        limited = ["timeout", "-s", "KILL", str(MOST_SECONDS), *command]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *limited], cwd=directory, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT)}, check=True,
        )  # fmt: skip
        status, memory = map(int, done.stdout.split())
        errors.seek(0)
        return status, errors.read(), memory / 1024


def try_kind(kind: str, has_digest: bool, programs: Iterable[str]) -> tuple[list[str], float]:
    """Give one file to the programs; return faults, and the highest memory in MB."""
    faults, highest = [], 0.0
    with harness.scratch() as directory:
        canary, path = directory / "canary", directory / "file.pth"
        data = KINDS[kind](canary)
        path.write_bytes(data + make_footer(data) if has_digest else data)
        for use in programs:
            program, *flags = PROGRAMS[use]
            start = [program] if program == "-m" else [str(harness.ROOT / program)]
            to = [] if use == "show" else ["--save_path" if use == "evaluate" else "--output_dir", str(directory / use)]
            status, said, memory = measured([sys.executable, *start, *flags, str(path), *to], directory)
            highest = max(highest, memory)
            faults += [] if status in (2, 3) else [f"{use}: status {status}: {said.strip()[-200:]}"]
            faults += [f"{use}: it took {memory:,.0f} MB"] if memory > MOST_MEMORY else []
            faults += [f"{use}: it ends with a traceback"] if "Traceback" in said else []
            faults += [f"{use}: it was executed"] if canary.exists() else []
    return faults, highest


def run(count: int = COUNT, seed: int = 0, programs: Iterable[str] = tuple(PROGRAMS)) -> Row:
    """Try so many kinds."""
    row, memory = Row(), []

    def one(number: int) -> None:
        kind = list(KINDS)[number % len(KINDS)]
        faults, highest = try_kind(kind, (number + seed) % 2 == 0, programs)
        memory.append(highest)
        row.add(kind, faults)

    harness.side_by_side(one, range(count))
    row.note = f"{NOTE}; at most {max(memory, default=0):,.0f} MB"
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
