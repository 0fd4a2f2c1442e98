"""Select the loss by --loss_type.

To add a loss: write it in a file of its own, and name it here with the task that it is for. A loss is a mean over the
samples of a batch; otherwise the result would depend on the size of the micro-batches. One of your own that stands
elsewhere needs no line here, see docs/options.md.
"""

import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.options.arguments import call, name_of, split_arguments, taken
from engine.options.parser import number
from engine.options.plugins import choices, find_own, short_name
from loss.trial import fault_of_arguments
from loss.weighted_sum import WeightedSum
from utils.errors import UserError, shown

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
TENSORS = ("weight", "pos_weight")  # what torch's losses take as tensors, and JSON has as lists
OLD_NAMES = ("size_average", "reduce")  # of their reduction, of which torch warns


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
    """Return the loss: a module that takes (outputs, targets) and returns a scalar.

    --loss_args goes to the class of a single loss; of a weighted sum, it has a mapping for each loss, by its name.
    """
    if opt.loss_type is None:
        raise UserError("--loss_type is needed: MODULE:NAME, since no loss is known for this task.")
    weights, arguments = split_terms(opt.loss_type), getattr(opt, "loss_args", {})
    if isinstance(opt.loss_type, str) and opt.loss_type in weights:
        return build_loss(opt, opt.loss_type, arguments)
    if len(names := {short_name(name): name for name in weights}) < len(weights):
        raise UserError(f"--loss_type names two losses that are both called {' or '.join(names)}: rename one.")
    by_name = split_arguments(arguments, names, "--loss_args", "loss")
    losses = {short: build_loss(opt, name, by_name[short], f"--loss_args {short}") for short, name in names.items()}
    return WeightedSum(losses, {short: weights[name] for short, name in names.items()})


def build_loss(opt: Namespace, name: str, arguments: Mapping[str, Any], option: str = "--loss_args") -> nn.Module:
    """Return the loss of this name, made with further arguments, and tried with them.

    Raises:
        UserError: when it cannot be made with them, or is no loss to train with.
    """
    make, given = find_loss(opt, name, arguments)
    criterion = call(make, given, for_torch(make, arguments, option), option)
    if not isinstance(criterion, nn.Module):
        raise UserError(f"--loss_type {name}: {name_of(make)} makes no nn.Module, but {type(criterion)}.")
    smoothing = arguments.get("label_smoothing", 0)
    if isinstance(smoothing, (int, float)) and not 0 <= smoothing <= 1:  # torch takes -1
        raise UserError(f"{option}: label_smoothing is from 0 to 1, not {smoothing:g}.")
    if arguments:
        make_plain, plain = find_loss(opt, name, {})
        if found := fault_of_arguments(criterion, partial(make_plain, **plain), opt.n_classes):
            raise UserError(f"{option} {shown(json.dumps(arguments))}: {name} is no loss to train with, {found}")
    return criterion


def find_loss(opt: Namespace, name: str, arguments: Mapping[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """Return what makes the loss of this name, which may depend on the arguments, and what the options give it."""
    smoothing = {"label_smoothing": getattr(opt, "label_smoothing", 0.0)}
    if make := find_own("loss", name):
        return make, taken(make, {"n_classes": opt.n_classes, **smoothing})
    if name in ("CE", "Focal", "Brier"):
        from loss.classification_loss import BrierLoss, FocalLoss, WeightedCrossEntropy

        if name == "CE" and {"weight", "ignore_index"} & arguments.keys():
            return WeightedCrossEntropy, {"n_classes": opt.n_classes, **smoothing}
        made = {"CE": nn.CrossEntropyLoss, "Focal": FocalLoss, "Brier": BrierLoss}[name]
        return made, smoothing if name == "CE" else {}
    if name in ("BCE", "LeastSquares"):
        return nn.BCEWithLogitsLoss if name == "BCE" else nn.MSELoss, {}
    weights = {"CEDice": (1.0, 1.0), "PixelCE": (1.0, 0.0), "Dice": (0.0, 1.0)}
    if name in weights:
        from loss.dice_loss import CEDiceLoss

        ce_weight, dice_weight = weights[name]
        return CEDiceLoss, {"n_classes": opt.n_classes, "ce_weight": ce_weight, "dice_weight": dice_weight}
    raise NotImplementedError(f"{name} is named in LOSS_TYPES, but find_loss has no branch for it.")


def for_torch(make: Callable, arguments: Mapping[str, Any], option: str) -> dict[str, Any]:
    """The arguments, with a tensor in the place of a number or list that a loss of torch wants as one.

    Raises:
        UserError: when that is no number at least 0, and no list of such; and for names that torch has given up.
    """
    if not str(getattr(make, "__module__", "")).startswith("torch."):
        return dict(arguments)
    if old := [name for name in OLD_NAMES if name in arguments]:
        raise UserError(f"{option}: {old[0]} is an old name of reduction, which must be the mean: leave it out.")
    made = dict(arguments)
    for name in (name for name in TENSORS if made.get(name) is not None):
        numbers = made[name] if isinstance(made[name], list) else [made[name]]
        if not all(type(number) in (int, float) and number >= 0 for number in numbers):
            raise UserError(f"{option}: {name} is a number at least 0, or a list of such, not {shown(made[name])}.")
        made[name] = torch.tensor(made[name], dtype=torch.float)
    return made
