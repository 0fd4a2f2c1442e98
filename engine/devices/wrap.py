"""Wrap a network for several devices or processes, and trade computation for memory.

How the ways differ, and what each costs in memory and time, is in docs/distributed.md.
"""

import contextlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.devices.process_group import Distributed
from utils.errors import UserError

MODES = ("none", "dp", "ddp", "fsdp")
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


def wrap_network(
    network: nn.Module, devices: list[torch.device], parallel: str, distributed: Distributed, sync_bn: bool = False
) -> nn.Module:
    """Return the module that is called in training.

    Args:
        network: on the first of the devices.
        devices: of this process.
        parallel: "none": the network itself. "dp": one that shares each batch among `devices`; it copies the network to
            every GPU in every step, so it is simple rather than fast. "ddp": every process has the whole network, and
            the gradients are added up while they are computed (Li et al., "PyTorch Distributed", VLDB 2020). "fsdp":
            every process keeps a shard of each parameter, of its gradient and of the optimizer's state, and the rest is
            fetched block by block when it is needed (Zhao et al., "PyTorch FSDP", VLDB 2023). It changes the network
            in place, whose parameters become `DTensor`, so optimizers must be built afterwards.
        distributed: the processes; with one of them "ddp" and "fsdp" are "none".
        sync_bn: batch normalization over the batches of all processes; in place.

    Raises:
        UserError: `sync_bn` on a CPU, which torch does not support.
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
        before = [(m, name, b.detach().clone()) for m in self.modules() for name, b in m.named_buffers(recurse=False)]
        contexts = lambda: (contextlib.nullcontext(), buffers_set(before))  # noqa: E731
        return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=contexts, **named_inputs)


@contextlib.contextmanager
def buffers_set(values: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Give buffers, by module and name, these values in the block."""
    own = [(module, name, getattr(module, name)) for module, name, _ in values]
    try:
        for module, name, value in values:
            setattr(module, name, value.clone())  # the backward pass may come more than once
        yield
    finally:
        for module, name, value in own:
            setattr(module, name, value)


@contextlib.contextmanager
def buffers_kept(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what the block does to the buffers of networks."""
    modules = [module for network in networks for module in network.modules()]
    with buffers_set([(module, name, b) for module in modules for name, b in module.named_buffers(recurse=False)]):
        yield


def checkpoint_activations(network: nn.Module) -> nn.Module:
    """Let a network keep the inputs of its blocks instead of all their activations, and return it.

    The result is the same, bit for bit, for up to half as much computation again (Chen et al., "Training Deep Nets with
    Sublinear Memory Cost", 2016). The blocks change their class, so that their parameters keep their names. A network
    that was prepared before stays as it is.
    """
    for block in blocks_of(network):
        kind = type(block)
        if not issubclass(kind, Recomputed):
            block.__class__ = type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})
    return network
