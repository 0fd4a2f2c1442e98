"""A signal to one process of two: both stop after the same update, saved, and the resumed run ends the same.

python -m tests.torture.one_signal --count 8
"""

import signal
import time

from tests.torture import harness
from tests.torture.harness import Job, Row
from tests.torture.processes import hit_at_random, jobs, name_of
from tests.torture.sigterm import STATUS, num_updates, traced

WHAT = "SIGTERM to one process of two: both stop at the same update, with a checkpoint"
PAGE = "distributed"
COUNT, QUICK = 8, 2
ATTEMPTS = 5  # at a try whose run was over before the signal
MOST_SECONDS = 20  # until all have ended
NOTE = (
    "rank and moment drawn; ddp and fsdp in turn. No update is lost or made twice, and the resumed run ends with the "
    "same digests: each process's random state in the checkpoint (dropout) is that of the same update"
)


def try_signal(job: Job, signum: int, number: int, seed: int) -> list[str]:
    """Stop a run by a signal to one of its processes, and resume it."""
    whole, seconds = harness.train_whole(job)
    for attempt in range(ATTEMPTS):
        dice = harness.draw(seed, job.name, number, attempt)
        with harness.scratch() as directory:
            trace = directory / "trace.jsonl"
            is_traced = "fsdp" not in job.name
            run = job.under("tools.trace", "--file", trace) if is_traced else job
            life = hit_at_random(run, directory / "run", signum, 0.8 * seconds / (attempt + 1), dice)
            if life is None:
                continue
            sent = time.monotonic()
            status = life.end()
            if status == 0:
                continue  # the last update was made before
            faults = [] if status == STATUS[name_of(signum)] else [f"status {status}: {life.told()}"]
            took = time.monotonic() - sent
            faults += [f"it took {took:.1f} s"] if took > MOST_SECONDS else []
            newest, damaged = harness.newest_update(life.run_dir)
            if newest is None:
                return [*faults, "nothing was saved"]
            if is_traced and len(traced(trace)) != newest:
                faults.append(f"{len(traced(trace))} updates were made, but {newest} are saved")
            faults += harness.finish(run, life.run_dir, whole)
            if is_traced and traced(trace) != list(range(1, num_updates(whole) + 1)):
                faults.append("an update was made twice, or never")
            return [*faults, *damaged]
    return ["it never came in time"]


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Stop so many runs."""
    row, chosen = Row(note=NOTE), jobs()
    for number in range(count):
        job = chosen[number % len(chosen)]
        row.add(f"{job.name}, signal {number}", try_signal(job, signal.SIGTERM, number, seed))
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
