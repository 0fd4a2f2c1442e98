"""The plain mean of the weights at the ends of epochs (--swa_start).

Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018. The mean is that of torch's
`AveragedModel`, and its running statistics are those of torch's `update_bn`, bit for bit.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_swa_multi_avg_fn

from extras.averaging import Averaging, local
from extras.buffers import buffers_kept
from trainer import TrainerBase
from utils.batch import move_to
from utils.errors import UserError
from utils.seed import preserved_random_state


class MeanOverEpochs(Averaging):
    """Averages the weights at the ends of the epochs, from --swa_start on, counted from 1.

    The mean gets running statistics of batch normalization of its own, by a pass over the training data.

    Args:
        trainer: whose networks are averaged.

    Raises:
        UserError: --max_updates ends the run before that epoch, or the task has no compute_loss for that pass.
    """

    def __init__(self, trainer):
        super().__init__(trainer.networks, decay=0.0)
        self.trainer = trainer
        self.last_update = 0  # after which the mean took the weights in
        self._average = get_swa_multi_avg_fn()
        for place in self._places:
            place.is_averaged &= isinstance(place.tensor, nn.Parameter)
        opt = trainer.opt
        if opt.max_updates and not opt.resume:  # a resumed run may have had shorter epochs
            last = -(-opt.max_updates // trainer.train_loader.updates_per_epoch)
            if opt.swa_start > last:
                raise UserError(
                    f"--swa_start {opt.swa_start} is after the last epoch: --max_updates {opt.max_updates} ends in "
                    f"epoch {last}."
                )
        if layers_with_statistics(trainer.networks) and type(trainer).compute_loss is TrainerBase.compute_loss:
            raise UserError("--swa_start measures batch normalization with compute_loss(batch), which this task lacks.")

    def finish_update(self) -> None:
        """Do nothing: the mean is over epochs."""

    def finish_epoch(self) -> None:
        """Take in the weights at the end of an epoch, and measure batch normalization; all processes call it.

        Called again after a run was interrupted in the validation, it adds nothing.
        """
        progress, distributed = self.trainer.progress, self.trainer.distributed
        if progress.current_epoch < self.trainer.opt.swa_start:
            return
        if self.last_update != progress.update:
            self._add()
            self.last_update = progress.update
        with self.applied():
            measure_statistics(self.networks, self.forward_epoch, distributed.sum if distributed.size > 1 else None)
            torch._foreach_copy_(local(self._averages), self._live())

    @torch.no_grad()
    @preserved_random_state()
    def forward_epoch(self) -> None:
        """Send the training data of this epoch through the networks, without gradients, for batch normalization."""
        trainer = self.trainer
        for update in trainer.train_loader.updates(trainer.progress.epoch):
            trainer.session.should_stop(at_once=True)  # raises on a signal
            for batch, size in zip(update.micro_batches, update.sizes, strict=True):
                is_padding = size == 0  # it only keeps this process in step with the others
                undo = buffers_kept(self.networks.values()) if is_padding else nullcontext()
                with undo, trainer.precision.autocast():
                    trainer.compute_loss(move_to(batch, trainer.device))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"last_update": self.last_update}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.last_update = int(state["last_update"])


def layers_with_statistics(networks: Mapping[str, nn.Module]) -> list[_BatchNorm]:
    """Return the batch normalization whose running statistics training changes; frozen layers are in eval mode."""
    modules = (module for network in networks.values() for module in network.modules())
    layers = [module for module in modules if isinstance(module, _BatchNorm)]
    return [layer for layer in layers if layer.training and layer.running_mean is not None]


def measure_statistics(
    networks: Mapping[str, nn.Module], forward_epoch: Callable[[], None], add_up: Callable[[Tensor], Tensor] | None
) -> None:
    """Measure the running statistics of batch normalization in a pass over the training data.

    As `torch.optim.swa_utils.update_bn` does: the plain mean over the batches, each seen in train mode. Afterwards all
    processes have the mean over the batches of all. Other buffers stay as they were.
    """
    layers = layers_with_statistics(networks)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    others = {module for network in networks.values() for module in network.modules()} - set(layers)
    kept = [(m, name, buffer.clone()) for m in others for name, buffer in m.named_buffers(recurse=False)]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
        forward_epoch()
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, name, buffer in kept:
            setattr(module, name, buffer)
    if add_up is None:
        return
    for layer in layers:
        count = layer.num_batches_tracked.clone()
        layer.num_batches_tracked.copy_(add_up(count))
        for statistic in (layer.running_mean, layer.running_var):
            statistic.copy_(add_up(statistic * count) / layer.num_batches_tracked)
