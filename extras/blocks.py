"""Find the blocks of a network, which are sharded or recomputed one at a time."""

import inspect
from collections import Counter
from collections.abc import Iterator

from torch import nn

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the modules that are sharded or recomputed one at a time: the network's children with parameters.

    A list, a dictionary or a sequence of modules stands for its modules. A module that shares a parameter with another
    one is left to the network as a whole, and so is a child that is never called, such as a list of parameters. A
    network may choose for itself: by a method `blocks()` that returns modules, none inside another, each called as a
    whole in the forward pass.
    """
    if inspect.isfunction(getattr(type(network), "blocks", None)):  # not an attribute of this name, as many have
        return list(network.blocks())
    found = list(dict.fromkeys(callable_parts(network)))
    owners = Counter(id(parameter) for part in found for parameter in part.parameters())
    owners.update(id(parameter) for parameter in network.parameters(recurse=False))
    return [part for part in found if all(owners[id(parameter)] == 1 for parameter in part.parameters())]


def callable_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that have parameters and a forward pass."""
    for child in module.children():
        if type(child) in LISTS or type(child).forward is nn.Module.forward:
            yield from callable_parts(child)
        elif any(True for _ in child.parameters()):
            yield child  # a class of its own is a block, also if it is made of a sequence
