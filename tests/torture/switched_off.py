"""The comparison of the other scripts can fail: without what makes a resume exact, the end differs.

python -m tests.torture.switched_off
"""

import sys
from contextlib import nullcontext
from pathlib import Path

from tests.torture import harness
from tests.torture.harness import Job, Life, Row

WHAT = "the same with the random-state restore, or the per-sample seeds, switched off: the comparison must see it"
COUNT = QUICK = 2
KILL_AT = 33  # an update in the middle of an epoch, and between two saves
NOTE = "dropout without the restored random state; augmentation without the per-sample seeds; killed once, resumed"


def without_random_state() -> None:
    """Do not give the random generators back the state of the checkpoint."""
    from utils.seed import GlobalGenerators

    GlobalGenerators.load_state_dict = lambda generators, state: None


def without_sample_seeds() -> None:
    """Draw what is random in a sample from wherever the generators stand."""
    from data import dataloader

    dataloader.seed_cpu = lambda seed: None
    dataloader.preserved_random_state = nullcontext


SWITCHES = {"random_state": without_random_state, "sample_seeds": without_sample_seeds}


def with_fault(job: Job, switch: str) -> Job:
    """The same run with something switched off in its process."""
    program = ("-m", "tests.torture.switched_off", switch, *job.program)
    return Job(f"{job.name} without {switch}", program, job.flags, job.data)


def resumed_differences(job: Job, directory: Path) -> list[str]:
    """Kill a run in its middle, resume it, and return what differs from one that was not killed.

    Raises:
        RuntimeError: when one of them does not run as it should.
    """
    whole, _ = harness.train_whole(job)
    output_dir = directory / f"{job.name} killed"
    life = Life(job.under("tools.kill", "--at", KILL_AT).command("--output_dir", output_dir), output_dir)
    status = life.end()
    if status != -9 or not harness.newest_update(life.run_dir)[0]:
        raise RuntimeError(f"{job.name}: killed at {KILL_AT}, it ended with {status}: {life.told()}")
    resumed = Life(job.resume(life.run_dir), output_dir, life.run_dir)
    if resumed.end():
        raise RuntimeError(f"{job.name} was not resumed: {resumed.told()}")
    return harness.differences(whole, harness.end_of(life.run_dir))


def try_switch(job: Job, switch: str, directory: Path) -> list[str]:
    """Return faults: when the run as it is does not end the same, or the one without something does."""
    try:
        faults = resumed_differences(job, directory)
        found = resumed_differences(with_fault(job, switch), directory)
    except RuntimeError as error:
        return [str(error)]
    is_seen = any("last checkpoint differs" in text and "networks" in text for text in found)
    return faults if is_seen else [*faults, f"{switch} switched off is not seen"]


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Try both switches."""
    row = Row(note=NOTE)
    with harness.scratch() as directory:
        cars = harness.make_cars(directory / "cars")
        dropout = harness.vanilla_job("dropout", program=harness.DROPOUT)
        segmentation = harness.seg_job(cars, "segmentation", "--no-cache")  # whole batches from a cache seed otherwise
        pairs = [(dropout, "random_state"), (segmentation, "sample_seeds")]
        harness.side_by_side(lambda pair: row.add(pair[1], try_switch(*pair, directory)), pairs)
    return row


def run_without() -> None:
    """Switch something off, then run a program as Python would: SWITCH PROGRAM OPTIONS."""
    import runpy

    switch = sys.argv[1]
    del sys.argv[:2]
    SWITCHES[switch]()
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in SWITCHES:
        run_without()
    else:
        harness.main(run, COUNT, WHAT)
