"""Nested batches: walk through them, count their samples, cut them, and move them to a device."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def move_to(batch: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Return the batch with every tensor in it on `device`.

    Tuples, named tuples, lists and dictionaries are nested batches. Anything with a `.to` method (a tensor, a
    `PackedSequence`) moves itself. Everything else is returned as it is.

    Args:
        batch: a batch of a loader.
        device: the target.
        non_blocking: do not wait for the copy. It only helps when the tensors are in pinned memory.
    """
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, Mapping):
        return {key: move_to(value, device, non_blocking) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        moved = [move_to(value, device, non_blocking) for value in batch]
        # A named tuple takes its fields one by one, the others take one list.
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def cut(batch: Any, begin: int, end: int) -> Any:
    """Return the samples from `begin` to `end` of a collated batch, as views.

    Every tensor is sliced along its first dimension. A list without tensors is sliced if it has an entry for each
    sample, such as their names. Anything else belongs to the batch as a whole.

    >>> cut({"inputs": {"image": torch.arange(3)}, "name": ["a", "b", "c"], "kind": "car"}, 1, 3)
    {'inputs': {'image': tensor([1, 2])}, 'name': ['b', 'c'], 'kind': 'car'}
    """

    def part_of(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[begin:end] if part.ndim else part
        if isinstance(part, Mapping):
            return {key: part_of(value) for key, value in part.items()}
        if isinstance(part, tuple | list):
            if next(iterate_tensors(part), None) is None and len(part) == count_samples(batch):
                return part[begin:end]
            mapped = [part_of(value) for value in part]
            return type(part)(*mapped) if hasattr(part, "_fields") else type(part)(mapped)
        return part

    return part_of(batch)


def count_samples(batch: Any) -> int:
    """Return the number of samples of a batch: the length of the first tensor in it that has a dimension.

    >>> count_samples({"name": ["a", "b"], "image": torch.zeros(2, 3, 8, 8)})
    2

    Raises:
        TypeError: when there is no such tensor.
    """
    for tensor in iterate_tensors(batch):
        if tensor.ndim > 0:
            return len(tensor)
    raise TypeError(
        f"Cannot count the samples of a batch of type {type(batch).__name__}: no tensor with a batch dimension in it. "
        f"Yield tensors, or tuples, lists or dictionaries of them."
    )


def iterate_tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists and dictionaries, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from iterate_tensors(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from iterate_tensors(value)
