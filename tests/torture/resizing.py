"""A run that resumes with another number of processes, in the middle of an epoch, sees each sample exactly once.

python -m tests.torture.resizing
"""

import itertools
import math
import random
from pathlib import Path
from typing import Any

from callbacks.callback import Callback
from data.loader import UpdateLoader
from data.sampler import UpdateSampler
from engine.progress import Progress
from tests import small_tasks
from tests.processes import in_processes
from tests.small_data import Numbered, NumberedInMemory, NumberedRandom
from tests.small_tasks import build, largest_difference, rows_of, train, weights_of
from tests.torture import harness
from tests.torture.harness import Row

WHAT = "2, then 1, then 3 processes in one epoch, changed at random updates: each sample exactly once"
PAGE = "distributed"
COUNT, QUICK = 100, 5
SIZES = (2, 1, 3)
REAL_EVERY = 20  # one try in so many trains with real processes
TOLERANCE = 1e-5  # of the weights, in float32
EPOCH = 1
DATA = {"memory": NumberedInMemory, "one by one": Numbered, "random": NumberedRandom}


def loader_of(kind: str, num_samples: int, *order: Any, share: tuple[int, int]) -> Any:
    return UpdateLoader(DATA[kind](num_samples), *order, share=share)


# ---- loaders alone ---------------------------------------------------------------------------------------------------
def seen_by(loaders: list[Any], progress: Progress, most: int) -> list[list[int]]:
    """The samples of the next updates, at most so many, from the loaders of all processes; checked on the way."""
    seen = []
    all_updates = zip(*(loader.updates(EPOCH, progress.sample) for loader in loaders), strict=True)
    for updates in itertools.islice(all_updates, most):
        assert len({update.num_samples for update in updates}) == 1, "the processes differ in where they stand"
        assert len({len(update.micro_batches) for update in updates}) == 1, "one has more micro-batches"
        assert all(update.micro_batches for update in updates), "one has no micro-batch"
        of_update: list[int] = []
        for update in updates:
            counting = update.micro_batches[: len(update.micro_batches) - update.sizes.count(0)]
            indices = [int(index) for batch in counting for index in batch["index"]]
            assert indices == update.indices, "the data is not that of the indices"
            of_update += indices
        assert len(of_update) == updates[0].num_samples, "an update has another number of samples"
        seen.append(of_update)
        progress.finish_update(updates[0].num_samples)
    return seen


def try_loaders(chance: random.Random) -> list[str]:
    """Draw a data set, updates and two points, and go through an epoch; return faults."""
    num_samples, batch_size = chance.randint(1, 120), chance.randint(3, 40)
    micro_batch_size, kind = chance.choice([None, 1, 3, 7]), chance.choice(list(DATA))
    order = (batch_size, micro_batch_size, chance.randrange(1000))
    num_updates = -(-num_samples // batch_size)
    first, second = sorted(chance.randint(0, num_updates) for _ in range(2))
    progress, seen = Progress(epoch=EPOCH), []
    try:
        for size, most in zip(SIZES, (first, second - first, num_updates - second), strict=True):
            loaders = [loader_of(kind, num_samples, *order, share=(rank, size)) for rank in range(size)]
            seen += seen_by(loaders, progress, most)
    except AssertionError as error:
        return [str(error)]
    sampler = UpdateSampler(num_samples, *order)
    sampler.epoch = EPOCH
    whole = sampler.order_of_epoch().tolist()
    faults = [] if progress.sample == num_samples else [f"the epoch ends at sample {progress.sample} of {num_samples}"]
    flat = [index for update in seen for index in update]
    missing, doubled = set(whole) - set(flat), len(flat) - len(set(flat))
    faults += [f"{len(missing)} samples missing, {doubled} doubled"] if missing or doubled else []
    same = flat == whole and seen == [whole[i : i + batch_size] for i in range(0, num_samples, batch_size)]
    return faults + ([] if same or faults else ["the updates are not those of one process"])


# ---- real processes --------------------------------------------------------------------------------------------------
class StopAt(Callback):
    """Ends a run after an update; several processes make one more."""

    def __init__(self, update: int | None):
        self.update = update

    def on_update_end(self, trainer: Any, values: Any) -> None:
        trainer.should_stop |= trainer.progress.update == self.update


def stage(task: str, flags: tuple[Any, ...], directory: Path, stop_at: int | None) -> dict[str, Any]:
    """Train from the beginning or go on, until an update or to the end; return what this process saw, and the end."""
    trainer = build(getattr(small_tasks, task), flags, directory, [StopAt(stop_at)])
    seen, train_update = [], trainer.train_update

    def noting(update: Any) -> None:
        seen.append((trainer.progress.epoch, update.indices))
        train_update(update)

    trainer.train_update = noting
    trainer.train()
    position = trainer.progress.state_dict()
    return {"seen": seen, "position": position, "run_dir": trainer.run_dir.path, "weights": weights_of(trainer)}


def whole_run(task: str, flags: tuple[Any, ...], directory: Path) -> dict[str, Any]:
    """Train without interruption; return the weights and metrics.csv."""
    trainer = train(getattr(small_tasks, task), flags, directory)
    return {"weights": weights_of(trainer), "rows": rows_of(trainer.run_dir.path)}


def try_processes(chance: random.Random, directory: Path) -> list[str]:
    """Train two epochs, the second of them with 2, 1 and 3 processes; return faults."""
    flags = ("--n_epoch", 2, "--optim", "sgd", "--lr", 0.1, "--micro_batch_size", 3, "--log_every", 1)
    mode, workers = chance.choice(("ddp", "fsdp")), chance.choice((0, 1))
    stops = [chance.randint(11, 13), chance.randint(15, 17), None]  # of the updates 11 to 20
    (whole,) = in_processes(1, whole_run, "TrainerSmall", flags, directory / "whole")
    seen: list[tuple[int, int]] = []  # (epoch, index)
    flags, faults = (*flags, "--num_workers", workers, "--parallel", mode), []
    for size, stop_at in zip(SIZES, stops, strict=True):
        found = in_processes(size, stage, "TrainerSmall", flags, directory / "run", stop_at)
        seen += [(epoch, index) for of_process in found for epoch, indices in of_process["seen"] for index in indices]
        faults += [] if len({str(end["position"]) for end in found}) == 1 else ["the processes end at different places"]
        run_dir, position = found[0]["run_dir"], found[0]["position"]
        if stop_at and not (position["epoch"] == 1 and position["sample"]):
            faults.append(f"it did not stop in the middle of an epoch, but at {position}")
        flags = ("--resume", run_dir, "--parallel", mode)
    missing, doubled = {(e, i) for e in range(2) for i in range(145)} - set(seen), len(seen) - len(set(seen))
    faults += [f"{len(missing)} samples missing, {doubled} doubled"] if missing or doubled else []
    difference = largest_difference(found[0]["weights"], whole["weights"])
    faults += [] if difference <= TOLERANCE else [f"weights differ by {difference:.1e}"]
    return faults + faults_of_rows(rows_of(run_dir), whole["rows"])


def faults_of_rows(rows: list[dict[str, str]], expected: list[dict[str, str]]) -> list[str]:
    """Compare what two metrics.csv say of the training."""
    if len(rows) != len(expected):
        return [f"metrics.csv has {len(rows)} rows, not {len(expected)}"]
    faults = []
    for row, other in zip(rows, expected, strict=True):
        for name in ("train/loss", "train/grad_norm", "lr", "val/loss"):
            if not math.isclose(float(row[name]), float(other[name]), rel_tol=1e-5):
                faults.append(f"{name} of epoch {row['epoch']} is {row[name]}, not {other[name]}")
    return faults


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Change the number of processes at `count` pairs of points."""
    row, num_real = Row(), 0
    with harness.scratch() as directory:
        for number in range(count):
            chance = harness.draw(seed, number)
            if is_real := number % REAL_EVERY == 0:
                row.add(f"try {number}, real processes", try_processes(chance, directory / str(number)))
            else:
                row.add(f"try {number}", try_loaders(chance))
            num_real += is_real
    row.note = (
        f"0 missing, 0 doubled. {num_real} of the {count} train with real processes, DDP or FSDP, and end with the "
        "weights and the mean losses of one process that was never stopped; the others draw the size of the data, of "
        "updates and micro-batches, and go through the loaders of all processes"
    )
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
