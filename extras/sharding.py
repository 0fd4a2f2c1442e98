"""Shard networks between processes (FSDP): --parallel fsdp. See docs/distributed.md."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from extras.blocks import blocks_of
from extras.several_processes import SeveralProcesses


class ShardedProcesses(SeveralProcesses):
    """Several processes, of which each keeps a shard of each parameter, of its gradient and of the optimizer's state.

    The rest is fetched block by block when it is needed (Zhao et al., "PyTorch FSDP", VLDB 2023). The network is
    changed in place, and its parameters become `DTensor`, so optimizers must be built afterwards.
    """

    kind = "fsdp"
    is_sharded = True

    def parallelize(self, network: nn.Module, device: torch.device) -> nn.Module:
        mesh = init_device_mesh(device.type, (self.size,))
        for block in blocks_of(network):
            fully_shard(block, mesh=mesh)
        return fully_shard(network, mesh=mesh)

    def gradients(self, synchronize: bool) -> contextlib.AbstractContextManager:
        for network in self._wrapped:
            network.set_requires_gradient_sync(synchronize)
        return contextlib.nullcontext()

    def in_step(self, batches: Iterable[Any], before: Callable[[], Any] = lambda: None) -> Iterator[tuple[Any, bool]]:
        """Yield batches, see `Distributed.in_step`; a process without more gets padding while others have more."""
        iterator = iter(batches)
        padding = None  # the last batch, or that of another process
        while True:
            batch = next(iterator, None)
            has_batch = batch is not None
            if not self.largest(has_batch):
                return
            before()
            if padding is None and self.largest(not has_batch):
                padding = self.broadcast(batch, source=self.largest(self.rank if has_batch else -1))
            if has_batch:
                padding = batch
            yield padding, has_batch
