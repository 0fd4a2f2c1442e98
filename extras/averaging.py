"""An exponential moving average of the weights over the updates.

It is measured and saved beside the weights that training goes on with. The averaging itself is torch's own
(`get_ema_multi_avg_fn` of `torch.optim.swa_utils`), and the result is that of its `AveragedModel`, bit for bit. But
the averages are put into the networks while these are measured, so no second network is needed, and one that is
compiled or sharded between processes will do.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
        decay: how much the average keeps of itself in each update, from 0 to below 1 (Polyak and Juditsky 1992).

    Attributes:
        num_averaged: updates that were averaged.
    """

    is_average_of_networks = True  # its state has the networks' names, see `load_state`

    def __init__(self, networks: Mapping[str, nn.Module], decay: float):
        self.networks = networks
        self.num_averaged = 0
        self._average = get_ema_multi_avg_fn(decay)
        self._is_applied = False
        self._places = find_places(networks)
        self._averages = [place.tensor.detach().clone() for place in self._places]

    # ---- average -------------------------------------------------------------------------------------------------
    def finish_update(self) -> None:
        """Take in the weights after an update."""
        self._add()

    def finish_epoch(self) -> None:
        """Called before the validation of an epoch; a mean over epochs takes in the weights here."""

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
        return {"networks": networks, "num_averaged": self.num_averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; an exception for anything else."""
        values = [state["networks"][place.network][place.names[0]] for place in self._places]
        for place, average, value in zip(self._places, self._averages, values, strict=True):
            if value.shape != average.shape:
                raise ValueError(f"the average of {place.names[0]} is {tuple(value.shape)}, not {tuple(average.shape)}")
        for average, value in zip(self._averages, values, strict=True):
            average.copy_(value)
        self.num_averaged = int(state["num_averaged"])


def find_places(networks: Mapping[str, nn.Module]) -> list[Place]:
    """Return where the parameters and running statistics of networks stand, each tensor once."""
    places = []
    for name, network in networks.items():
        names: dict[int, list[str]] = {}
        for key, tensor in network.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), []).append(key)
        for owner in network.modules():
            buffers = owner.named_buffers(recurse=False) if isinstance(owner, _NormBase) else ()
            for attribute, tensor in (*owner.named_parameters(recurse=False), *buffers):
                if keys := names.pop(id(tensor), None):
                    has_mean = tensor.is_floating_point() or tensor.is_complex()
                    places.append(Place(name, keys, owner, attribute, has_mean))
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
