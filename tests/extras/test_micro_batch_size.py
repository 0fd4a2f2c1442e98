"""The largest micro-batch that fits is found by halving, and the update is the same in other pieces."""

from itertools import chain

from data.loader import UpdateLoader
from extras.micro_batch_size import largest_that_fits
from tools.task import first_update


class Listed(list):
    """Samples in a batch that has no tensor."""

    is_random = False
    collate_fn = staticmethod(list)


def test_the_first_half_that_fits_is_taken():
    tried = []

    def fits(size):
        tried.append(size)
        return size <= 5

    assert largest_that_fits(24, fits) == 3 and tried == [24, 12, 6, 3]
    assert largest_that_fits(7, lambda size: False) == 0


def test_the_first_update_in_other_pieces_has_the_same_samples_in_the_same_order():
    loader = UpdateLoader(Listed(range(20)), 8, 5, seed=3)
    whole = next(loader.updates(0))
    split = first_update(loader, 8, 2)
    assert (whole.sizes, split.sizes) == ([5, 3], [2, 2, 2, 2])
    assert split.indices == whole.indices == [*chain(*split.micro_batches)] == [*chain(*whole.micro_batches)]
    assert first_update(loader, 3, 3).micro_batches == [whole.indices[:3]]
