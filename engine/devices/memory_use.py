"""What the training of networks holds in the memory of this process, apart from activations.

Of a network that is cut up between processes (FSDP) it is this process's part.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.checkpoints.sharded_state import num_bytes
from utils.batch import iterate_tensors


def memory_of(networks: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> dict[str, int]:
    """Return the bytes of "parameters", "gradients" and "optimizer state"; what is shared counts once.

    There are gradients after a backward pass, and most optimizers make their state in the first step.

    >>> network = nn.Linear(4, 2)
    >>> memory_of([network], [torch.optim.AdamW(network.parameters())])
    {'parameters': 40, 'gradients': 0, 'optimizer state': 0}
    """
    optimizers = list(optimizers)
    # Those of the optimizers first: between a forward and a backward pass FSDP puts whole ones in their place.
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


def stored(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that are in memory: of a sparse one its indices and values."""
    return (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)


def memory_text(bytes_of: dict[str, int], device: torch.device) -> str:
    """Say in words, for the log, what `memory_of` returned; on a GPU also the most that was in use on it at a time.

    >>> memory_text({"parameters": 2_678_824, "gradients": 0}, torch.device("cpu"))
    'Memory of a process: parameters 2.7 MB, gradients 0.0 MB'
    """
    texts = [f"{name} {count / 1e6:,.1f} MB" for name, count in bytes_of.items()]
    if device.type == "cuda":
        texts.append(f"at most {torch.cuda.max_memory_allocated(device) / 1e6:,.1f} MB of {device} in use")
    return f"Memory of a process: {', '.join(texts)}"
