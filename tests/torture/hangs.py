"""SIGSTOP to one process of two, which then hangs for ever: the job ends, and its checkpoint is there.

python -m tests.torture.hangs --count 2
"""

import signal
import time

from tests.torture import harness
from tests.torture.harness import Job, Row
from tests.torture.processes import hit_at_random, jobs

WHAT = "one process of two hangs: the job ends with status 6 after `--dist_timeout`, and is resumed to the same digests"
PAGE = "distributed"
COUNT, QUICK = 2, 1
TIMEOUT = 5  # seconds, --dist_timeout
KILLED_AFTER = 30  # seconds, in which the launcher waits for the process that hangs, before it kills it
SLACK = 10  # seconds
STATUS = 6


def try_hang(job: Job, number: int, seed: int) -> tuple[list[str], float]:
    """Halt one process of a run; return faults, and how long it took to end."""
    whole, seconds = harness.train_whole(job)
    dice = harness.draw(seed, job.name, number)
    with harness.scratch() as directory:
        flags = ("--dist_timeout", str(TIMEOUT))
        life = hit_at_random(job, directory / "run", signal.SIGSTOP, 0.5 * seconds, dice, *flags)
        if life is None:
            return ["it never came in time"], 0.0
        halted = time.monotonic()
        status = life.end()
        took = time.monotonic() - halted
        faults = [] if status == STATUS else [f"status {status}: {life.told()}"]
        faults += [f"it took {took:.0f} s"] if took > TIMEOUT + KILLED_AFTER + SLACK else []
        newest, damaged = harness.newest_update(life.run_dir)
        if newest is None:
            return [*faults, *damaged], took  # it hung before the first checkpoint
        return [*faults, *damaged, *harness.finish(job, life.run_dir, whole)], took


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Halt so many."""
    row, chosen, times = Row(), jobs(), []
    for number in range(count):
        job = chosen[number % len(chosen)]
        faults, took = try_hang(job, number, seed)
        times.append(took)
        row.add(f"{job.name}, hang {number}", faults)
    row.note = (
        f"ddp and fsdp in turn, `--dist_timeout {TIMEOUT}`; ended after {min(times):.0f} to {max(times):.0f} s, in "
        f"{KILLED_AFTER} of which torch's launcher waits before it kills what does not answer"
    )
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
