"""Nested batches: walk through them, cut them, and move them to a device."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def move_to(batch: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Return the batch with every tensor in it on `device`.

    Tuples, named tuples, lists and dictionaries are nested batches. Anything with a `.to` method (a tensor, a
    `PackedSequence`, an object of graphs) moves itself. Everything else is returned as it is.

    Args:
        batch: a batch of a loader.
        device: the target.
        non_blocking: do not wait for the copy. It only helps when the tensors are in pinned memory.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=non_blocking)
    if hasattr(batch, "to"):
        names = inspect.signature(batch.to).parameters
        takes_it = "non_blocking" in names or any(one.kind is one.VAR_KEYWORD for one in names.values())
        return batch.to(device, non_blocking=non_blocking) if takes_it else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: move_to(value, device, non_blocking) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return rebuilt(batch, (move_to(value, device, non_blocking) for value in batch))
    return batch


def cut(batch: Any, begin: int, end: int, num_samples: int) -> Any:
    """Return the samples from `begin` to `end` of a collated batch of `num_samples`, as views.

    Tensors with a row for each sample are sliced, and so are lists without tensors that have an entry for each, such as
    names. Anything else belongs to the batch as a whole.

    >>> cut({"inputs": {"image": torch.arange(3)}, "name": ["a", "b", "c"], "kind": "car"}, 1, 3, 3)
    {'inputs': {'image': tensor([1, 2])}, 'name': ['b', 'c'], 'kind': 'car'}
    """
    if isinstance(batch, Mapping):
        return {key: cut(value, begin, end, num_samples) for key, value in batch.items()}
    is_list = isinstance(batch, tuple | list)
    if isinstance(batch, Tensor) or (is_list and next(iterate_tensors(batch), None) is None):
        has_row_for_each = not (isinstance(batch, Tensor) and batch.ndim == 0) and len(batch) == num_samples
        return batch[begin:end] if has_row_for_each else batch
    return rebuilt(batch, (cut(value, begin, end, num_samples) for value in batch)) if is_list else batch


def rebuilt(like: tuple | list, values: Iterable[Any]) -> Any:
    """Return a tuple or list of the same type with other values; a named tuple takes its fields one by one."""
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)


def iterate_tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists, dictionaries and objects that move themselves, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from iterate_tensors(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from iterate_tensors(value)
    elif hasattr(batch, "to") and hasattr(batch, "__dict__"):
        yield from iterate_tensors(vars(batch))
