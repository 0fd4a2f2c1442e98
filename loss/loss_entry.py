"""Select the loss by --loss_type.

To add a loss: write it in a file of its own, and name it here with the task that it is for. A loss is a mean over the
samples of a batch; otherwise the result would depend on the size of the micro-batches. One of your own that stands
elsewhere needs no line here, see docs/options.md.
"""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from loss.weighted_sum import WeightedSum
from utils.calls import call, name_of, taken
from utils.errors import UserError
from utils.options import number
from utils.own_code import choices, find_own, short_name

LOSS_TYPES = {
    "CE": "classification",
    "Focal": "classification",
    "Brier": "classification",
    "CEDice": "segmentation",
    "PixelCE": "segmentation",
    "Dice": "segmentation",
    "BCE": "generation",  # Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014
    "LeastSquares": "generation",  # Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017
}


def loss_types(task: str | None) -> list[str]:
    """The names for --loss_type that fit a task; all of them for None."""
    return choices("loss", [name for name, of_task in LOSS_TYPES.items() if task in (None, of_task)])


def split_term(text: str) -> tuple[str, str]:
    """The name of a loss and the text of its weight, which is "" when there is none; a name may have colons, too."""
    name, _, weight = text.rpartition(":")
    try:
        float(weight)
    except ValueError:
        return text, ""
    return (name, weight) if name else (text, "")


def loss_term(kind: Callable[[str], str]) -> Callable[[str], str]:
    """Return an argparse type for NAME or NAME:WEIGHT, where `kind` takes the name."""

    def convert(text: str) -> str:
        name, weight = split_term(text)
        return f"{kind(name)}:{number(float, above=0)(weight)}" if weight else kind(name)

    return convert


def split_terms(loss_type: str | Sequence[str]) -> dict[str, float]:
    """The weights of the losses that --loss_type names.

    >>> split_terms("CE"), split_terms(["PixelCE", "Dice:0.5"])
    ({'CE': 1.0}, {'PixelCE': 1.0, 'Dice': 0.5})
    """
    weights: dict[str, float] = {}
    for term in [loss_type] if isinstance(loss_type, str) else loss_type:
        name, weight = split_term(term)
        if name in weights:
            raise UserError(f"--loss_type names {name} twice: give each loss once, with its weight.")
        weights[name] = float(weight or 1)
    return weights


def build_criterion(opt: Namespace) -> nn.Module:
    """Return the loss: a module that takes (outputs, targets) and returns a scalar. --loss_args goes to its class."""
    weights = split_terms(opt.loss_type)
    if isinstance(opt.loss_type, str) and opt.loss_type in weights:
        return build_loss(opt, opt.loss_type, getattr(opt, "loss_args", {}))
    if getattr(opt, "loss_args", {}):
        raise UserError("--loss_args is for a single loss without a weight, not for a weighted sum.")
    if len(names := {short_name(name): name for name in weights}) < len(weights):
        raise UserError(f"--loss_type names two losses that are both called {' or '.join(names)}: rename one.")
    losses = {short: build_loss(opt, name, {}) for short, name in names.items()}
    return WeightedSum(losses, {short: weights[name] for short, name in names.items()})


def build_loss(opt: Namespace, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the loss of this name, made with further arguments."""
    smoothing = {"label_smoothing": getattr(opt, "label_smoothing", 0.0)}
    if make := find_own("loss", name):
        criterion = call(make, taken(make, {"n_classes": opt.n_classes, **smoothing}), arguments, "--loss_args")
        if not isinstance(criterion, nn.Module):
            raise UserError(f"--loss_type {name}: {name_of(make)} makes no nn.Module, but {type(criterion)}.")
        return criterion
    if name == "CE":
        return call(nn.CrossEntropyLoss, smoothing, arguments, "--loss_args")
    if name in ("Focal", "Brier"):
        from loss.classification_loss import BrierLoss, FocalLoss

        return call(FocalLoss if name == "Focal" else BrierLoss, {}, arguments, "--loss_args")
    if name in ("BCE", "LeastSquares"):
        return call(nn.BCEWithLogitsLoss if name == "BCE" else nn.MSELoss, {}, arguments, "--loss_args")
    weights = {"CEDice": (1.0, 1.0), "PixelCE": (1.0, 0.0), "Dice": (0.0, 1.0)}
    if name in weights:
        from loss.dice_loss import CEDiceLoss

        ce_weight, dice_weight = weights[name]
        given = {"n_classes": opt.n_classes, "ce_weight": ce_weight, "dice_weight": dice_weight}
        return call(CEDiceLoss, given, arguments, "--loss_args")
    raise NotImplementedError(f"{name} is named in LOSS_TYPES, but build_loss has no branch for it.")
