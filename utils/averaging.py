"""Averages of the weights: over updates (EMA) or over epochs (SWA).

They are measured and saved beside the weights that training goes on with. The averaging itself is torch's own
(`get_ema_multi_avg_fn` and `get_swa_multi_avg_fn` of `torch.optim.swa_utils`), and the result is that of its
`AveragedModel`, bit for bit. But the averages are put into the networks while these are measured, so no second network
is needed, and one that is compiled or sharded between processes will do.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from utils.errors import UserError


@dataclass(eq=False)
class Place:
    """Where a tensor of a network's state stands."""

    network: str
    names: list[str]  # in the network's state; several when modules share it
    owner: nn.Module
    attribute: str
    is_averaged: bool  # or else the average has the last one

    @property
    def tensor(self) -> Tensor:
        return getattr(self.owner, self.attribute)


class Averaging:
    """Averages the parameters of networks, and the running statistics of their normalization layers.

    Other buffers are no part of it: while the averages are measured, these are the networks' own. They may be infinite
    or change their size, and only their owner knows whether they have a mean.

    Args:
        networks: by name, on their device and wrapped.
        ema: an exponential moving average over the updates, which keeps this much of itself in each, from 0 to below 1
            (Polyak and Juditsky 1992). The running statistics are averaged, too.
        swa_start: the plain mean of the weights at the ends of the epochs, from this one on, counted from 1 (Izmailov
            et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018). They then get running
            statistics of their own, by a pass over the training data.

    Attributes:
        num_averaged: updates, or epochs, that were averaged.
    """

    def __init__(self, networks: Mapping[str, nn.Module], ema: float | None = None, swa_start: int | None = None):
        assert (ema is None) != (swa_start is None), "one kind of average"
        self.networks = networks
        self.swa_start = swa_start
        self.num_averaged = 0
        self.last_update = 0  # after which the mean over epochs took the weights in
        self._average = get_swa_multi_avg_fn() if ema is None else get_ema_multi_avg_fn(ema)
        self._is_applied = False
        self._places = find_places(networks, with_statistics=ema is not None)
        self._averages = [place.tensor.detach().clone() for place in self._places]

    # ---- average -------------------------------------------------------------------------------------------------
    def finish_update(self) -> None:
        """Take in the weights after an update."""
        if self.swa_start is None:
            self._add()

    def is_due(self, epoch: int) -> bool:
        """Return whether the weights at the end of this epoch, counted from 1, go into a mean over epochs."""
        return self.swa_start is not None and epoch >= self.swa_start

    def finish_epoch(
        self, update: int, forward_epoch: Callable[[], None], add_up: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Add the weights at the end of an epoch, and measure batch normalization with the mean; all processes call it.

        Called again after a run was interrupted in the validation, it adds nothing.

        Args:
            update: number of completed updates.
            forward_epoch: sends the training data of the epoch through the networks once.
            add_up: sums a tensor over all processes; None with one process.
        """
        if self.last_update != update:
            self._add()
            self.last_update = update
        with self.applied():
            measure_statistics(self.networks, forward_epoch, add_up)
            torch._foreach_copy_(local(self._averages), self._live())

    @torch.no_grad()
    def _add(self) -> None:
        means, values, copies, originals = [], [], [], []
        is_first = self.num_averaged == 0
        averages, live = local(self._averages), self._live()
        for place, average, tensor in zip(self._places, averages, live, strict=True):
            is_copied = is_first or not place.is_averaged or place in self._infinite
            (copies if is_copied else means).append(average)
            (originals if is_copied else values).append(tensor)
        if means:
            self._average(means, values, self.num_averaged)
        if copies:
            torch._foreach_copy_(copies, originals)
        self.num_averaged += 1

    @cached_property
    def _infinite(self) -> list[Place]:
        """Parameters with infinite values, as masks have: the mean of such a value and itself would be NaN."""
        return [p for p, tensor in zip(self._places, self._live(), strict=True) if not tensor.isfinite().all()]

    def _live(self) -> list[Tensor]:
        """The networks' own tensors, to be read or written without a trace that autograd would see."""
        reshard(self.networks)
        return local([place.tensor.data for place in self._places])

    # ---- use -----------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """In the block the networks have the averaged weights, once there are any."""
        if not self.num_averaged or self._is_applied:
            yield
            return
        live = self._live()
        before = [place.tensor for place in self._places]
        kept = [tensor.clone() for tensor in live]
        with torch.no_grad():
            torch._foreach_copy_(live, local(self._averages))
        self._is_applied = True
        try:
            yield
        finally:
            reshard(self.networks)  # they must forget the averages that a forward pass has fetched
            with torch.no_grad():
                torch._foreach_copy_(live, kept)
            for place, tensor in zip(self._places, before, strict=True):
                if place.tensor is not tensor:  # a forward pass may put a new buffer in the place of one
                    setattr(place.owner, place.attribute, tensor)
            self._is_applied = False

    # ---- state ---------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Return the averages by the names that they have in the networks' states."""
        networks: dict[str, dict[str, Tensor]] = {name: {} for name in self.networks}
        for place, average in zip(self._places, self._averages, strict=True):
            networks[place.network] |= dict.fromkeys(place.names, average)
        return {"networks": networks, "num_averaged": self.num_averaged, "last_update": self.last_update}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; an exception for anything else."""
        values = [state["networks"][place.network][place.names[0]] for place in self._places]
        for place, average, value in zip(self._places, self._averages, values, strict=True):
            if value.shape != average.shape:
                raise ValueError(f"the average of {place.names[0]} is {tuple(value.shape)}, not {tuple(average.shape)}")
        for average, value in zip(self._averages, values, strict=True):
            average.copy_(value)
        self.num_averaged = int(state["num_averaged"])
        self.last_update = int(state["last_update"])


def find_places(networks: Mapping[str, nn.Module], with_statistics: bool) -> list[Place]:
    """Return the parameters and running statistics of networks, each once.

    Args:
        networks: by name.
        with_statistics: the running statistics are averaged, and not only kept.
    """
    places = []
    for name, network in networks.items():
        names: dict[int, list[str]] = {}
        for key, tensor in network.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), []).append(key)
        for owner in network.modules():
            is_norm = isinstance(owner, _NormBase)
            buffers = owner.named_buffers(recurse=False) if is_norm else ()
            for attribute, tensor in (*owner.named_parameters(recurse=False), *buffers):
                if keys := names.pop(id(tensor), None):
                    is_mean = isinstance(tensor, nn.Parameter) or with_statistics
                    has_mean = tensor.is_floating_point() or tensor.is_complex()
                    places.append(Place(name, keys, owner, attribute, is_mean and has_mean))
    return places


def local(tensors: list[Tensor]) -> list[Tensor]:
    """Return this process's shards of sharded tensors, in the same memory, and other tensors as they are."""
    with torch.no_grad():
        return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def reshard(networks: Mapping[str, nn.Module]) -> None:
    """Make sharded networks drop the weights that they have fetched, so that they fetch the new ones."""
    for network in networks.values():
        for module in network.modules():
            if hasattr(module, "reshard"):
                module.reshard()


# ---- statistics ------------------------------------------------------------------------------------------------------
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


def check_can_measure(networks: Mapping[str, nn.Module], has_forward: bool) -> None:
    """Raise UserError if running statistics must be measured, but the task has no compute_loss to do it with."""
    if layers_with_statistics(networks) and not has_forward:
        raise UserError("--swa_start measures batch normalization with compute_loss(batch), which this task lacks.")


def check_start(swa_start: int, max_updates: int, updates_per_epoch: int) -> None:
    """Raise UserError if --max_updates ends a run before the epoch in which its average begins."""
    last = -(-max_updates // updates_per_epoch)
    if swa_start > last:
        raise UserError(
            f"--swa_start {swa_start} is after the last epoch: --max_updates {max_updates} ends in epoch {last}."
        )
