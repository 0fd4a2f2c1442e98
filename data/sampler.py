"""The order of the data: which samples each optimizer update sees, and which of them could be loaded.

The order of an epoch is a function of (seed, epoch) alone. An update takes the next `batch_size` samples of that order
and may be cut into micro-batches. So a position is two numbers, (epoch, completed samples), and neither the number of
workers nor the size of the micro-batches changes the weights.

Samples are counted here, by their indices, and never by the size of a tensor: a batch may have any form.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from engine.devices.process_group import share_of
from utils.errors import UserError
from utils.seed import mix


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """Return the permutation of 0..num_samples-1 for one epoch (counted from 0)."""
    return permutation(num_samples, seed, epoch).tolist()


def permutation(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Return the same as a tensor, (N,) int64, which takes a fifth of the memory of a list."""
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(num_samples, generator=generator)


@dataclass
class UpdateSampler:
    """A batch sampler of PyTorch that yields the micro-batches of an epoch, from any position on.

    A micro-batch is (epoch, indices): the epoch is a part of the seed of what is random in a sample.

    Args:
        total_samples: size of the data set.
        batch_size: samples in one optimizer update; the last update of an epoch takes what is left.
        micro_batch_size: samples that go through the model at once; None for the whole update.
        seed: seed of the order.
        max_updates: end an epoch after so many updates; None for all.
        order: the order of an epoch as a function of (seed, epoch); None for `epoch_order`.
        share: (rank, number of processes). Each process gets a slice of every update.
        epoch_size: samples of an epoch; None for all.
        epoch, start: the position; set them before iterating.

    Attributes:
        num_samples: samples in one epoch, of all processes.

    Raises:
        UserError: `order` does not contain each sample once, or with an `epoch_size` as many different ones.
    """

    total_samples: int
    batch_size: int
    micro_batch_size: int | None = None
    seed: int = 0
    max_updates: int | None = None
    order: Callable[[int, int], Sequence[int]] | None = None
    share: tuple[int, int] = (0, 1)
    epoch_size: int | None = None
    epoch: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        self.epoch_size = self.epoch_size or self.total_samples
        most = self.epoch_size if self.max_updates is None else self.max_updates * self.batch_size
        self.num_samples = min(self.epoch_size, most)
        self.micro_batch_size = self.micro_batch_size or self.batch_size
        if self.order is not None:
            self.order_of_epoch()

    def __iter__(self) -> Iterator[tuple[int, Sequence[int]]]:
        order = self.order_of_epoch()
        for first in range(self.start, self.num_samples, self.batch_size):
            update = order[first : min(first + self.batch_size, self.num_samples)].tolist()
            for begin, end in self.slices(len(update)) or [(0, 1)]:
                yield self.epoch, update[begin:end]

    def __len__(self) -> int:
        return sum(max(1, len(self.slices(size))) for size in self.update_sizes())

    def order_of_epoch(self) -> Tensor:
        if self.order is None:
            return permutation(self.total_samples, self.seed, self.epoch)
        order = torch.as_tensor(self.order(self.seed, self.epoch))
        are_indices = len(order) > 0 and order.min() >= 0 and order.max() < self.total_samples
        if not are_indices or len(order.unique()) < len(order) or len(order) < self.epoch_size:
            raise UserError(
                f"The data set's epoch_order must give each of {self.epoch_size:,} samples once: a position is a "
                f"number of samples. To see some samples more often, let the data set hold their indices more often."
            )
        return order

    def update_sizes(self) -> list[int]:
        """Return the number of samples of each update from `start` to the end of the epoch, in all processes."""
        firsts = range(self.start, self.num_samples, self.batch_size)
        return [min(self.batch_size, self.num_samples - first) for first in firsts]

    def slices(self, update_size: int, rank: int | None = None) -> list[tuple[int, int]]:
        """Return where in an update each micro-batch of a process (None: of this one) begins and ends.

        The list is empty for a process without a sample of the update, which is smaller than the number of processes.
        Iterating yields the update's first sample in its place.
        """
        own, size = self.share
        begin, end = share_of(update_size, own if rank is None else rank, size)
        firsts = list(range(begin, end, self.micro_batch_size))
        if self.micro_batch_size > 2 and len(firsts) > 1 and firsts[-1] == end - 1:
            firsts[-1] -= 1  # 4 and 1 become 3 and 2: batch normalization has no variance of a single sample
        return list(pairwise([*firsts, end])) if firsts else []


def may_be_random(dataset: Dataset) -> bool:
    """Return whether a sample may differ from time to time.

    It may unless the data set says `is_random = False`, or is a plain TensorDataset: a class derived from it may draw.
    """
    return getattr(dataset, "is_random", type(dataset) is not TensorDataset)


def sample_names(dataset: Dataset) -> Sequence[Any]:
    """Return a name for each sample: the data set's `names`, or numbers, as a range."""
    names = one_each(dataset, "names")
    return range(len(dataset)) if names is None else names


def one_each(dataset: Dataset, attribute: str) -> Sequence[Any] | None:
    """Return an attribute of a data set if it has an entry for each sample; None for all else, such as class names."""
    value = getattr(dataset, attribute, None)
    value = value.tolist() if hasattr(value, "tolist") else value  # of an array or a tensor
    is_list = hasattr(value, "__len__") and not isinstance(value, str | Mapping)
    return value if is_list and len(value) == len(dataset) else None


# ---- what was loaded -------------------------------------------------------------------------------------------------
@dataclass
class Batch:
    """The samples that were loaded for one entry of a batch sampler.

    Attributes:
        indices: the samples that the sampler asked for, in order.
        data: the collated samples; None when all of them are bad.
        bad: the samples that could not be loaded, by index, with the reason; they are not in `data`.
        error: the error that ends the run instead.
        seconds: how long the batch was loaded and collated, in the process that did it.
    """

    indices: Sequence[int]
    data: Any = None
    bad: dict[int, str] = field(default_factory=dict)
    error: UserError | None = None
    seconds: float = 0.0

    @property
    def loaded(self) -> Sequence[int]:
        """The samples in `data`, in order."""
        return [index for index in self.indices if index not in self.bad] if self.bad else self.indices

    @property
    def num_samples(self) -> int:
        """The number of samples in `data`."""
        return len(self.loaded)


class BadSamples:
    """The samples that could not be loaded, and how many of them may be skipped.

    Args:
        limit: the largest number of different samples.
        is_alone: whether one too many ends the run at once. With several processes all must count together, see
            `unite`.
        num_distinct: how many samples there are; larger indices are those again, see extras/training_samples.py.

    Attributes:
        reasons: by index, the name of the sample and its error.
        warn: called with a line for each sample, once.
    """

    def __init__(self, limit: int = 0, is_alone: bool = True, num_distinct: int = sys.maxsize):
        self.limit = limit
        self.num_distinct = num_distinct
        self.is_alone = is_alone
        self.reasons: dict[int, str] = {}
        self.warn: Callable[[str], Any] = lambda message: print(message, file=sys.stderr)

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, reasons: dict[int, str]) -> None:
        """Count samples, and warn of those that are new; UserError for one too many."""
        reasons = {index % self.num_distinct: reason for index, reason in reasons.items()}
        for index in [index for index in reasons if index not in self.reasons]:
            self.reasons[index] = reasons[index]
            if len(self) <= self.limit:
                self.warn(f"Skipped bad sample {len(self)} of {self.limit} allowed: {reasons[index]}")
            elif self.is_alone:
                self.refuse(index)

    def refuse(self, last: int) -> None:
        raise UserError(
            f"{len(self)} samples cannot be loaded, but --skip_bad_samples allows {self.limit}. "
            f"The last is {self.reasons[last]}"
        )

    def unite(self, gather: Callable[[Any], list[Any]]) -> None:
        """Count the bad samples of all processes; all must call it.

        Args:
            gather: returns the values of all processes, in the order of their ranks.

        Raises:
            UserError: in all of them, when there are too many.
        """
        if self.limit:
            for reasons in gather(self.reasons):
                self.add(reasons)
        if len(self) > self.limit:
            self.refuse(max(self.reasons))

    def state_dict(self) -> dict[str, str]:
        return {str(index): reason for index, reason in self.reasons.items()}

    def load_state_dict(self, state: dict[str, str]) -> None:
        self.reasons = {int(index): reason for index, reason in state.items()}
