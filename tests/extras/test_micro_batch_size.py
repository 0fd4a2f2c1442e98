"""The largest micro-batch that fits is found by halving, and a split update is the same update."""

import torch

from data.loader import Update
from extras.micro_batch_size import largest_that_fits, split_update


def test_the_first_half_that_fits_is_taken():
    tried = []

    def fits(size):
        tried.append(size)
        return size <= 5

    assert largest_that_fits(24, fits) == 3 and tried == [24, 12, 6, 3]
    assert largest_that_fits(7, lambda size: False) == 0


def test_a_split_update_has_the_same_samples_in_the_same_order():
    batches = [(torch.arange(0, 5), ["a"] * 5), (torch.arange(5, 8), ["b"] * 3)]
    update = Update(batches, sizes=[5, 3], num_samples=8, indices=list(range(8)))
    split = split_update(update, 2)
    assert split.sizes == [2, 2, 1, 2, 1] and split.num_local == 8
    assert torch.cat([inputs for inputs, _ in split.micro_batches]).tolist() == list(range(8))
    assert [len(names) for _, names in split.micro_batches] == split.sizes
