"""Networks, optimizers and schedulers belong together by their names."""

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError, nearest


def checked_optimizers(
    optimizers: Mapping[str, Optimizer], networks: Mapping[str, nn.Module]
) -> dict[str, Optimizer]:
    """Return the optimizers, if each is named after a network, and every network that is to learn is stepped by one.

    Raises:
        UserError: when a name is that of no network, or trainable parameters belong to no optimizer.
    """
    for name in optimizers:
        if name not in networks:
            raise UserError(
                f"build_optimizers() returns {name!r}, but there is no such network{nearest(name, networks)}: "
                f"there are {', '.join(networks)}."
            )
    stepped = {id(p) for optimizer in optimizers.values() for group in optimizer.param_groups for p in group["params"]}
    for name, network in networks.items():
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if trainable and not any(id(parameter) in stepped for parameter in trainable):
            raise UserError(
                f"No optimizer of build_optimizers() steps the network {name!r}. Return one of this name, or freeze "
                f"the network in build_networks(): requires_grad_(False)."
            )
    return dict(optimizers)


def checked_schedulers(
    schedulers: Mapping[str, LRScheduler], optimizers: Mapping[str, Optimizer]
) -> dict[str, LRScheduler]:
    """Return the schedulers, if each has the name of the optimizer whose rate it sets; UserError otherwise."""
    for name, scheduler in schedulers.items():
        if scheduler.optimizer is not optimizers.get(name):
            owner = next((own for own, optimizer in optimizers.items() if optimizer is scheduler.optimizer), None)
            raise UserError(
                f"build_schedulers() returns {name!r}, whose optimizer is "
                f"{'none of build_optimizers()' if owner is None else repr(owner)}{nearest(name, optimizers)}: "
                f"a scheduler has the name of its optimizer, one of {', '.join(optimizers)}."
            )
    return dict(schedulers)
