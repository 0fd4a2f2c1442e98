"""A network for tables, and what lets a network predict a number in its own unit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        n_channels: the number of inputs.
        n_classes: the number of outputs.
        width: units of a hidden layer.
        depth: number of hidden layers; 0 for a linear model.
        dropout: share of the hidden units that are dropped in training, 0 to 1.
    """

    def __init__(self, n_channels: int, n_classes: int, width: int = 64, depth: int = 2, dropout: float = 0.0):
        super().__init__()
        layers: list[nn.Module] = []
        size = n_channels
        for _ in range(depth):
            layers += [nn.Linear(size, width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, n_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs (N, n_classes) of inputs (N, n_channels)."""
        return self.layers(inputs)


def to_unit(network: nn.Module, arguments: Any, outputs: Tensor) -> Tensor:
    """Return outputs (N, 1) in the unit of the target; a forward hook."""
    return outputs.float() * network.target_std + network.target_mean


def predict_in_unit(networks: Mapping[str, nn.Module], target: Mapping[str, float]) -> None:
    """Make networks predict numbers whose mean and standard deviation are those of the training part.

    A network that is not trained yet then predicts about the mean, and learns as fast whatever the unit is.
    """
    for network in networks.values():
        network.register_buffer("target_mean", torch.tensor(float(target["mean"])), persistent=False)
        network.register_buffer("target_std", torch.tensor(float(target["std"])), persistent=False)
        network.register_forward_hook(to_unit)


class ScaledLoss(nn.Module):
    """A loss of numbers in standard deviations of the target: its gradient does not depend on the unit.

    Args:
        loss: of outputs and targets (N, 1), such as `nn.MSELoss`; the mean over a batch.
        std: the standard deviation of the target in the training part.
    """

    def __init__(self, loss: nn.Module, std: float):
        super().__init__()
        self.loss = loss
        self.std = std

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs / self.std, targets / self.std)
