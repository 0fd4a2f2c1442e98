"""Keep a process in step with others that have more micro-batches of an update: it computes one of its own again.

Nothing is learned from such a batch.
"""

import copy
from typing import Any


class IdleBatches:
    """Finds batches that can be computed again.

    Args:
        loader: the `data.loader.UpdateLoader`.
    """

    def __init__(self, loader: Any):
        self.loader = loader
        self.good_batch: list = []  # the data of a batch that could be loaded

    def __call__(self, loaded: list, num_good: int, update_size: int) -> list:
        """Return as many batches as this process lacks; none when every sample of the data set is bad.

        Args:
            loaded: the batches of this process's share of an update, see `data.sampler.Batch`.
            num_good: how many of them have a sample to learn from.
            update_size: samples of the update, in all processes.
        """
        self.good_batch = [batch.data for batch in loaded if batch.num_samples][-1:] or self.good_batch
        count = len(self.loader.sampler.slices(update_size, rank=0)) - num_good  # process 0 has the most
        if count and not self.good_batch:
            self.good_batch = self.first_good_sample()
        return self.good_batch * count

    def first_good_sample(self) -> list:
        """Return [a batch of one sample], loaded in this process; [] when all are bad, or more than are allowed."""
        bad = self.loader.bad
        fetcher = copy.copy(self.loader.source.fetcher)
        fetcher.notes = list(fetcher.notes)  # its own: the notes of a loading process stay as they are
        fetcher.skip_bad = True
        for index in range(len(fetcher.dataset)):
            data, batch = fetcher.__getitems__((self.loader.sampler.epoch, [index]))
            bad.add(batch.bad)
            if batch.num_samples:
                return [data]
            if len(bad) > bad.limit:
                break
        return []
