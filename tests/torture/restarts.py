"""SIGKILL to one process of two: the launcher starts both again, and the end is the same, bit for bit.

python -m tests.torture.restarts --count 8
"""

import signal

from tests.torture import harness
from tests.torture.harness import Job, Row
from tests.torture.processes import hit_at_random, jobs

WHAT = "SIGKILL of one process of two, started again by the launcher (`--max_restarts`): same digests"
PAGE = "distributed"
COUNT, QUICK = 8, 2
ATTEMPTS = 5  # at a try whose run was over before the kill
NOTE = "rank and moment drawn; ddp and fsdp in turn, with dropout, and micro-batches of 3 in shares of 8 and 6"


def try_kill(job: Job, number: int, seed: int) -> list[str]:
    """Kill one process of a run, and let it come to its end."""
    whole, seconds = harness.train_whole(job)
    for attempt in range(ATTEMPTS):
        dice = harness.draw(seed, job.name, number, attempt)
        with harness.scratch() as directory:
            fraction = seconds / (attempt + 1)
            life = hit_at_random(job, directory / "run", signal.SIGKILL, fraction, dice, "--max_restarts", "2")
            if life is None:
                continue
            if status := life.end():
                return [f"it ended with {status}: {life.told()}"]
            runs = sorted((directory / "run").glob("*/metrics.csv"))  # a second one, if nothing had been saved
            began = sum(path.read_text().count(harness.STARTED) for path in (directory / "run").glob("*/*_log.txt"))
            faults = [] if began == 2 else [f"training began {began} times, not twice"]
            return [*faults, *harness.differences(whole, harness.end_of(runs[-1].parent))]
    return ["it never came in time"]


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Kill so many."""
    row, chosen = Row(note=NOTE), jobs()
    for number in range(count):
        job = chosen[number % len(chosen)]
        row.add(f"{job.name}, kill {number}", try_kill(job, number, seed))
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
