"""Losses of several terms: their weighted sum, and the dictionary in which "loss" is the one that is trained on."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.meter import AvgMeter


class WeightedSum(nn.Module):
    """The sum of losses of the same outputs and targets, each times its weight.

    It returns the sum as "loss" and each term, without its weight, as "loss_NAME".

    Args:
        losses: by name; each takes (outputs, targets) and returns a scalar.
        weights: by the same names.

    Raises:
        UserError: when they are means over different targets.

    >>> loss = WeightedSum({"L1": nn.L1Loss(), "L2": nn.MSELoss()}, {"L1": 1.0, "L2": 0.5})
    >>> loss(Tensor([2.0]), Tensor([0.0]))
    {'loss': tensor(4.), 'loss_l1': tensor(2.), 'loss_l2': tensor(4.)}
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]):
        super().__init__()
        assert losses.keys() == weights.keys(), f"losses {list(losses)}, weights {list(weights)}"
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)
        ignored = {name: getattr(loss, "ignore_index", None) for name, loss in losses.items()}
        self.ignore_index = next(iter(ignored.values()))
        if len(set(ignored.values())) > 1 or any(hasattr(loss, "count") for loss in losses.values()):
            raise UserError(
                f"The losses of a sum must be means over the same targets; these have the ignore_index {ignored}. "
                f"Give all of them the same, or take one loss."
            )

    def forward(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        terms = {name: loss(outputs, targets) for name, loss in self.losses.items()}
        total = sum(self.weights[name] * term for name, term in terms.items())
        return {"loss": total, **{f"loss_{name.lower()}": term for name, term in terms.items()}}


def loss_meters(criterion: nn.Module) -> dict[str, AvgMeter]:
    """Return a meter for the loss, and one for each of its terms."""
    names = getattr(criterion, "losses", {}) if isinstance(criterion, WeightedSum) else {}
    return {"loss": AvgMeter(), **{f"loss_{name.lower()}": AvgMeter() for name in names}}


def update_losses(meters: MutableMapping[str, Any], loss: Tensor | Mapping[str, Tensor], n: int) -> None:
    """Add the loss of `n` samples, and its terms if it has several, to the meters of `loss_meters`."""
    for name, value in as_terms(loss).items():
        meters[name].update(value, n=n)


def counter(criterion: nn.Module) -> Callable[[Any], int] | None:
    """Return a function of a batch (inputs, targets): over how many targets a loss is a mean; None: over its samples.

    A loss that has an ``ignore_index``, as those of torch, is a mean over the targets that are not it. Any other may
    have a method ``count(targets)``.
    """
    if hasattr(criterion, "count"):
        return lambda batch: criterion.count(batch[1])
    ignored = getattr(criterion, "ignore_index", None)
    return None if ignored is None else lambda batch: (batch[1] != ignored).sum()


def as_terms(loss: Tensor | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a loss as a dictionary of scalars with "loss" in it.

    >>> as_terms(torch.tensor(2.0))
    {'loss': tensor(2.)}

    Raises:
        UserError: it is neither a tensor nor a dictionary in which "loss" is one and all are scalars.
    """
    if isinstance(loss, Tensor):
        return {"loss": loss}
    if isinstance(loss, Mapping) and isinstance(loss.get("loss"), Tensor):
        return {name: scalar(name, value) for name, value in loss.items()}
    keys = f" with the keys {', '.join(map(str, loss))}" if isinstance(loss, Mapping) else ""
    raise UserError(
        f"compute_loss returns {type(loss).__name__}{keys}: return a scalar tensor, or a dictionary in which 'loss' "
        f"is one."
    )


def scalar(name: str, value: Any) -> Tensor:
    """Return a value of the loss as a tensor with one number; UserError when it is none."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.empty(0)
    if tensor.numel() != 1:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        kind = f"{type(value).__name__}{shape}"
        raise UserError(f"compute_loss returns {name!r} as {kind}: give a number, such as a mean.")
    return tensor


def add_up(values: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums of scalars by name; a name of only one of the two keeps its value.

    >>> add_up({"loss": torch.tensor(1.0)}, {"loss": torch.tensor(2.0)})
    {'loss': tensor(3.)}
    """
    return {**values, **{name: values[name] + value if name in values else value for name, value in more.items()}}
