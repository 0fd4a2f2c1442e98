"""Batches of a data set that is held in memory, on the GPU where there is room: no DataLoader, no copies per sample.

A data set is loaded so when it says ``in_memory = True``, is not random, and has

    __getitems__(indices)   the collated batch of a tensor of indices, without side effects
    device, num_bytes       where its tensors are, and their size together
    to(device)              a data set with the same samples, its tensors on `device`
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import torch
from torch.utils.data import Dataset

from data.loader import Batch
from utils.batch import cut
from utils.errors import UserError

SHARE_OF_DEVICE = 0.25  # of the free memory of a GPU may hold data


def place_data(dataset: Dataset, data_device: str, device: torch.device) -> Dataset:
    """Return the data set on the device that is to hold it.

    Args:
        dataset: in memory.
        data_device: "cpu"; "cuda" for the device that trains; or "auto" for that device if a quarter of its free
            memory is enough, else for the CPU.
        device: the one that trains.

    Raises:
        UserError: for "cuda", when training runs elsewhere, or there is no room.
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


class MemorySource:
    """Gathers the batches of a sampler from a data set in memory.

    Small batches are gathered several at a time, which costs no more than one, and cut apart.

    Args:
        dataset: in memory, see above.
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
