"""Give the buffers of modules other values for a while."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor, nn


def buffers_of(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """Return all buffers, each as (owner, name, tensor)."""
    owners = [owner for module in modules for owner in module.modules()]
    return [(owner, name, buffer) for owner in owners for name, buffer in owner.named_buffers(recurse=False)]


@contextlib.contextmanager
def buffers_set(values: Iterable[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Give buffers, by owner and name, copies of these values in the block."""
    own = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    try:
        for owner, name, value in values:
            setattr(owner, name, value.clone())
        yield
    finally:
        for owner, name, value in own:
            setattr(owner, name, value)


@contextlib.contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what the block does to the buffers of modules."""
    with buffers_set(buffers_of(modules)):
        yield
