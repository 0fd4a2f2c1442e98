"""Add up several losses, each with a weight, and name each in the log."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from loss.terms import as_terms
from utils.meter import AvgMeter


class WeightedSum(nn.Module):
    """The sum of losses of the same outputs and targets, each times its weight.

    Args:
        losses: by name; each takes (outputs, targets) and returns a scalar.
        weights: by the same names.

    It returns the sum as "loss" and each term, without its weight, as "loss_NAME".

    >>> loss = WeightedSum({"L1": nn.L1Loss(), "L2": nn.MSELoss()}, {"L1": 1.0, "L2": 0.5})
    >>> loss(Tensor([2.0]), Tensor([0.0]))
    {'loss': tensor(4.), 'loss_l1': tensor(2.), 'loss_l2': tensor(4.)}
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]):
        super().__init__()
        assert losses.keys() == weights.keys(), f"losses {list(losses)}, weights {list(weights)}"
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        terms = {name: loss(outputs, targets) for name, loss in self.losses.items()}
        total = sum(self.weights[name] * term for name, term in terms.items())
        return {"loss": total, **{f"loss_{name.lower()}": term for name, term in terms.items()}}


def loss_meters(criterion: nn.Module) -> dict[str, AvgMeter]:
    """A meter for the loss, and one for each of its terms."""
    names = getattr(criterion, "losses", {}) if isinstance(criterion, WeightedSum) else {}
    return {"loss": AvgMeter(), **{f"loss_{name.lower()}": AvgMeter() for name in names}}


def update_losses(meters: MutableMapping[str, Any], loss: Tensor | Mapping[str, Tensor], n: int) -> None:
    """Add the loss of `n` samples, and its terms if it has several, to the meters of `loss_meters`."""
    for name, value in as_terms(loss).items():
        meters[name].update(value, n=n)
