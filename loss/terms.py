"""Handle the terms of a loss: a scalar, or a dictionary in which "loss" is the one that is trained on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError


def as_terms(loss: Tensor | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a loss as a dictionary of scalars with "loss" in it.

    >>> as_terms(torch.tensor(2.0))
    {'loss': tensor(2.)}

    Raises:
        UserError: it is neither a tensor nor a dictionary in which "loss" is one.
    """
    if isinstance(loss, Tensor):
        return {"loss": loss}
    if isinstance(loss, Mapping) and isinstance(loss.get("loss"), Tensor):
        return {name: torch.as_tensor(value) for name, value in loss.items()}
    keys = f" with the keys {', '.join(map(str, loss))}" if isinstance(loss, Mapping) else ""
    raise UserError(
        f"compute_loss returns {type(loss).__name__}{keys}: return a scalar tensor, or a dictionary in which 'loss' "
        f"is one."
    )


def add_up(values: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums of scalars by name; a name of only one of the two keeps its value.

    >>> add_up({"loss": torch.tensor(1.0)}, {"loss": torch.tensor(2.0)})
    {'loss': tensor(3.)}
    """
    return {**values, **{name: values[name] + value if name in values else value for name, value in more.items()}}
