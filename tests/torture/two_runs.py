"""Two processes in one run directory: the second is refused, and a dead one keeps no lock.

python -m tests.torture.two_runs
"""

import signal
from pathlib import Path

from tests.torture import harness
from tests.torture.harness import End, Job, Life, Row

WHAT = "two runs in one directory: the second is refused, a killed one keeps no lock"
COUNT, QUICK = 3, 1
NOTE = "the holder, with loading processes, is then killed with SIGKILL and its run resumed at once"


def try_two(job: Job, whole: End, directory: Path, workers: int) -> list[str]:
    """Start a second process where one is; then kill the first, and go on."""
    output_dir = directory / "run"
    first = Life(job.command("--output_dir", output_dir, "--num_workers", workers), output_dir)
    try:
        if not (first.wait_for_start() and first.wait_for(lambda: harness.checkpoints(first.run_dir))):
            return [f"the first did not run: {first.told()}"]
        first.send(signal.SIGSTOP)  # so that it is not over before the second has come so far
        second = Life(job.resume(first.run_dir), output_dir, first.run_dir)
        status, said = second.end(), second.stderr()
        faults = [] if status == 2 else [f"the second ended with {status}: {second.told()}"]
        faults += [] if str(first.run_dir) in said else [f"the directory is not named: {second.told()}"]
        faults += ["it ends with a traceback"] if "Traceback" in said else []
        if not first.kill():
            return [*faults, "the first had ended before the second was tried"]
    finally:
        first.kill()
    return faults + harness.finish(job, first.run_dir, whole)


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Try it with 0, 1 and 2 loading processes."""
    row = Row(note=NOTE)
    with harness.scratch() as directory:
        job = harness.seg_job(harness.make_cars(directory / "cars"), "UNet")
        whole, _ = harness.train_whole(job)
        for number in range(count):
            with harness.scratch() as place:
                row.add(f"try {number}", try_two(job, whole, place, 2 - number % 3))
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
