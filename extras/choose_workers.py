"""Choose the number of loading processes by measuring: --num_workers auto.

Loading alone is measured with 1, 2, 4, ... processes, on the samples that the first epoch asks for. No sample is loaded
in this process: a data set may open a file at its first sample, and processes that start later must not share it. The
speed without any process is measured by the first one, on its own loading.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any

from torch.utils.data import Dataset

from data.dataloader import DataLoaderSource
from data.loader import is_in_memory
from data.sampler import BadSamples, Batch, epoch_order
from utils.seed import preserved_random_state

TIME_LIMIT = 6.0  # seconds for all numbers together
BATCH_SECONDS = 0.1  # largest time of a batch when measuring; slower samples are measured in smaller batches
MEASURED_SECONDS = 0.3  # least time of loading for each number
LEAST_ROUNDS = 3  # of batches for each process, after one that warms up
NEARLY = 0.9  # of the best speed is good enough for fewer processes
UNMEASURED = 2  # processes when one batch takes longer than the time limit


class OutOfTime(Exception):
    """The time for measuring is over."""


def usable_cores() -> int:
    """Return the cores that this process may use; a scheduler may have left it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    cores: int | None = None,
    time_limit: float = TIME_LIMIT,
    max_bad_samples: int = 0,
    **loading: Any,
) -> tuple[int, str]:
    """Return how many loading processes to use, and a line that says why. All random states are left as they were.

    Args:
        dataset: a map-style data set.
        batch_size: samples of a batch; slow ones are measured in smaller batches.
        seed: of the order, and of the random numbers of a sample.
        cores: the largest number to try; None for those that this process may use.
        time_limit: seconds; a number that is not measured by then is not chosen.
        max_bad_samples: how many bad samples are skipped, without a warning: training warns.
        loading: worker_timeout and part, see `data.dataloader.DataLoaderSource`, whose errors are raised, too.
    """
    if is_in_memory(dataset):
        return 0, "Loading processes: 0, since the data set gives whole batches by itself."
    cores = cores or usable_cores()
    deadline = time.monotonic() + time_limit
    order = dataset.epoch_order(seed, 0) if hasattr(dataset, "epoch_order") else epoch_order(len(dataset), seed, 0)
    indices = cycle(order)

    def check_time() -> None:
        if time.monotonic() > deadline:
            raise OutOfTime

    def load(number: int, size: int, num_batches: int) -> Iterator[Batch]:
        batches = [(0, list(islice(indices, size))) for _ in range(num_batches)]
        bad = BadSamples(max_bad_samples)
        bad.warn = lambda message: None
        return DataLoaderSource(dataset, batches, num_workers=number, bad=bad, seed=seed, **loading).batches(check_time)

    speeds: dict[int, float] = {}  # samples per second, by number of processes
    with preserved_random_state(), contextlib.suppress(OutOfTime):
        seconds = min(batch.seconds for batch in load(1, 1, 1 + LEAST_ROUNDS))  # of one sample
        size = max(1, min(batch_size, len(dataset), int(BATCH_SECONDS / max(seconds, 1e-9))))
        rounds = max(LEAST_ROUNDS, min(int(MEASURED_SECONDS / max(size * seconds, 1e-3)), 100))
        for number in sorted({2**power for power in range(cores.bit_length())} | {cores}):
            batches = load(number, size, number * (1 + rounds))
            for _ in range(number):
                next(batches)
            started = time.perf_counter()
            loading_seconds = [batch.seconds for batch in batches]
            if number == 1:
                speeds[0] = size * rounds / max(sum(loading_seconds), 1e-9)
            speeds[number] = size * len(loading_seconds) / (time.perf_counter() - started)
    if not speeds:
        number = min(UNMEASURED, cores)
        return number, f"Loading processes: {number}; {time_limit:g} s were not enough to measure how many are fastest."
    number = fewest_of_the_fast(speeds)
    shown = ", ".join(f"{speed:,.0f} with {number}" for number, speed in speeds.items())
    return number, f"Loading processes: {number}. Samples per second of loading alone: {shown}."


def fewest_of_the_fast(speeds: Mapping[int, float]) -> int:
    """Return the smallest number of processes that is nearly as fast as the fastest.

    >>> fewest_of_the_fast({0: 95.0, 1: 80.0, 2: 100.0})
    0
    """
    return min(number for number, speed in speeds.items() if speed >= NEARLY * max(speeds.values()))
