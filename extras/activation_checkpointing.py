"""Trade computation for memory: keep the inputs of blocks, and compute the rest again in the backward pass."""

import contextlib
import functools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from extras.blocks import blocks_of
from extras.buffers import buffers_of, buffers_set


class Recomputed:
    """A mixin before the class of a block, whose forward pass then keeps its input alone.

    The backward pass computes the rest again, with the same random numbers, and on copies of the buffers as they were.
    So batch normalization counts a batch once.
    """

    def forward(self, *inputs, **named_inputs):
        if not torch.is_grad_enabled():
            return super().forward(*inputs, **named_inputs)
        if torch.compiler.is_compiling():  # it does not compute changes of buffers again
            return checkpoint(super().forward, *inputs, use_reentrant=False, **named_inputs)
        before = [(owner, name, buffer.detach().clone()) for owner, name, buffer in buffers_of([self])]
        contexts = lambda: (contextlib.nullcontext(), buffers_set(before))  # noqa: E731
        return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=contexts, **named_inputs)

    def __reduce__(self):
        """Pickle by the class before, since `pickle` finds no class that was made at run time; a copy is made alike."""
        return rebuild, (type(self).__mro__[2],), self.__getstate__()


def rebuild(kind: type[nn.Module]) -> nn.Module:
    """Return a recomputed block of this class before its attributes are set."""
    return nn.Module.__new__(recomputed(kind))


@functools.cache
def recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})


def checkpoint_activations(network: nn.Module) -> nn.Module:
    """Let a network keep the inputs of its blocks instead of all their activations, and return it.

    The result is the same, bit for bit, for up to half as much computation again (Chen et al., "Training Deep Nets with
    Sublinear Memory Cost", 2016). The blocks change their class, so that their parameters keep their names. A network
    that was prepared before stays as it is.
    """
    for block in blocks_of(network):
        kind = type(block)
        if not issubclass(kind, Recomputed):
            block.__class__ = recomputed(kind)
    return network
