"""SIGTERM and its like at any moment: no completed update is lost, and the resumed run ends the same.

python -m tests.torture.sigterm --count 20
"""

import json
import random
import signal
import time
from pathlib import Path

from tests.torture import harness
from tests.torture.harness import End, Job, Life, Row

WHAT = "SIGTERM at random times: exit status 143, resumed without losing an update"
COUNT, QUICK = 20, 2
STATUS = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 143, "SIGHUP": 129}
NOTE = "with SIGINT (130), SIGUSR1 (143) and SIGHUP (129) in turn after every other SIGTERM; --num_workers 0, 1, 2"
ATTEMPTS = 5  # at a try whose run was over before the signal came


def traced(trace: Path) -> list[int]:
    """The updates that were made, in order."""
    return [json.loads(line)["update"] for line in trace.read_text().splitlines()] if trace.exists() else []


def num_updates(whole: End) -> int:
    """The updates of the whole run."""
    return int(whole.rows[-1]["update"])


def try_signal(
    job: Job, whole: End, seconds: float, name: str, directory: Path, dice: random.Random
) -> tuple[list[str], bool] | None:
    """Stop a run by a signal and resume it.

    Returns:
        Faults, and whether the signal came before the training or after it. None when the process had ended.
    """
    output_dir, workers = directory / "run", dice.choice((0, 1, 2))
    trace = directory / "trace.jsonl"
    job = job.under("tools.trace", "--file", trace)
    life = Life(job.command("--output_dir", output_dir, "--num_workers", workers), output_dir)
    life.wait_for_start()
    time.sleep(dice.uniform(0, seconds))
    life.send(getattr(signal, name))
    sent = time.monotonic()
    status = life.end()
    if status == 0:
        return None
    # Before the training and after it, nothing needs to be finished, and the signal does what it does to any program.
    is_outside = status == -getattr(signal, name) and len(traced(trace)) in (0, num_updates(whole))
    faults = [] if status == STATUS[name] or is_outside else [f"status {status} after {name}: {life.told()}"]
    faults += [f"it took {time.monotonic() - sent:.1f} s"] if time.monotonic() - sent > 30 else []
    updates = traced(trace)
    newest, damaged = harness.newest_update(life.run_dir)
    if (newest or 0) != len(updates):
        faults.append(f"{len(updates)} updates were made, but {newest} are saved")
    if not updates and newest is None:
        return [*faults, *damaged], is_outside
    faults += harness.finish(job, life.run_dir, whole, "--num_workers", dice.choice((0, 1, 2)))
    updates = traced(trace)
    faults += [] if updates == list(range(1, len(updates) + 1)) else ["an update was made twice, or never"]
    return [*damaged, *faults], is_outside


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Stop so many runs."""
    row, others, outside = Row(), ("SIGINT", "SIGUSR1", "SIGHUP"), []
    with harness.scratch() as directory:
        cars = harness.make_cars(directory / "cars")
        jobs = [harness.seg_job(cars, "UNet"), harness.vanilla_job("dropout", program=harness.DROPOUT)][:count]
        wholes = harness.side_by_side(harness.train_whole, jobs)

        def one(number: int) -> None:
            job, (whole, seconds) = jobs[number % 2], wholes[number % 2]
            name = "SIGTERM" if number % 4 < 2 else others[number // 4 % 3]
            for attempt in range(ATTEMPTS):
                dice = harness.draw(seed, "signal", number, attempt)
                with harness.scratch() as place:
                    result = try_signal(job, whole, 0.8 * seconds / (attempt + 1), name, place, dice)
                if result is not None:
                    break
            faults, is_outside = result or (["it never came in time"], False)
            outside.append(is_outside)
            row.add(f"{name} to {job.name}, try {number}", faults)

        harness.side_by_side(one, range(count))
    row.note = f"{NOTE}; {sum(outside)} of them came just before the training or after it"
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
