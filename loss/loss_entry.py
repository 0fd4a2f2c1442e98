"""Make the loss that --loss_type selects. A loss of the template is named in engine/registry.py.

A loss is a mean over the samples of a batch. Otherwise the result would depend on the size of the micro-batches.
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engine.options.parser import split_weight
from engine.registry import as_list, call, find, load
from utils.errors import UserError, shown

TENSORS = ("weight", "pos_weight")  # arguments that torch's losses take as tensors, and JSON has as lists


def build_criterion(opt: Namespace) -> nn.Module:
    """Return the loss: a module that takes (outputs, targets) and returns a scalar.

    --loss_args goes to the class of a single loss; of a weighted sum, it has a mapping for each loss, by its name.
    """
    if opt.loss_type is None:
        raise UserError("--loss_type is needed: MODULE:NAME, since no loss is known for this task.")
    arguments = getattr(opt, "loss_args", {})
    offered = {"n_classes": opt.n_classes, "label_smoothing": getattr(opt, "label_smoothing", 0.0)}
    if getattr(opt, "ignored_values", None):
        from utils.meter import IGNORED

        offered["ignore_index"] = IGNORED
    if getattr(opt, "class_weights", None):
        offered["weight"] = load("extras.class_weights:argument_of_loss", "class_weights")(opt)
    if isinstance(opt.loss_type, str) and not split_weight(opt.loss_type)[1]:
        return build_loss(opt.loss_type, offered, arguments)
    return load("extras.weighted_sum:build_weighted_sum", "loss_type")(as_list(opt.loss_type), offered, arguments)


def build_loss(
    name: str, offered: Mapping[str, Any], arguments: Mapping[str, Any], option: str = "--loss_args"
) -> nn.Module:
    """Return the loss of this name; UserError when it cannot be made with its arguments, or is not a mean."""
    component = find("loss", name)
    if str(getattr(component, "__module__", "")).startswith("torch."):
        arguments = with_tensors(arguments, option)
    criterion = call(component, offered, arguments, option)
    if not isinstance(criterion, nn.Module):
        raise UserError(f"--loss_type {name} makes no nn.Module, but {type(criterion)}.")
    if (reduction := getattr(criterion, "reduction", "mean")) != "mean":
        raise UserError(f"{option}: the reduction of {name} must be mean, not {shown(reduction)}: leave it out.")
    if isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) and criterion.weight is not None:
        raise UserError(f"{option}: {name} divides by the weights of a batch, so it is no mean over samples: take CE.")
    smoothing = getattr(criterion, "label_smoothing", 0)
    if not (isinstance(smoothing, (int, float)) and 0 <= smoothing <= 1):  # torch takes -1
        raise UserError(f"{option}: label_smoothing is from 0 to 1, not {shown(smoothing)}.")
    return criterion


def with_tensors(arguments: Mapping[str, Any], option: str) -> dict[str, Any]:
    """Return arguments in which the weights of torch's losses are tensors; UserError when one is no number or list."""
    converted = dict(arguments)
    for name in TENSORS:
        try:
            if converted.get(name) is not None:
                converted[name] = torch.tensor(converted[name], dtype=torch.float)
        except (TypeError, ValueError):
            given = shown(converted[name])
            raise UserError(f"{option}: {name} is a number or a list of numbers, not {given}.") from None
    return converted
