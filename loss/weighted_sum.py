"""Several losses at once, each with a weight, and each told apart in the log."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from utils.meter import AvgMeter


class WeightedSum(nn.Module):
    """The sum of losses of the same outputs and targets, each times its weight.

    Args:
        losses: by name; each takes (outputs, targets) and returns a scalar.
        weights: by the same names.

    Attributes:
        last_terms: what each loss was in the last call, without its weight: detached scalars, by the names of `losses`.

    >>> loss = WeightedSum({"l1": nn.L1Loss(), "l2": nn.MSELoss()}, {"l1": 1.0, "l2": 0.5})
    >>> loss(Tensor([2.0]), Tensor([0.0]))
    tensor(4.)
    >>> loss.last_terms
    {'l1': tensor(2.), 'l2': tensor(4.)}
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]):
        super().__init__()
        assert losses.keys() == weights.keys(), f"losses {list(losses)}, weights {list(weights)}"
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)
        self.last_terms: dict[str, Tensor] = {}

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        terms = {name: loss(outputs, targets) for name, loss in self.losses.items()}
        self.last_terms = {name: term.detach() for name, term in terms.items()}
        return sum(self.weights[name] * term for name, term in terms.items())


def last_terms(criterion: nn.Module, weight: float = 1.0) -> dict[str, Tensor]:
    """The terms of a criterion's last call times `weight`, each as "loss_NAME"; none of one that is no sum."""
    terms = getattr(criterion, "last_terms", {})
    return {f"loss_{name.lower()}": term if weight == 1 else term * weight for name, term in terms.items()}


def add_up(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sums of scalars by name, over the micro-batches of an update.

    >>> add_up([{"loss": Tensor([1.0])}, {"loss": Tensor([2.0])}])
    {'loss': tensor([3.])}
    """
    return dict(parts[0]) if len(parts) == 1 else {name: sum(part[name] for part in parts) for name in parts[0]}


def loss_meters(criterion: nn.Module) -> dict[str, AvgMeter]:
    """A meter for the loss, and one for each of its terms."""
    names = getattr(criterion, "losses", {}) if isinstance(criterion, WeightedSum) else {}
    return {"loss": AvgMeter(), **{f"loss_{name.lower()}": AvgMeter() for name in names}}


def update_losses(meters: MutableMapping[str, Any], criterion: nn.Module, loss: Tensor, n: int) -> None:
    """Add the loss that a criterion has just returned of `n` samples, and its terms, to the meters of `loss_meters`."""
    for name, value in {"loss": loss, **last_terms(criterion)}.items():
        meters[name].update(value, n=n)
