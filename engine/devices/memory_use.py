"""Measure the memory of parameters, gradients and optimizer state in this process.

Of a sharded network (FSDP) it is the shard of this process.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.batch import iterate_tensors


def memory_of(networks: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> dict[str, int]:
    """Return the bytes of "parameters", "gradients" and "optimizer state"; a shared tensor counts once.

    Gradients exist after a backward pass; most optimizers make their state in the first step.

    >>> network = nn.Linear(4, 2)
    >>> memory_of([network], [torch.optim.AdamW(network.parameters())])
    {'parameters': 40, 'gradients': 0, 'optimizer state': 0}
    """
    optimizers = list(optimizers)
    # The optimizers have the shards: between a forward and a backward pass FSDP puts whole parameters into the modules.
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    frozen = [p for network in networks for p in network.parameters() if not p.requires_grad]
    parameters = list({id(p): p for p in (*trained, *frozen)}.values())
    gradients = [p.grad for p in parameters if p.grad is not None]
    states = [tensor for optimizer in optimizers for tensor in iterate_tensors(optimizer.state)]
    return {
        "parameters": num_bytes(parameters),
        "gradients": num_bytes([tensor for gradient in gradients for tensor in stored(gradient)]),
        "optimizer state": num_bytes(states),
    }


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors; of one that is sharded (a `DTensor`), those of this process's part."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def stored(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in memory: of a sparse one its indices and values."""
    return (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)


def memory_text(bytes_of: dict[str, int], device: torch.device) -> str:
    """Format the result of `memory_of` for the log; on a GPU with the peak of its memory.

    >>> memory_text({"parameters": 2_678_824, "gradients": 0}, torch.device("cpu"))
    'Memory of a process: parameters 2.7 MB, gradients 0.0 MB'
    """
    texts = [f"{name} {count / 1e6:,.1f} MB" for name, count in bytes_of.items()]
    if device.type == "cuda":
        texts.append(f"at most {torch.cuda.max_memory_allocated(device) / 1e6:,.1f} MB of {device} in use")
    return f"Memory of a process: {', '.join(texts)}"
