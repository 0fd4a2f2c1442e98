"""Loading processes that are killed, crash, raise or hang: the run ends in time, names the sample, and can go on.

python -m tests.torture.workers
"""

import json
import time
from pathlib import Path

from tests.torture import harness
from tests.torture.harness import End, Job, Life, Row
from tests.torture.tasks import FAULT, bad_index

WHAT = "loading processes: killed, segfault, raise, hang"
COUNT, QUICK = 4, 1
STATUS = {"hang": 5, "kill": 5, "segfault": 5, "raise": 1}  # an exception of the data set's own keeps its traceback
WORKER_TIMEOUT = 4  # seconds
IN_TIME = {"hang": WORKER_TIMEOUT * 1.5 + 5}
NOTE = f"the sample is named, a checkpoint is kept, resumed to the right digests; --worker_timeout {WORKER_TIMEOUT}"


def try_fault(
    job: Job, whole: End, fault: str, directory: Path, workers: int
) -> tuple[list[str], str]:
    """Let one sample misbehave; return faults, and how long it took until the run had ended."""
    output_dir = directory / fault
    flags = ("--output_dir", output_dir, "--num_workers", workers, "--worker_timeout", WORKER_TIMEOUT)
    life = Life(job.command(*flags), output_dir, **{FAULT: fault})
    life.wait_for_start()
    started = time.monotonic()
    status, took = life.end(90), time.monotonic() - started
    said = life.stderr()
    names = json.loads((life.run_dir / "split.json").read_text())["train"]
    name = names[bad_index(len(names), seed=1)]
    faults = [] if status == STATUS[fault] else [f"status {status}: {life.told()}"]
    faults += [] if took <= IN_TIME.get(fault, 6) else [f"it took {took:.0f} s"]
    faults += [] if repr(name) in said else [f"the sample {name!r} is not named: {life.told()}"]
    faults += ["it ends with a traceback"] if "Traceback" in said and STATUS[fault] == 5 else []
    newest, damaged = harness.newest_update(life.run_dir)
    faults += damaged
    if not newest:
        return [*faults, "no checkpoint is kept"], f"{fault} {took:.1f} s"
    return faults + harness.finish(job, life.run_dir, whole, "--num_workers", workers), f"{fault} {took:.1f} s"


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Try the faults."""
    row, times = Row(), []
    with harness.scratch() as directory:
        job = harness.vanilla_job("faulty", program=("-m", "tests.torture.tasks", "faulty"))
        whole, _ = harness.train_whole(harness.vanilla_job())  # without the fault it is the same

        def one(number: int) -> None:
            fault = list(STATUS)[number % len(STATUS)]
            place, workers = directory / str(number), 2 - number // len(STATUS) % 2
            faults, took = try_fault(job, whole, fault, place, workers)
            times.append(took)
            row.add(fault, faults)

        harness.side_by_side(one, range(count))
    row.note = f"{NOTE}. Ended after {', '.join(sorted(times))} of training"
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
