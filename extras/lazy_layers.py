"""Give lazy layers, such as `nn.LazyLinear`, their shapes by the first batch."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from utils.batch import move_to
from utils.errors import UserError


def materialize(trainer, networks: Mapping[str, nn.Module]) -> None:
    """Compute the loss of the first training batch, in eval mode on the CPU, which draws the weights of lazy layers.

    Args:
        trainer: under construction: it has data, but no loss, and its networks are not placed yet.
        networks: by name.

    Raises:
        UserError: the task has no `compute_loss`, or that does not use all lazy layers.
    """
    device = trainer.device
    modes = [(module, module.training) for network in networks.values() for module in network.modules()]
    trainer.networks = trainer.wrapped = networks
    trainer.criterion = trainer.build_criterion()
    trainer.device = torch.device("cpu")
    trainer.evaluator = trainer.build_evaluator()  # some losses take from it what is measured, too
    loaders = trainer.build_loaders()
    try:
        update = next(iter(loaders[0].updates(0)))
        for network in networks.values():
            network.eval()
        with torch.no_grad():
            trainer.compute_loss(move_to(update.micro_batches[0], trainer.device))
    except NotImplementedError:
        raise UserError("Lazy layers take their shapes from compute_loss(batch): define it, or give sizes.") from None
    finally:
        for loader in loaders:
            loader.close()
        for module, mode in modes:
            module.training = mode
        trainer.device = device
    for name, network in networks.items():
        for layer, module in network.named_modules():
            if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
                raise UserError(f"The lazy layer {layer!r} of {name!r} gets no data in compute_loss: give its size.")
