"""SIGKILL at any moment, other numbers of workers at each restart: the end is the same, bit for bit.

python -m tests.torture.kills --count 100
"""

import random
import time
from collections import Counter
from pathlib import Path

from tests.torture import harness
from tests.torture.harness import End, Job, Life, Row

WHAT = "SIGKILL at random moments, `--num_workers` drawn from {0, 1, 2} at each restart"
COUNT, QUICK = 100, 6
WORKERS = (0, 1, 2)
STARTING = 0.1  # share of the kills that come while the process starts
SAVING = 0.3  # share of those that wait for a save
NOTE = (
    "vanilla; with dropout, accumulation with a short last window, and early stop; with dropout, fp16 and its loss "
    "scale; UNet (batch normalization) with augmentation and accumulation; UNet in bf16; UNet++"
)


def jobs(cars: Path) -> list[Job]:
    """The trained tasks: each part with a state takes part in one of them."""
    early = ("--patience", "2", "--min_delta", "1", "--n_epoch", "12")
    micro = ("--micro_batch_size", "7", "--clip", "0.5", "--optim", "sgd", "--warmup_epoch", "1.5")
    return [
        harness.seg_job(cars, "UNet", "--micro_batch_size", "2"),
        harness.vanilla_job("dropout", *micro, *early, program=harness.DROPOUT),
        harness.seg_job(cars, "UNet bf16", "--amp", "bf16", "--val_every", "2", "--keep", "1"),
        harness.vanilla_job("vanilla"),
        harness.seg_job(cars, "UNetpp", "--model_type", "UNetpp", "--keep", "3"),
        harness.vanilla_job("dropout fp16", "--amp", "fp16", program=harness.DROPOUT),
    ]


def kill(life: Life, dice: random.Random, seconds: float) -> str | None:
    """Kill a process at a random moment, and return what it was at; None when it ended by itself.

    Args:
        life: the process.
        dice: what the moment is drawn from.
        seconds: how long the whole training takes.
    """
    kind = dice.random()
    if kind < STARTING:
        time.sleep(dice.uniform(0, 1))
        return "starting" if life.kill() else None
    if not life.wait_for_start():
        return None
    time.sleep(dice.uniform(0, seconds / 4))
    is_saving = kind < STARTING + SAVING and life.wait_for_save(2)
    if is_saving:
        time.sleep(dice.uniform(0, 0.02))
    return ("saving" if is_saving else "training") if life.kill() else None


def start_faults(life: Life, newest: int | None) -> list[str]:
    """Check that a process resumed from the newest checkpoint, or was killed before it logged it."""
    said = harness.resumed_updates(life.log())[life.resumes_before :]
    if newest is None:
        return [f"went on after update {said[-1]}, but nothing was saved"] if said else []
    return [f"went on after update {said[-1]}, but {newest} was saved"] if said and said[-1] != newest else []


def torture(job: Job, name: str, whole: End, seconds: float, most: int, directory: Path, seed: int) -> list[tuple]:
    """Train one run to its end with at most so many kills.

    Returns:
        For each kill what the process was at, and what was not as it should be; what is wrong in the end counts for
        each of them.
    """
    output_dir = directory / name.replace(" ", "_")
    run_dir, newest, kills = None, None, []
    while True:
        dice = harness.draw(seed, name, len(kills))
        workers = ("--num_workers", dice.choice(WORKERS))
        if newest is None:  # nothing was saved: the run starts from scratch
            output_dir, run_dir = output_dir.with_name(f"{output_dir.name}_"), None
            life = Life(job.command("--output_dir", output_dir, *workers), output_dir)
        else:
            life = Life(job.resume(run_dir, *workers), output_dir, run_dir)
        moment = kill(life, dice, seconds) if len(kills) < most else None
        run_dir = life.run_dir
        if moment is None:
            status = life.end()  # the one that is left alone, or was over before the kill
            faults = start_faults(life, newest)
            end = [f"it ended with {status}: {life.told()}"] if status else []
            end = end or harness.differences(whole, harness.end_of(run_dir))
            return [(moment, [*faults_of, *faults, *end]) for moment, faults_of in kills]
        faults = start_faults(life, newest)
        newest, damaged = harness.newest_update(run_dir)
        kills.append((moment, [*faults, *damaged]))


def run(count: int = COUNT, seed: int = 0, only: str = "") -> Row:
    """Kill so many times, over all the jobs; `only` names one of them."""
    row, moments = Row(), Counter()
    with harness.scratch() as directory:
        chosen = [job for job in jobs(harness.make_cars(directory / "cars")) if only in ("", job.name)]
        shares = [count // len(chosen) + (i < count % len(chosen)) for i in range(len(chosen))]

        def torture_job(job_and_share: tuple[Job, int]) -> None:
            job, share = job_and_share
            if not share:
                return
            whole, seconds = harness.train_whole(job)
            done = 0
            for number in range(share):
                if done < share:
                    kills = torture(job, f"{job.name} {number}", whole, seconds, share - done, directory, seed)
                    for moment, faults in kills:
                        done += 1
                        moments[moment] += 1
                        row.add(f"{job.name}, kill {done}, while {moment}", faults)

        harness.side_by_side(torture_job, list(zip(chosen, shares, strict=True)))
    row.note = f"{', '.join(f'{moments[key]} while {key}' for key in sorted(moments))}. {NOTE}"
    if row.tried != count:
        row.failures.append(f"only {row.tried} of {count} kills could be delivered")
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
