"""The averages of optimizers that make one themselves: with `train()` and `eval()`, as schedule-free ones have them.

Such an optimizer trains at a point y, where the gradients are taken, and its result is another point x, the average
(Defazio et al., "The Road Less Scheduled", 2024). Its `eval()` puts x into the weights, and its `train()` y.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class OptimizerAverage:
    """Measures and saves x beside y, in the place of `Averaging`; the training goes on from y, bit for bit.

    Args:
        networks: by name.
        optimizers: by name; those without `train()` are left alone.
    """

    is_average_of_networks = True  # its state has the networks' names, see `load_state`

    def __init__(self, networks: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]):
        self.networks = networks
        self.optimizers = [optimizer for optimizer in optimizers.values() if hasattr(optimizer, "train")]
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.is_applied = False

    def finish_update(self) -> None:
        """Do nothing: the optimizer's step has averaged."""

    def finish_epoch(self) -> None:
        """Do nothing: it is measured as it is."""

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """In the block the networks have the weights x."""
        if self.is_applied:
            yield
            return
        kept = [parameter.detach().clone() for parameter in self.parameters]
        for optimizer in self.optimizers:
            optimizer.eval()
        self.is_applied = True
        try:
            yield
        finally:
            self.is_applied = False
            for optimizer in self.optimizers:
                optimizer.train()
            with torch.no_grad():  # on the way to x and back, y was rounded
                torch._foreach_copy_(self.parameters, kept)

    def state_dict(self) -> dict[str, Any]:
        """Return x by the names that the parameters have in the networks' states."""
        ids = {id(parameter) for parameter in self.parameters}
        with self.applied():
            networks = {name: averages(network, ids) for name, network in self.networks.items()}
        return {"networks": networks, "num_averaged": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: x is made of y and the state of the optimizer."""


def averages(network: nn.Module, ids: set[int]) -> dict[str, Tensor]:
    """Return copies of the parameters with these ids, by their names."""
    named = network.state_dict(keep_vars=True).items()
    return {name: tensor.detach().clone() for name, tensor in named if id(tensor) in ids}
