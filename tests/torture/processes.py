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
FLAGS = ("--nproc", str(NUM_PROCESSES), "--micro_batch_size", "3", "--dist_timeout", "60")


def jobs() -> list[Job]:
    """Runs of two processes: dropout shows their random states, fsdp cuts the network up between them."""
    flags = (*FLAGS, "--n_epoch", harness.epochs(2))
    return [
        harness.vanilla_job("dropout ddp", *flags, program=harness.DROPOUT),
        harness.vanilla_job("dropout fsdp", *flags, "--parallel", "fsdp", program=harness.DROPOUT),
    ]


def workers(launcher: int) -> dict[int, int]:
    """The processes that a launcher has started, by rank: it starts them in this order."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == launcher and fields[0] != "Z":
                found.append((int(fields[19]), int(path.name)))  # when it was started, and its number
    return dict(enumerate(pid for _, pid in sorted(found)))


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
