"""The order of the data: which samples each optimizer update sees.

The order of an epoch is a function of (seed, epoch) alone. An update takes the next `batch_size` samples of that order
and may be cut into micro-batches. So a position is two numbers, (epoch, completed samples), and neither the number of
workers nor the size of the micro-batches changes the weights.

The second half of this file makes what is random inside a sample, such as an augmentation, a function of
(seed, epoch, index).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset

from engine.devices.process_group import share_of
from utils.seed import mix, seed_cpu


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """Return the permutation of 0..num_samples-1 for one epoch (counted from 0)."""
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(num_samples, generator=generator).tolist()


@dataclass
class UpdateSampler:
    """A batch sampler of PyTorch that yields the micro-batches of an epoch, from any position on.

    Args:
        total_samples: size of the data set.
        batch_size: samples in one optimizer update; the last update of an epoch takes what is left.
        micro_batch_size: samples that go through the model at once; None for the whole update.
        seed: seed of the order.
        max_updates: end an epoch after so many updates; None for all.
        keyed: yield (epoch, index) instead of index, for a `SeededDataset`.
        order: the order of an epoch as a function of (seed, epoch); None for `epoch_order`.
        share: (rank, number of processes). Each process gets a slice of every update.
        epoch, start: the position; set them before iterating.

    Attributes:
        num_samples: samples in one epoch, of all processes.

    Raises, on iterating:
        ValueError: `order` does not contain each sample once.
    """

    total_samples: int
    batch_size: int
    micro_batch_size: int | None = None
    seed: int = 0
    max_updates: int | None = None
    keyed: bool = False
    order: Callable[[int, int], Sequence[int]] | None = None
    share: tuple[int, int] = (0, 1)
    epoch: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        most = self.total_samples if self.max_updates is None else self.max_updates * self.batch_size
        self.num_samples = min(self.total_samples, most)
        self.micro_batch_size = self.micro_batch_size or self.batch_size

    def __iter__(self) -> Iterator[list]:
        order = self.order_of_epoch()
        for first in range(self.start, self.num_samples, self.batch_size):
            update = order[first : min(first + self.batch_size, self.num_samples)]
            for begin, end in self.slices(len(update)) or [(0, 1)]:
                indices = update[begin:end]
                yield [(self.epoch, index) for index in indices] if self.keyed else indices

    def __len__(self) -> int:
        return sum(max(1, len(self.slices(size))) for size in self.update_sizes())

    def order_of_epoch(self) -> Sequence[int]:
        if self.order is None:
            return epoch_order(self.total_samples, self.seed, self.epoch)
        order = self.order(self.seed, self.epoch)
        if sorted(order) != list(range(self.total_samples)):
            raise ValueError(f"The data set's epoch_order does not give each of {self.total_samples} samples once.")
        return order

    def update_sizes(self) -> list[int]:
        """Return the number of samples of each update from `start` to the end of the epoch, in all processes."""
        firsts = range(self.start, self.num_samples, self.batch_size)
        return [min(self.batch_size, self.num_samples - first) for first in firsts]

    def slices(self, update_size: int) -> list[tuple[int, int]]:
        """Return where in an update each micro-batch of this process begins and ends.

        The list is empty for a process without a sample of the update, which is smaller than the number of processes.
        Iterating yields the update's first sample in its place.
        """
        begin, end = share_of(update_size, *self.share)
        return [(b, min(b + self.micro_batch_size, end)) for b in range(begin, end, self.micro_batch_size)]

    def num_micro_batches(self, update_size: int) -> int:
        """Return how many micro-batches go through the network in each process: those of process 0, the most."""
        _, largest_share = share_of(update_size, 0, self.share[1])
        return -(-largest_share // self.micro_batch_size)


# ---- what is random inside a sample ----------------------------------------------------------------------------------
def may_be_random(dataset: Dataset) -> bool:
    """Return whether a sample may differ from time to time.

    It may unless the data set says `is_random = False`, or is a plain TensorDataset: a class derived from it may draw.
    """
    return getattr(dataset, "is_random", type(dataset) is not TensorDataset)


def seeded_dataset(dataset: Dataset, seed: int) -> "SeededDataset":
    """Wrap a random data set; its samples are then fetched by (epoch, index)."""
    return (SeededBatches if hasattr(dataset, "get_batch") else SeededDataset)(dataset, seed)


class SeededDataset(Dataset):
    """Makes what is random inside a sample a function of (seed, epoch, index), in whatever process it is loaded.

    `data.dataloader.BatchFetcher` restores the generators of the process after each batch.
    """

    is_seeded = True

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.names = getattr(dataset, "names", None)
        self.collate_fn = getattr(dataset, "collate_fn", None)
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
