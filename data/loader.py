"""The two loaders: `UpdateLoader` for training, `EvalLoader` for validation and test.

Both decide which samples a batch has. The batches come from a source: from tensors in memory (`MemorySource`), or from
a DataLoader (data/dataloader.py). The loader counts samples, once, by their indices: a sample that cannot be loaded is
in no count but that of the position.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, Dataset

from data.sampler import UpdateSampler, may_be_random, seeded_dataset
from engine.devices.process_group import share_of
from utils.batch import cut
from utils.errors import UserError

SAMPLES_AT_ONCE = 1024  # gathered in memory by one call, and shared out among the updates


def is_in_memory(dataset: Dataset) -> bool:
    """Return whether batches of a data set can be gathered in memory, without a DataLoader."""
    return getattr(dataset, "in_memory", False) and not getattr(dataset, "is_random", True)


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

    indices: list[int]
    data: Any = None
    bad: dict[int, str] = field(default_factory=dict)
    error: UserError | None = None
    seconds: float = 0.0

    @property
    def loaded(self) -> list[int]:
        """The samples in `data`, in order."""
        return [index for index in self.indices if index not in self.bad] if self.bad else self.indices

    @property
    def num_samples(self) -> int:
        """The number of samples in `data`."""
        return len(self.loaded)


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
    """

    micro_batches: list
    sizes: list[int]
    num_samples: int
    indices: list[int]

    @property
    def num_local(self) -> int:
        """The number of samples that this process learns from."""
        return sum(self.sizes)


class BadSamples:
    """The samples that could not be loaded, and how many of them may be skipped.

    Args:
        limit: the largest number of different samples.
        is_alone: whether one too many ends the run at once. With several processes all must count together, see
            `unite`.

    Attributes:
        reasons: by index, the name of the sample and its error.
        warn: called with a line for each sample, once.
    """

    def __init__(self, limit: int = 0, is_alone: bool = True):
        self.limit = limit
        self.is_alone = is_alone
        self.reasons: dict[int, str] = {}
        self.warn: Callable[[str], Any] = lambda message: print(message, file=sys.stderr)

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, reasons: dict[int, str]) -> None:
        """Count samples, and warn of those that are new; UserError for one too many."""
        for index, reason in reasons.items():
            if index in self.reasons:
                continue
            self.reasons[index] = reason
            if len(self) <= self.limit:
                self.warn(f"Skipped bad sample {len(self)} of {self.limit} allowed: {reason}")
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


class MemorySource:
    """Gathers the batches of a sampler from a data set in memory, on the GPU where there is room.

    A data set is loaded so when it says ``in_memory = True``, is not random, and has

        __getitems__(indices)   the collated batch of a tensor of indices, without side effects
        device, num_bytes       where its tensors are, and their size together
        to(device)              a data set with the same samples, its tensors on `device`

    Small batches are gathered several at a time, which costs no more than one, and cut apart.

    Args:
        dataset: in memory.
        sampler: yields the indices of each batch.
        batches_at_once: how many are gathered at a time.
    """

    def __init__(self, dataset: Dataset, sampler: Iterable[list[int]], batches_at_once: int = 1):
        self.dataset = dataset
        self.sampler = sampler
        self.batches_at_once = batches_at_once

    def batches(self, interrupt: Callable[[], None]) -> Iterator[Batch]:
        """Yield the batches. There is no waiting, so nothing calls `interrupt`."""
        sampler = iter(self.sampler)
        while group := list(islice(sampler, self.batches_at_once)):
            indices = torch.tensor(list(chain.from_iterable(group)))
            data = self.dataset.__getitems__(indices.to(self.dataset.device, non_blocking=True))
            begin = 0
            for indices_of_batch in group:
                end = begin + len(indices_of_batch)
                yield Batch(indices_of_batch, data=cut(data, begin, end))
                begin = end


class Loader:
    """The common part of both loaders: the source of the batches, and its bad samples.

    Args:
        dataset: a map-style data set. One that may be random, see `data.sampler.may_be_random`, is seeded per sample.
            One with ``__getitems__`` and ``collate_fn`` is asked for whole batches.
        sampler: yields the indices of each batch, or pairs (epoch, index) of a data set that may be random.
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
        self.bad = BadSamples(max_bad_samples, is_alone=share[1] == 1)
        self.interrupt: Callable[[], Any] = lambda: None
        self.report = report
        self.in_memory = num_workers == 0 and is_in_memory(dataset)
        if self.in_memory:
            self.source: Any = MemorySource(dataset, sampler, batches_at_once)
        else:
            from data.dataloader import DataLoaderSource

            seeded = seeded_dataset(dataset, seed) if may_be_random(dataset) else dataset
            settings |= {"num_workers": num_workers, "bad": self.bad, "part": part, "seed": seed}
            self.source = DataLoaderSource(seeded, sampler, **settings)

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
            else, is loaded in that order.
        batch_size, micro_batch_size, seed, max_updates, share: see `data.sampler.UpdateSampler`.
        device: where the data is needed; to a GPU it is copied ahead, see data/prefetch.py.
        loading: num_workers, pin_memory, worker_timeout, max_bad_samples and part, see `Loader`.

    Attributes:
        num_samples: samples in one epoch, including those that cannot be loaded.
        updates_per_epoch: how many updates load them.
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
        keyed = may_be_random(dataset)
        order = getattr(dataset, "epoch_order", None)
        sampler = UpdateSampler(len(dataset), batch_size, micro_batch_size, seed, max_updates, keyed, order, share)
        batches_per_update = max(1, len(sampler.slices(batch_size)))
        self.updates_at_once = max(1, SAMPLES_AT_ONCE // batch_size)
        settings = {"part": "train", "persistent": True, "seed": seed, "share": share} | loading
        super().__init__(dataset, sampler, batches_per_update * self.updates_at_once, **settings)
        self.num_samples = sampler.num_samples
        self.updates_per_epoch = -(-self.num_samples // batch_size)
        self.device = device or torch.device("cpu")
        self.good_sample: list = []  # a batch of one sample that could be loaded

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
        from data.prefetch import prefetched

        return prefetched(updates, self.device)

    def assembled(self, update_sizes: list[int]) -> Iterator[Update]:
        """Yield updates of these sizes, assembled from the batches of the source."""
        batches = self.batches()
        for size in update_sizes:
            num_slices = len(self.sampler.slices(size))
            loaded = list(islice(batches, max(1, num_slices)))
            own = loaded[:num_slices]
            good = [batch for batch in own if batch.num_samples]
            num_idle = self.sampler.num_micro_batches(size) - len(good) if self.sampler.share[1] > 1 else 0
            idle = self.idle_batches(loaded, num_idle)
            yield Update(
                micro_batches=[batch.data for batch in good] + idle,
                sizes=[batch.num_samples for batch in good] + [0] * len(idle),
                num_samples=size,
                indices=[index for batch in own for index in batch.indices],
            )

    def idle_batches(self, loaded: list[Batch], count: int) -> list:
        """Return `count` batches of one good sample, or none when every sample of the data set is bad."""
        good = next((batch for batch in loaded if batch.num_samples), None)
        if self.sampler.share[1] > 1 and good is not None:
            self.good_sample = [cut(good.data, 0, 1)]
        if count and not self.good_sample:
            indices = range(len(self.dataset))
            keys = [(self.sampler.epoch, index) for index in indices] if self.sampler.keyed else indices
            self.good_sample = self.source.first_good_sample(keys)
        return self.good_sample * count


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
        order: Sequence[Any] = range(*share_of(num_samples, *share))
        self.num_samples = len(order)
        if may_be_random(dataset):
            order = [(0, index) for index in order]
        super().__init__(dataset, BatchSampler(order, batch_size, drop_last=False), share=share, **loading)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        return (batch.data for batch in self.batches() if batch.num_samples)


def num_evaluated(loader: Any, totals: Callable[..., tuple[int, ...]] = lambda *counts: counts) -> int:
    """Return how many samples a pass over an evaluation loader had, in all processes.

    Args:
        loader: an `EvalLoader`; any other iterable has 0 samples, since nobody counts them.
        totals: returns the sums of numbers over all processes.

    Raises:
        UserError: when too many samples of all processes together are bad, or none is good.
    """
    bad = getattr(loader, "bad", BadSamples())
    num_samples, num_bad = totals(getattr(loader, "num_samples", 0), len(bad))
    if num_bad > bad.limit:
        raise UserError(f"{num_bad:,} samples cannot be loaded, but --skip_bad_samples allows {bad.limit:,}.")
    if num_bad and num_bad == num_samples:
        raise UserError(f"None of the {num_bad:,} samples to evaluate can be loaded: there is nothing to measure.")
    return num_samples - num_bad
