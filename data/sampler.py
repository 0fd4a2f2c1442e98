"""The order of the data: which samples each optimizer update sees.

The order of an epoch is a function of (seed, epoch) alone, also where a data set has an order of its own. An update
takes the next `batch_size` samples of that order and may be cut into micro-batches. So a position is two numbers,
(epoch, samples done), and neither the number of workers nor the size of the micro-batches changes what is learned.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset

from data.loader import WatchedLoader
from data.prefetch import prefetched
from data.watched import WatchedDataset
from engine.devices.process_group import share_of
from utils.batch import cut
from utils.seed import mix, seed_cpu


def epoch_permutation(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of 0..num_samples-1 for one epoch (counted from 0), (num_samples,) int64."""
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(mix(seed, epoch)))


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """The same as a list."""
    return epoch_permutation(num_samples, seed, epoch).tolist()


class UpdateSampler:
    """A batch sampler that gives the micro-batches of an epoch from any position on.

    Args:
        num_samples: size of the data set.
        batch_size: samples in one optimizer update; the last update of an epoch takes what is left.
        micro_batch_size: samples that go through the model at once; None for the whole update.
        seed: seed of the order.
        max_updates: end an epoch after so many updates; None for all.
        keyed: give (epoch, index) instead of index, for a `SeededDataset`.
        order: the order of an epoch as a function of (seed, epoch); None for `epoch_order`.
        share: (rank, number of processes): give what this process learns from. Each takes a slice of every update, and
            all get equally many micro-batches, as they go through the network together. Who would have fewer gets the
            first sample of the update in their place, which does not count.

    Raises, on iterating:
        ValueError: `order` does not give each sample once.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        max_updates: int | None = None,
        keyed: bool = False,
        order: Callable[[int, int], Sequence[int]] | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.num_samples = num_samples if max_updates is None else min(num_samples, max_updates * batch_size)
        self.total_samples = num_samples
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size or batch_size
        self.seed = seed
        self.keyed = keyed
        self.order = order
        self.share = share
        self.epoch = 0
        self.start = 0

    def update_sizes(self) -> list[int]:
        """The number of samples of each update from `start` to the end of the epoch."""
        return [
            min(self.batch_size, self.num_samples - first)
            for first in range(self.start, self.num_samples, self.batch_size)
        ]

    def num_micro_batches(self, update_size: int) -> int:
        _, largest_share = share_of(update_size, 0, self.share[1])  # that of process 0
        return -(-largest_share // self.micro_batch_size)

    def pieces(self, update_size: int) -> list[tuple[int, int]]:
        """Where in an update each micro-batch of this process begins and ends, without those that do not count."""
        begin, end = share_of(update_size, *self.share)
        return [(b, min(b + self.micro_batch_size, end)) for b in range(begin, end, self.micro_batch_size)]

    def __len__(self) -> int:
        return sum(self.num_micro_batches(size) for size in self.update_sizes())

    def order_of_epoch(self) -> Sequence[int]:
        if self.order is None:
            return epoch_order(self.total_samples, self.seed, self.epoch)
        order = self.order(self.seed, self.epoch)
        if sorted(order) != list(range(self.total_samples)):
            raise ValueError(f"The data set's epoch_order does not give each of {self.total_samples} samples once.")
        return order

    def __iter__(self) -> Iterator[list]:
        order = self.order_of_epoch()
        first = self.start
        for size in self.update_sizes():
            update = order[first : first + size]
            first += size
            pieces = self.pieces(size)
            for begin, end in pieces + [(0, 1)] * (self.num_micro_batches(size) - len(pieces)):
                micro_batch = update[begin:end]
                yield [(self.epoch, index) for index in micro_batch] if self.keyed else micro_batch


class SeededDataset(Dataset):
    """Makes what is random inside a sample a function of (seed, epoch, index), wherever the sample is made.

    Fetched by (epoch, index). `WatchedDataset` restores the generators of the process after each batch.
    """

    is_seeded = True

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.names = getattr(dataset, "names", None)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        seed_cpu(mix(self.seed, epoch, index))
        return self.dataset[index]


class SeededBatches(SeededDataset):
    """The same for a data set that makes whole batches itself: its `get_batch(keys, seed)` seeds each sample."""

    def __getitems__(self, keys: list[tuple[int, int]]) -> Any:
        return self.dataset.get_batch(keys, self.seed)


def may_be_random(dataset: Dataset) -> bool:
    """Whether a sample may differ from time to time: unless a data set says `is_random = False`, or is plain tensors.

    A class derived from TensorDataset may well draw random numbers.
    """
    return getattr(dataset, "is_random", type(dataset) is not TensorDataset)


def seeded_dataset(dataset: Dataset, seed: int) -> SeededDataset:
    return (SeededBatches if hasattr(dataset, "get_batch") else SeededDataset)(dataset, seed)


@dataclass
class Update:
    """What one optimizer update learns from.

    Attributes:
        micro_batches: the collated data of this process; none when no sample of it could be loaded.
        indices: its samples in order, those that could not be loaded included.
        num_samples: samples of the update in all processes, those that could not be loaded included: they count for
            the position.
        num_idle: micro-batches, the last ones, that only keep this process in step with the others.
        sizes: the number of samples of each micro-batch that are learned from; 0 for the idle ones.
    """

    micro_batches: list
    indices: list[int]
    num_samples: int
    num_idle: int = 0
    sizes: list[int] = field(default_factory=list)

    @property
    def num_local(self) -> int:
        """The number of samples that this process learns from."""
        return sum(self.sizes)


class UpdateLoader(WatchedLoader):
    """Loads training data one optimizer update at a time.

    Args:
        dataset: a map-style data set. One that is not random, see `may_be_random`, is not seeded per sample; one with
            ``__getitems__`` and ``collate_fn`` is asked for whole batches; one with ``epoch_order(seed, epoch)``, a
            list of all indices that depends on nothing else, is taken in that order.
        batch_size, micro_batch_size, seed, max_updates, share: see `UpdateSampler`.
        num_workers, pin_memory, worker_timeout, max_bad_samples, part: see `data.loader.WatchedLoader`.
        device: where the data is needed; to a GPU it is copied ahead, see data/prefetch.py.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        max_updates: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        worker_timeout: float = 300,
        max_bad_samples: int = 0,
        part: str = "train",
        device: torch.device | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        is_random, order = may_be_random(dataset), getattr(dataset, "epoch_order", None)
        self.device = device
        self.spare: list = []  # a batch of one sample that could be loaded
        super().__init__(
            seeded_dataset(dataset, seed) if is_random else dataset,
            UpdateSampler(len(dataset), batch_size, micro_batch_size, seed, max_updates, is_random, order, share),
            collate_fn=getattr(dataset, "collate_fn", None),
            num_workers=num_workers,
            persistent=True,
            pin_memory=pin_memory,
            worker_timeout=worker_timeout,
            max_bad_samples=max_bad_samples,
            part=part,
            seed=seed,
        )
        self.is_alone = share[1] == 1

    @property
    def num_samples(self) -> int:
        """Samples in one epoch, those that cannot be loaded included."""
        return self.sampler.num_samples

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.num_samples // self.sampler.batch_size)

    def updates(self, epoch: int, start: int = 0) -> Iterator[Update]:
        """Yield each update of `epoch`, leaving out its first `start` samples."""
        self.sampler.epoch, self.sampler.start = epoch, start
        updates = self.of_batches(self.sampler.update_sizes())
        is_for_gpu = self.device is not None and self.device.type == "cuda"
        return prefetched(updates, self.device) if is_for_gpu else updates

    def of_batches(self, sizes: list[int]) -> Iterator[Update]:
        """Put batches together to updates of these sizes."""
        batches = self.batches() if sizes else iter(())
        for size in sizes:
            parts, num_own = list(islice(batches, self.sampler.num_micro_batches(size))), len(self.sampler.pieces(size))
            own, idle = parts[:num_own], parts[num_own:]
            data = [batch.data for batch in own if batch.given]
            idle = self.idle_batches(data, idle, len(parts) - len(data)) if self.sampler.share[1] > 1 else []
            local_sizes = [batch.num_samples for batch in own if batch.given] + [0] * len(idle)
            indices = [index for batch in own for index in batch.indices]
            yield Update([*data, *idle], indices, size, len(idle), local_sizes)

    def idle_batches(self, data: list, idle: list, count: int) -> list:
        """What goes through the network in the place of micro-batches that this process lacks: one good sample."""
        good = [*data, *(batch.data for batch in idle if batch.given), *self.spare]
        if count and not good:
            good = self.first_good_sample()
        self.spare = [cut(good[0], 0, 1)] if good else []
        return self.spare * count

    def first_good_sample(self) -> list:
        """[a batch of one sample], loaded in this process; [] when all are bad, or more than are allowed."""
        one_by_one = WatchedDataset(self.dataset, self.watched.collate_fn, self.part, skip_bad=True, num_workers=0)
        for index in range(len(self.dataset)):
            data, batch = one_by_one.__getitems__([(self.sampler.epoch, index) if self.sampler.keyed else index])
            self.count(batch.bad)
            if batch.given or len(self.bad) > self.max_bad_samples:
                return [data] if batch.given else []
        return []
