"""Small functions on batches, modules and files."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def cut(batch: Any, begin: int, end: int) -> Any:
    """The samples from `begin` to `end` of a collated batch, in the same memory.

    Every tensor is cut along its first dimension. Of what has no tensor in it, a list with an entry for each sample,
    such as their names, is cut, too; anything else belongs to the batch as a whole.

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


def move_to(batch: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Return the batch with every tensor in it on `device`.

    Tuples, named tuples, lists and dictionaries are walked through. Anything with a `.to` method (a tensor, a
    `PackedSequence`) moves itself; strings, numbers and what else there is pass through.

    Args:
        batch: what a loader yields.
        device: where to.
        non_blocking: do not wait for the copy. It helps only when the tensors are in pinned memory.
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


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return how many numbers the module has as parameters, and how many of them are trained. Shared ones count once.

    >>> count_parameters(nn.Linear(4, 2))
    (10, 10)
    """
    total = sum(parameter.numel() for parameter in module.parameters())
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return total, trainable


def layer_table(module: nn.Module, max_rows: int = 40) -> str:
    """Return a table of the layers: name, type, shapes of the parameters, number of parameters; the total below.

    A layer is a module with no children, or with parameters of its own.

    >>> print(layer_table(nn.Sequential(nn.Linear(4, 2), nn.ReLU())))
    layer  type    shapes  parameters
    0      Linear  2x4, 2          10
    1      ReLU                     0
    total 10 parameters, 10 trainable

    Args:
        module: the network.
        max_rows: layers shown; how many more there are is said in one line.
    """
    rows = [("layer", "type", "shapes", "parameters")]
    for name, layer in module.named_modules():
        own = list(layer.parameters(recurse=False))
        if own or not any(True for _ in layer.children()):
            shapes = ", ".join("x".join(map(str, parameter.shape)) or "1" for parameter in own)
            count = sum(parameter.numel() for parameter in own)
            rows.append((name or "(itself)", type(layer).__name__, shapes, f"{count:,}"))
    num_hidden = max(len(rows) - 1 - max_rows, 0)
    rows = rows[: 1 + max_rows]

    name_width, type_width, shapes_width, count_width = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{name:<{name_width}}  {kind:<{type_width}}  {shapes:<{shapes_width}}  {count:>{count_width}}"
        for name, kind, shapes, count in rows
    ]
    if num_hidden:
        lines.append(f"... and {num_hidden} more layers")
    total, trainable = count_parameters(module)
    lines.append(f"total {total:,} parameters, {trainable:,} trainable")
    return "\n".join(lines)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """In the block, what the module computes has no gradient with regard to its parameters, only to what goes in."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter in trained:
            parameter.requires_grad_()
