"""The terms of a loss: a dictionary of scalars, in which "loss" is the one that is trained on."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.meter import AvgMeter


def loss_meters(criterion: nn.Module) -> dict[str, AvgMeter]:
    """Return a meter for the loss, and one for each of its terms."""
    return {name: AvgMeter() for name in ("loss", *getattr(criterion, "term_names", ()))}


def update_losses(meters: MutableMapping[str, Any], loss: Tensor | Mapping[str, Tensor], n: int) -> None:
    """Add the loss of `n` samples, and those of its terms that `loss_meters` has a meter for, to the meters."""
    for name, value in as_terms(loss).items():
        if name == "loss" or isinstance(meters.get(name), AvgMeter):
            meters[name].update(value, n=n)


def counter(criterion: nn.Module) -> Callable[[Any], int | None] | None:
    """Return a function of a batch (inputs, targets): over how many targets a loss is a mean; None: over its samples.

    A loss that has an ``ignore_index``, as those of torch, is a mean over the targets that are not it. Any other may
    have a method ``count(targets)``. The function returns None for a batch of another form.
    """
    own, ignored = getattr(criterion, "count", None), getattr(criterion, "ignore_index", None)
    if not callable(own) and ignored is None:
        return None

    def count(batch: Any) -> Any:
        targets = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if callable(own) and targets is not None:
            return own(targets)
        return (targets.long() != ignored).sum() if isinstance(targets, Tensor) else None

    return count


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
