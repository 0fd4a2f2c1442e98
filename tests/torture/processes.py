"""A kill of one of two processes, or a signal to it, stops both and changes no result.

python -m tests.torture.restarts --count 8
python -m tests.torture.one_signal --count 8
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from tests.torture import harness
from tests.torture.harness import Job, Life

NUM_PROCESSES = 2
FLAGS = ("--nproc", str(NUM_PROCESSES), "--n_epoch", "2", "--micro_batch_size", "3", "--dist_timeout", "60")


def jobs() -> list[Job]:
    """Runs of two processes: dropout shows their random states, fsdp cuts the network up between them."""
    return [
        harness.vanilla_job("dropout ddp", *FLAGS, program=harness.DROPOUT),
        harness.vanilla_job("dropout fsdp", *FLAGS, "--parallel", "fsdp", program=harness.DROPOUT),
    ]


def workers(launcher: int) -> dict[int, int]:
    """The processes that a launcher has started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_bytes().split(b"\0") if parent == launcher else []
            rank = next((entry for entry in environment if entry.startswith(b"RANK=")), None)
            if rank:
                found[int(rank.removeprefix(b"RANK="))] = int(path.name)
    return found


def hit(life: Life, signum: int, rank: int) -> bool:
    """Send a signal to one of the processes; False when there is none any more."""
    pids = workers(life.process.pid)
    if rank not in pids:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[rank], signum)
        return True
    return False


def hit_at_random(job: Job, output_dir: Path, signum: int, seconds: float, dice, *flags: str) -> Life | None:
    """Start a run and hit one of its processes; None when it had ended before."""
    life = Life(job.command("--output_dir", output_dir, *flags), output_dir)
    life.wait_for_start()
    time.sleep(dice.uniform(0, 0.9 * seconds))
    if hit(life, signum, dice.randrange(NUM_PROCESSES)):
        return life
    life.end()
    return None


def name_of(signum: int) -> str:
    return signal.Signals(signum).name
