"""The two loaders: `UpdateLoader` for training, `EvalLoader` for validation and test.

Both decide which samples a batch has. The batches come from a source: from tensors in memory (`MemorySource`), or from
a DataLoader (data/dataloader.py). The loader counts samples, once, by their indices: a sample that cannot be loaded is
in no count but that of the position.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import Dataset

from data.sampler import BadSamples, Batch, UpdateSampler
from engine.devices.process_group import share_of
from engine.registry import load
from utils.batch import cut
from utils.errors import UserError

SAMPLES_AT_ONCE = 1024  # gathered in memory by one call, and shared out among the updates


def is_in_memory(dataset: Dataset) -> bool:
    """Return whether batches of a data set can be gathered in memory, without a DataLoader."""
    return getattr(dataset, "in_memory", False) and not getattr(dataset, "is_random", True)


@dataclass
class Update:
    """The data of one optimizer update.

    Attributes:
        micro_batches: the collated data of this process; none when no sample of it could be loaded.
        sizes: the number of samples of each micro-batch. A micro-batch of size 0, one of the last, is idle: with
            several processes it keeps this one in step with the others, and nothing is learned from it.
        num_samples: samples of the update in all processes, including those that could not be loaded: so many does the
            position advance.
        indices: the samples of this process in order, including those that could not be loaded.
        counts: over how many elements the loss of each micro-batch is a mean; None if these are its samples.
    """

    micro_batches: list
    sizes: list[int]
    num_samples: int
    indices: list[int]
    counts: list[int] | None = None

    @property
    def num_local(self) -> int:
        """The number of samples that this process learns from."""
        return sum(self.sizes)

    @property
    def amounts(self) -> list[int]:
        """How much each micro-batch counts in the mean over the update."""
        return self.sizes if self.counts is None else self.counts


class MemorySource:
    """Gathers the batches of a sampler from a data set in memory, on the GPU where there is room.

    A data set is loaded so when it says ``in_memory = True``, is not random, and has

        __getitems__(indices)   the collated batch of a tensor of indices, without side effects
        device, num_bytes       where its tensors are, and their size together
        to(device)              a data set with the same samples, its tensors on `device`

    Small batches are gathered several at a time, which costs no more than one, and cut apart.

    Args:
        dataset: in memory.
        sampler: yields the epoch and the indices of each batch.
        batches_at_once: how many are gathered at a time.
    """

    def __init__(self, dataset: Dataset, sampler: Iterable[tuple[int, Sequence[int]]], batches_at_once: int = 1):
        self.dataset = dataset
        self.sampler = sampler
        self.batches_at_once = batches_at_once

    def batches(self, interrupt: Callable[[], None]) -> Iterator[Batch]:
        """Yield the batches. There is no waiting, so nothing calls `interrupt`."""
        wanted = iter(self.sampler)
        while group := [indices for _, indices in islice(wanted, self.batches_at_once)]:
            indices = torch.tensor(list(chain.from_iterable(group)))
            data = self.dataset.__getitems__(indices.to(self.dataset.device, non_blocking=True))
            begin = 0
            for of_batch in group:
                end = begin + len(of_batch)
                yield Batch(of_batch, data=cut(data, begin, end, len(indices)))
                begin = end


class Loader:
    """The common part of both loaders: the source of the batches, and its bad samples.

    Args:
        dataset: a map-style data set. One that may be random, see `data.sampler.may_be_random`, is seeded per sample.
            One with ``__getitems__`` and ``collate_fn`` is asked for whole batches.
        sampler: yields the epoch and the indices of each batch.
        batches_at_once: how many batches are gathered in memory by one call.
        part: the name of the data set in messages, such as "train".
        num_workers: loading processes; data in memory is loaded without a DataLoader if there are none.
        max_bad_samples: how many different samples that raise are skipped; with 0 the first one ends the run.
        share: (rank, number of processes): this process loads its share of the samples.
        report: a line for the log on how the data is loaded.
        seed, pin_memory, worker_timeout, persistent: see `data.dataloader.DataLoaderSource`.

    Attributes:
        bad: the samples that could not be loaded.
        interrupt: called about twice a second while batches are waited for; may raise, to stop.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Any,
        batches_at_once: int = 1,
        *,
        part: str = "",
        num_workers: int = 0,
        max_bad_samples: int = 0,
        share: tuple[int, int] = (0, 1),
        seed: int = 0,
        report: str = "",
        **settings: Any,
    ):
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.bad = BadSamples(max_bad_samples, share[1] == 1, getattr(dataset, "num_distinct", len(dataset)))
        self.interrupt: Callable[[], Any] = lambda: None
        self.report = report
        self.in_memory = num_workers == 0 and is_in_memory(dataset)
        if self.in_memory:
            self.source: Any = MemorySource(dataset, sampler, batches_at_once)
        else:
            from data.dataloader import DataLoaderSource

            settings |= {"num_workers": num_workers, "bad": self.bad, "part": part, "seed": seed}
            self.source = DataLoaderSource(dataset, sampler, **settings)

    def batches(self) -> Iterator[Batch]:
        """Yield every batch, including those without a good sample."""
        return self.source.batches(self.interrupt)

    def close(self) -> None:
        """End the loading processes, if there are any. They start again when batches are asked for."""
        if not self.in_memory:
            self.source.close()


class UpdateLoader(Loader):
    """Loads training data, one optimizer update at a time.

    Args:
        dataset: see `Loader`. One with ``epoch_order(seed, epoch)``, a list of all indices that depends on nothing
            else, is loaded in that order. With `epoch_size`, an epoch has so many of the samples.
        batch_size, micro_batch_size, seed, max_updates, share: see `data.sampler.UpdateSampler`.
        device: where the data is needed; to a GPU it is copied ahead, see extras/prefetch.py.
        loading: num_workers, pin_memory, worker_timeout, max_bad_samples and part, see `Loader`.

    Attributes:
        num_samples: samples in one epoch, including those that cannot be loaded.
        updates_per_epoch: how many updates load them.
        count: says over how many elements the loss of a batch is a mean; None: over its samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        max_updates: int | None = None,
        share: tuple[int, int] = (0, 1),
        device: torch.device | None = None,
        **loading: Any,
    ):
        order, epoch_size = getattr(dataset, "epoch_order", None), getattr(dataset, "epoch_size", None)
        sampler = UpdateSampler(len(dataset), batch_size, micro_batch_size, seed, max_updates, order, share, epoch_size)
        batches_per_update = max(1, len(sampler.slices(batch_size)))
        self.updates_at_once = max(1, SAMPLES_AT_ONCE // batch_size)
        settings = {"part": "train", "persistent": True, "seed": seed, "share": share} | loading
        super().__init__(dataset, sampler, batches_per_update * self.updates_at_once, **settings)
        self.num_samples = sampler.num_samples
        self.updates_per_epoch = -(-self.num_samples // batch_size)
        self.device = device or torch.device("cpu")
        self.count: Callable[[Any], int | None] | None = None
        # With several processes, the batches of one that has fewer than the others, see `Update`.
        self.idle_batches = load("extras.idle_batches:IdleBatches", "nproc")(self) if share[1] > 1 else None

    def updates(self, epoch: int, start: int = 0) -> Iterator[Update]:
        """Yield each update of `epoch` after its first `start` samples."""
        # Updates that are gathered together always are: a resumed epoch starts at the first of them. Otherwise a batch
        # would lie at another place in memory, and some matrix products round differently there.
        batch_size = self.sampler.batch_size
        self.sampler.epoch = epoch
        self.sampler.start = start - start % (batch_size * self.updates_at_once) if self.in_memory else start
        num_skipped = -(-(start - self.sampler.start) // batch_size)
        updates = islice(self.assembled(self.sampler.update_sizes()), num_skipped, None)
        if self.in_memory or self.device.type != "cuda":
            return updates
        return load("extras.prefetch:prefetched", "data_device")(updates, self.device)

    def assembled(self, update_sizes: list[int]) -> Iterator[Update]:
        """Yield updates of these sizes, assembled from the batches of the source."""
        batches = self.batches()
        for size in update_sizes:
            num_slices = len(self.sampler.slices(size))
            loaded = list(islice(batches, max(1, num_slices)))
            own = loaded[:num_slices]
            good = [batch for batch in own if batch.num_samples]
            idle = self.idle_batches(loaded, len(good), size) if self.idle_batches else []
            yield Update(
                micro_batches=[batch.data for batch in good] + idle,
                sizes=[batch.num_samples for batch in good] + [0] * len(idle),
                num_samples=size,
                indices=[index for batch in own for index in batch.indices],
                counts=self.count and [self.counted(batch) for batch in good] + [0] * len(idle),
            )

    def counted(self, batch: Any) -> int:
        """Return over how many elements the loss of a batch is a mean."""
        counted = self.count(batch.data)
        return batch.num_samples if counted is None else int(counted)


class EvalLoader(Loader):
    """Loads data for validation and test: each sample once, in order, the last batch as short as it comes.

    Iterating yields the data of each batch. Random samples are the same in every pass.

    Args:
        dataset: see `Loader`.
        batch_size: samples in one batch.
        max_batches: how many batches, of all processes, are loaded; None for all.
        share: (rank, number of processes): load a slice of the samples.
        loading: num_workers, pin_memory, worker_timeout, max_bad_samples and part, see `Loader`.

    Attributes:
        num_samples: samples in one pass, including those that cannot be loaded.
        num_in_batch: samples in the batch that iterating yielded last.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        max_batches: int | None = None,
        share: tuple[int, int] = (0, 1),
        **loading: Any,
    ):
        num_samples = len(dataset) if max_batches is None else min(len(dataset), max_batches * batch_size)
        own = range(*share_of(num_samples, *share))
        self.num_samples = len(own)
        self.num_in_batch = 0
        sampler = [(0, own[first : first + batch_size]) for first in range(0, len(own), batch_size)]
        super().__init__(dataset, sampler, share=share, **loading)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches():
            if batch.num_samples:
                self.num_in_batch = batch.num_samples
                yield batch.data

    def num_evaluated(self, totals: Callable[..., tuple[int, ...]]) -> int:
        """Return how many samples a pass had, in all processes.

        Args:
            totals: returns the sums of numbers over all processes.

        Raises:
            UserError: when too many samples of all processes together are bad, or none is good.
        """
        num_samples, num_bad = totals(self.num_samples, len(self.bad))
        if num_bad > self.bad.limit:
            raise UserError(f"{num_bad:,} samples cannot be loaded, but --skip_bad_samples allows {self.bad.limit:,}.")
        if num_bad and num_bad == num_samples:
            raise UserError(f"None of the {num_bad:,} samples to evaluate can be loaded: there is nothing to measure.")
        return num_samples - num_bad
