"""Measure the gradients of each layer, to see where they vanish or explode."""

import torch
from torch import nn


def gradient_norms(network: nn.Module, depth: int | None = None) -> dict[str, torch.Tensor]:
    """Return the Euclidean norm of the gradients of each layer, as scalars on the device.

    Reading them with `.item()` waits for a GPU; `torch.stack([*norms.values()]).tolist()` waits once for all.

    Args:
        network: after a backward pass. Parameters without a gradient are left out.
        depth: number of parts of a parameter's name that name its layer: "encoder.0.conv.weight" with 2 is
            "encoder.0"; None takes all but the last.

    >>> network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    >>> network(torch.ones(1, 1)).sum().backward()
    >>> [*gradient_norms(network)]
    ['0', '1']
    """
    layers: dict[str, list[torch.Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            parts = name.split(".")[:-1] or [name]
            grad = parameter.grad.detach()
            layers.setdefault(".".join(parts[:depth]), []).append(grad.to_dense() if grad.is_sparse else grad)
    return {
        name: torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in grads]).norm()
        for name, grads in layers.items()
    }
