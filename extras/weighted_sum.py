"""A weighted sum of several losses, as in --loss_type PixelCE:1.0 Dice:0.5."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from engine.options.parser import split_weight
from engine.registry import short_name, split_arguments
from loss.loss_entry import build_loss
from utils.errors import UserError
from utils.meter import IGNORED


def build_weighted_sum(
    terms: Sequence[str], offered: Mapping[str, Any], arguments: Mapping[str, Any]
) -> "WeightedSum":
    """Return the sum of the losses that --loss_type names.

    Args:
        terms: the names, each with its weight or without, as "Dice:0.5".
        offered: arguments for each loss that takes them.
        arguments: of --loss_args, a mapping for each loss, by its name.
    """
    weights = split_terms(terms)
    if len(names := {short_name(name): name for name in weights}) < len(weights):
        raise UserError(f"--loss_type names two losses that are both called {' or '.join(names)}: rename one.")
    by_name = split_arguments(arguments, names, "--loss_args", "loss")
    losses = {}
    for short, name in names.items():
        losses[short] = build_loss(name, offered, by_name[short], f"--loss_args {short}")
    is_given = "ignore_index" in offered or any("ignore_index" in given for given in by_name.values())
    default = None if is_given else IGNORED  # of torch
    return WeightedSum(losses, {short: weights[name] for short, name in names.items()}, default)


def split_terms(terms: Sequence[str]) -> dict[str, float]:
    """Return the weights of the losses that --loss_type names.

    >>> split_terms(["PixelCE", "Dice:0.5"])
    {'PixelCE': 1.0, 'Dice': 0.5}
    """
    weights: dict[str, float] = {}
    for term in terms:
        name, weight = split_weight(term)
        if name in weights:
            raise UserError(f"--loss_type names {name} twice: give each loss once, with its weight.")
        weights[name] = float(weight or 1)
    return weights


class WeightedSum(nn.Module):
    """The sum of losses of the same outputs and targets, each times its weight.

    It returns the sum as "loss" and each term, without its weight, as "loss_NAME", see loss/terms.py.

    Args:
        losses: by name; each takes (outputs, targets) and returns a scalar.
        weights: by the same names.
        default: an ignore_index that nobody asked for, and that is none where another loss has none.

    Raises:
        UserError: when they are means over different targets.

    >>> loss = WeightedSum({"L1": nn.L1Loss(), "L2": nn.MSELoss()}, {"L1": 1.0, "L2": 0.5})
    >>> loss(Tensor([2.0]), Tensor([0.0]))
    {'loss': tensor(4.), 'loss_l1': tensor(2.), 'loss_l2': tensor(4.)}
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float], default: int | None = None):
        super().__init__()
        assert losses.keys() == weights.keys(), f"losses {list(losses)}, weights {list(weights)}"
        self.losses = nn.ModuleDict(losses)
        self.term_names = [f"loss_{name.lower()}" for name in losses]
        self.weights = dict(weights)
        ignored = {name: getattr(loss, "ignore_index", None) for name, loss in losses.items()}
        if None in ignored.values():
            ignored = {name: None if value == default else value for name, value in ignored.items()}
        self.ignore_index = next(iter(ignored.values()))
        has_count = any(callable(getattr(loss, "count", None)) for loss in losses.values())
        if len(set(ignored.values())) > 1 or has_count:
            raise UserError(
                f"The losses of a sum must be means over the same targets; these have the ignore_index {ignored}. "
                f"Give all of them the same, or take one loss."
            )

    def forward(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        terms = {name: loss(outputs, targets) for name, loss in self.losses.items()}
        total = sum(self.weights[name] * term for name, term in terms.items())
        return {"loss": total, **dict(zip(self.term_names, terms.values(), strict=True))}
