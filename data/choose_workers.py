"""Choose the number of loading processes by measuring: --num_workers auto.

What is measured is loading alone, with 1, 2, 4, ... processes, on the samples that the first epoch will ask for. No
sample is loaded in this process, since a data set may open a file at its first sample, and processes that are started
later must not share it; so what no process at all would do is told by the first one, which times its own loading.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from data.loader import WatchedLoader
from data.memory import is_in_memory
from data.sampler import epoch_order, may_be_random, seeded_dataset
from utils.seed import preserved_random_state

TIME_LIMIT = 6.0  # seconds for all numbers together
BATCH_SECONDS = 0.1  # what a batch may take when measuring; slower samples are measured in smaller batches
MEASURED_SECONDS = 0.3  # at least so much of loading is timed for each number
LEAST_ROUNDS = 3  # of batches for each process; the one before them warms up
NEARLY = 0.9  # of the best speed is good enough for fewer processes
UNMEASURED = 2  # processes when one batch takes longer than all the time there is


class OutOfTime(Exception):
    """The time for measuring is over."""


def usable_cores() -> int:
    """The cores that this process may use; a scheduler may have left it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def candidates(cores: int) -> list[int]:
    """The numbers to try: 1, 2, 4, ... and the number of cores itself.

    >>> candidates(6)
    [1, 2, 4, 6]
    """
    return sorted({2**power for power in range(cores.bit_length())} | {cores})


def fewest_of_the_fast(speeds: Mapping[int, float]) -> int:
    """Return the smallest number of processes that is nearly as fast as the fastest.

    >>> fewest_of_the_fast({0: 95.0, 1: 80.0, 2: 100.0})
    0
    """
    return min(number for number, speed in speeds.items() if speed >= NEARLY * max(speeds.values()))


def choose_workers(
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    cores: int | None = None,
    time_limit: float = TIME_LIMIT,
    **loading: Any,
) -> tuple[int, str]:
    """Return how many loading processes to use, and a line that says why. All random states are left as they were.

    Args:
        dataset: a map-style data set.
        batch_size: samples of a batch; measured in smaller ones when they are slow.
        seed: of the order, and of what is random in a sample.
        cores: the largest number to try; None for those that this process may use.
        time_limit: seconds; what is not measured by then is not chosen.
        loading: what else `data.loader.WatchedLoader` takes, such as `worker_timeout`.

    Raises:
        LoadingError, UserError, Exception: what loading raises in training, too, see `data.loader.WatchedLoader`.
    """
    if is_in_memory(dataset):
        return 0, "Loading processes: 0, since the data set gives whole batches by itself."
    cores, deadline = cores or usable_cores(), time.monotonic() + time_limit
    with preserved_random_state():
        speeds = measure(dataset, batch_size, seed, candidates(cores), deadline, loading)
    if not speeds:
        number = min(UNMEASURED, cores)
        return number, f"Loading processes: {number}; {time_limit:g} s were not enough to measure how many are fastest."
    number = fewest_of_the_fast(speeds)
    shown = ", ".join(f"{speed:,.0f} with {number}" for number, speed in speeds.items())
    return number, f"Loading processes: {number}. Samples per second of loading alone: {shown}."


def measure(
    dataset: Dataset, batch_size: int, seed: int, numbers: Sequence[int], deadline: float, loading: Mapping[str, Any]
) -> dict[int, float]:
    """Return the samples per second by number of processes, as far as the time allows; the 0 comes with the 1."""
    keys = endless_keys(dataset, seed)

    def load(number: int, size: int, num_batches: int) -> Iterator[tuple[int, float]]:
        """Yield the size of each batch and how long it was loaded."""
        collate_fn = getattr(dataset, "collate_fn", None)
        seeded = seeded_dataset(dataset, seed) if may_be_random(dataset) else dataset
        batches = [[next(keys) for _ in range(size)] for _ in range(num_batches)]
        loader = WatchedLoader(seeded, batches, collate_fn=collate_fn, num_workers=number, seed=seed, **loading)
        loader.warn, loader.interrupt = lambda message: None, raise_after(deadline)  # the training tells of bad samples
        yield from ((len(batch.indices), batch.seconds) for batch in loader.batches())

    speeds: dict[int, float] = {}
    try:
        seconds = min(seconds for _, seconds in load(1, 1, 1 + LEAST_ROUNDS))  # of one sample
        size = max(1, min(batch_size, len(dataset), int(BATCH_SECONDS / max(seconds, 1e-9))))
        rounds = max(LEAST_ROUNDS, min(int(MEASURED_SECONDS / max(size * seconds, 1e-3)), 100))
        for number in numbers:
            batches = load(number, size, number * (1 + rounds))
            for _ in range(number):
                next(batches)
            began = time.perf_counter()
            of_batches = list(batches)
            num_samples = sum(size for size, _ in of_batches)
            if number == 1:
                speeds[0] = num_samples / max(sum(seconds for _, seconds in of_batches), 1e-9)
            speeds[number] = num_samples / (time.perf_counter() - began)
    except OutOfTime:
        pass
    return speeds


def endless_keys(dataset: Dataset, seed: int) -> Iterator[Any]:
    """What the first epoch asks for, in its order, again and again."""
    order = dataset.epoch_order(seed, 0) if hasattr(dataset, "epoch_order") else epoch_order(len(dataset), seed, 0)
    while True:
        yield from [(0, index) for index in order] if may_be_random(dataset) else order


def raise_after(deadline: float) -> Callable[[], None]:
    def check() -> None:
        if time.monotonic() > deadline:
            raise OutOfTime

    return check
