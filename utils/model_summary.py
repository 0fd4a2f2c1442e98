"""Summarize networks: their layers, their parameters, and the memory of their training."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.batch import iterate_tensors


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
    shown = rows[: 1 + max_rows]
    name_width, type_width, shapes_width, count_width = (max(map(len, column)) for column in zip(*shown, strict=True))
    lines = [
        f"{name:<{name_width}}  {kind:<{type_width}}  {shapes:<{shapes_width}}  {count:>{count_width}}"
        for name, kind, shapes, count in shown
    ]
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown)} more layers")
    total, trainable = count_parameters(module)
    lines.append(f"total {total:,} parameters, {trainable:,} trainable")
    return "\n".join(lines)


# ---- memory ----------------------------------------------------------------------------------------------------------
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
