"""Wrap a network for several devices or processes, and trade computation for memory.

How the ways differ, and what each costs in memory and time, is in docs/distributed.md.
"""

import contextlib
import inspect
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from utils.distributed import Distributed
from utils.errors import UserError

MODES = ("none", "dp", "ddp", "fsdp")
LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts that are sharded or recomputed one at a time: what has parameters among the network's children.

    Of a list, a dictionary or a sequence of modules it is what is in it. A network may know better: it can have a
    method `blocks()` that returns modules, none inside another, each called as a whole in the forward pass.
    """
    if hasattr(network, "blocks"):
        return list(network.blocks())
    found: list[nn.Module] = []
    for child in network.children():
        inner = blocks_of(child) if type(child) in LISTS else [child]  # a class of its own is a block
        found += [module for module in inner if any(True for _ in module.parameters())]
    return list(dict.fromkeys(found))


def wrap_network(
    network: nn.Module, devices: list[torch.device], parallel: str, distributed: Distributed, sync_bn: bool = False
) -> nn.Module:
    """Return what is to be called in training.

    Args:
        network: on the first of the devices.
        devices: of this process.
        parallel: "none": the network itself. "dp": one that shares each batch among `devices`; it copies the network to
            every GPU in every step, so it is simple rather than fast. "ddp": every process has the whole network, and
            the gradients are added up while they are computed (Li et al., "PyTorch Distributed", VLDB 2020). "fsdp":
            every process keeps a part of each parameter, of its gradient and of the optimizer's state, and the rest is
            fetched block by block when it is needed (Zhao et al., "PyTorch FSDP", VLDB 2023). It changes the network
            in place, whose parameters become `DTensor`, so optimizers must be built afterwards.
        distributed: the processes; with one of them "ddp" and "fsdp" are "none".
        sync_bn: batch normalization over the batches of all processes; in place.

    Raises:
        UserError: when `sync_bn` is asked for on a CPU, which torch does not have.
    """
    device = devices[0]
    if sync_bn and distributed.size > 1:
        if device.type != "cuda":
            raise UserError("--sync_bn needs GPUs: torch has no synchronised batch normalization for CPUs.")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if parallel == "dp":
        gpu_ids = [device.index for device in devices if device.type == "cuda"]
        return nn.DataParallel(network, device_ids=gpu_ids) if gpu_ids else network  # without ids it would take all
    if distributed.size == 1 or parallel == "none":
        return network
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return network  # nothing to add up
    for tensor in (*network.parameters(), *network.buffers()):
        dist.broadcast(tensor.detach(), src=0)  # the networks must begin alike, whatever seeds a task has set
    if parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (distributed.size,))
        for block in blocks_of(network):
            fully_shard(block, mesh=mesh)
        wrapped = fully_shard(network, mesh=mesh)
    else:
        ddp = nn.parallel.DistributedDataParallel
        names = ("forward_sync_buffers", "broadcast_buffers")  # of one setting; torch 2.15 warns of the older
        name = next(name for name in names if name in inspect.signature(ddp).parameters)
        # Buffers: once before each validation is enough, see `Distributed.share_buffers`. A gradient is not kept twice.
        settings = {name: False, "gradient_as_bucket_view": True}
        wrapped = ddp(network, device_ids=[device] if device.type == "cuda" else None, **settings)
    distributed.add(wrapped, is_sharded=parallel == "fsdp")
    return wrapped


@contextlib.contextmanager
def spare_buffers(module: nn.Module) -> Iterator[None]:
    """In the block the module has copies of its buffers, so that what it writes to them is forgotten afterwards."""
    places = [(m, name, buffer) for m in module.modules() for name, buffer in m.named_buffers(recurse=False)]
    for owner, name, buffer in places:
        setattr(owner, name, buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in places:
            setattr(owner, name, buffer)


def checkpoint_activations(network: nn.Module) -> nn.Module:
    """Make the network keep what enters each of its blocks instead of all that is computed in them.

    The backward pass computes it once more, with the same random numbers, and batch normalization takes its statistics
    only the first time: so the result is the same, bit for bit, for about a third more computing (Chen et al.,
    "Training Deep Nets with Sublinear Memory Cost", 2016).
    """
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    blocks = set(blocks_of(network))
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in blocks:
                contexts = lambda child=child: (contextlib.nullcontext(), spare_buffers(child))  # noqa: E731
                setattr(parent, name, checkpoint_wrapper(child, context_fn=contexts))
    return network
