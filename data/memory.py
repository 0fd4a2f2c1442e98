"""Loaders of data that is held in memory, on the GPU where it has room: batches are cut from it at once.

A data set can be loaded so when it says ``in_memory = True`` and has

    __getitems__(indices)   the collated batch of a tensor of indices, always the same; without side effects
    device, num_bytes       where its tensors are, and how large they are together
    to(device)              a data set with the same samples, its tensors on `device`
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset

from data.sampler import Update, UpdateSampler, epoch_permutation
from data.watched import Batch
from engine.devices.process_group import share_of
from utils.batch import cut
from utils.errors import UserError

SAMPLES_AT_ONCE = 1024  # are gathered by one call, and shared out among the batches
SHARE_OF_DEVICE = 0.25  # of what is free on a GPU may be data


def is_in_memory(dataset: Dataset) -> bool:
    """Whether a data set can be loaded by the classes of this file."""
    return getattr(dataset, "in_memory", False) and not getattr(dataset, "is_random", True)


def place_data(dataset: Dataset, data_device: str, device: torch.device) -> Dataset:
    """Return the data set where it is to be held.

    Args:
        dataset: in memory.
        data_device: "cpu"; "cuda" for the device that trains; or "auto" for that device if a quarter of what is free
            there is enough, else for the CPU.
        device: the one that trains.

    Raises:
        UserError: when "cuda" is asked for, and it trains elsewhere or has no room.
    """
    if data_device == "cpu" or (data_device == "auto" and device.type != "cuda"):
        return dataset
    if device.type != "cuda":
        raise UserError(f"--data_device cuda: the run computes on {device.type}. Give --data_device auto.")
    free, _ = torch.cuda.mem_get_info(device)
    if dataset.num_bytes <= SHARE_OF_DEVICE * free:
        return dataset.to(device)
    if data_device == "auto":
        return dataset
    raise UserError(
        f"--data_device cuda: {dataset.num_bytes:,} bytes of data are more than a quarter of the {free:,} that are "
        f"free on {device}. Give --data_device auto."
    )


class MemoryLoader:
    """Gives the batches of a part of the data in order, as `data.loader.WatchedLoader` does, without its machinery.

    Args:
        dataset: in memory, see above.
        batch_size: samples in a batch; the last one takes what is left.
        max_batches: end after so many; None for all.
        share: (rank, number of processes): give what this process evaluates.

    Attributes:
        num_samples: that are given.
        warn, interrupt: as in `WatchedLoader`; not needed here, since no sample is bad and nothing is waited for.
    """

    num_bad = 0
    report = ""  # a line for the log on how the data is loaded
    warn: Callable[[str], Any] = staticmethod(print)
    interrupt: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(
        self, dataset: Dataset, batch_size: int, max_batches: int | None = None, share: tuple[int, int] = (0, 1)
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        num_samples = len(dataset) if max_batches is None else min(len(dataset), max_batches * batch_size)
        self.begin, self.end = share_of(num_samples, *share)
        self.num_samples = self.end - self.begin

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        return (batch.data for batch in self.batches())

    def batches(self) -> Iterator[Batch]:
        """Yield the batches, with the indices of their samples."""
        for begin in range(self.begin, self.end, self.batch_size):
            end = min(begin + self.batch_size, self.end)
            data = self.dataset.__getitems__(torch.arange(begin, end, device=self.dataset.device))
            yield Batch(list(range(begin, end)), data=data)


class MemoryUpdateLoader:
    """Gives training data one optimizer update at a time, as `data.sampler.UpdateLoader` does, in the same order.

    The samples of several updates are gathered at once, which for small batches costs no more than those of one. A
    resumed epoch begins with the gathering that its first update was a part of, so that each batch lies in memory as
    it would have without the interruption: some matrix products round differently when it does not.

    Args:
        dataset: in memory, see above.
        batch_size, micro_batch_size, seed, max_updates, share: see `data.sampler.UpdateSampler`.
    """

    num_bad = 0
    report = ""  # a line for the log on how the data is loaded
    warn: Callable[[str], Any] = staticmethod(print)
    interrupt: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        max_updates: int | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.dataset = dataset
        self.sampler = UpdateSampler(len(dataset), batch_size, micro_batch_size, seed, max_updates, share=share)

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        return self.sampler.num_samples

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.num_samples // self.sampler.batch_size)

    def state_dict(self) -> dict[str, str]:
        return {}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """There is nothing to take back: bad samples are what other loaders remember."""

    def unite_bad(self, gather: Callable[[Any], list[Any]]) -> None:
        """No sample is bad here."""

    def updates(self, epoch: int, start: int = 0) -> Iterator[Update]:
        """Yield each update of `epoch`, leaving out its first `start` samples."""
        batch_size, share = self.sampler.batch_size, self.sampler.share
        at_once = max(1, SAMPLES_AT_ONCE // batch_size) * batch_size
        order = epoch_permutation(len(self.dataset), self.sampler.seed, epoch)[: self.num_samples]
        on_device = order.to(self.dataset.device)
        for first in range(start // at_once * at_once, self.num_samples, at_once):
            begins = range(first, min(first + at_once, self.num_samples), batch_size)
            updates = [on_device[begin : begin + batch_size] for begin in begins]
            # Of a share without a sample, the update's first one, which keeps this process in step with the others.
            shares = [share_of(len(update), *share) for update in updates]
            slices = [update[b:e] if b < e else update[:1] for update, (b, e) in zip(updates, shares, strict=True)]
            is_whole = share[1] == 1
            data = self.dataset.__getitems__(on_device[first : first + at_once] if is_whole else torch.cat(slices))
            place = 0  # in the data
            for begin, update, taken in zip(begins, updates, slices, strict=True):
                if begin >= start:
                    yield self.cut_update(data, place, order[begin : begin + len(update)])
                place += len(taken)

    def cut_update(self, data: Any, place: int, indices: torch.Tensor) -> Update:
        """The update of these samples, of which this process's begin at `place` in the data."""
        size, sampler = len(indices), self.sampler
        begin, end = share_of(size, *sampler.share)
        pieces = [(place + b - begin, place + e - begin) for b, e in sampler.pieces(size)]
        num_idle = sampler.num_micro_batches(size) - len(pieces)
        micro_batches = [cut(data, *piece) for piece in (*pieces, *[(place, place + 1)] * num_idle)]
        sizes = [e - b for b, e in pieces] + [0] * num_idle
        return Update(micro_batches, indices[begin:end].tolist(), size, num_idle, sizes)
