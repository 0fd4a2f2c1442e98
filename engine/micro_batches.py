"""Find the largest micro-batch that fits into memory (--micro_batch_size auto).

An update is a mean over its samples, however they are cut into micro-batches. So the size that fits can be found by
trying, and changes no result. (Batch normalization sees the micro-batch: with it the size does count.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from utils.batch import cut


def largest_that_fits(most: int, fits: Callable[[int], bool]) -> int:
    """Return the first of `most`, half of it, a quarter ... that fits; 0 if not even 1 does.

    >>> largest_that_fits(24, lambda size: size < 7)
    6
    """
    size = most
    while size and not fits(size):
        size //= 2
    return size


def split_update(update: Any, size: int) -> Any:
    """Return an update (data/loader.py) in micro-batches of at most `size` samples."""
    pieces, sizes = [], []
    for batch, count in zip(update.micro_batches, update.sizes, strict=True):
        for begin in range(0, count, size):
            end = min(begin + size, count)
            pieces.append(cut(batch, begin, end))
            sizes.append(end - begin)
    return dataclasses.replace(update, micro_batches=pieces, sizes=sizes)
