"""Weigh the classes in the loss, by numbers or by how often they occur in training: --class_weights.

The weights are a buffer of the loss, so they are in the checkpoints, and an evaluation takes them from there.
"""

from argparse import Namespace
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from data.masks import read_classes
from data.pairs import MatchedFiles
from data.sampler import one_each
from engine.options.parser import split_weight
from engine.registry import as_list, find, taken
from utils.errors import UserError, shown
from utils.seed import preserved_random_state

WAYS = ("balanced", "sqrt")
THREADS = 4


def is_counted(opt: Namespace) -> bool:
    """Return whether --class_weights names a way to count them from data; UserError when it mixes names and numbers."""
    ways = [value for value in opt.class_weights if value in WAYS]
    if ways and len(opt.class_weights) > 1:
        given = " ".join(map(str, opt.class_weights))
        raise UserError(f"--class_weights {given}: give {' or '.join(WAYS)} alone, or a number for each class.")
    return bool(ways)


def argument_of_loss(opt: Namespace) -> Tensor:
    """Return the argument `weight` of the loss, (C,); ones where the weights are to be counted, see `count_classes`.

    Raises:
        UserError: no loss takes weights, or they are given twice.
    """
    num_classes = max(opt.n_classes, 2)  # one logit has two classes
    if any("weight" in given for given in (opt.loss_args, *opt.loss_args.values()) if isinstance(given, dict)):
        raise UserError("--class_weights and the weight in --loss_args are the same thing: give one of them.")
    terms = [split_weight(term)[0] for term in as_list(opt.loss_type)]
    components = [find("loss", term) for term in terms]
    if not any(takes_weight(component) for component in components):
        raise UserError(f"--class_weights has no effect: {' '.join(terms)} takes no weights of classes. Take CE.")
    if is_counted(opt):
        return torch.ones(num_classes)
    if len(opt.class_weights) != num_classes:
        given = f"{len(opt.class_weights)} numbers"
        raise UserError(f"--class_weights gives {given} for {num_classes} classes: give one each, or {WAYS[0]}.")
    return torch.tensor(opt.class_weights, dtype=torch.float)


def takes_weight(component: Any) -> bool:
    """Return whether a loss takes weights of the classes, and is a mean over the samples with them."""
    is_of_torch = str(getattr(component, "__module__", "")).startswith("torch.")
    return not is_of_torch and bool(taken(component, {"weight": None}))


def count_classes(criterion: nn.Module, opt: Namespace, dataset: Dataset) -> None:
    """Put weights that are counted in the training part into a loss; a resumed run has them in its checkpoint."""
    if not is_counted(opt) or opt.resume:
        return
    num_classes = max(opt.n_classes, 2)
    weighing = [module for module in criterion.modules() if shape_of_weight(module) == (num_classes,)]
    ignored = {index for module in weighing for index in ignored_by(module)}
    counts = class_counts(dataset, num_classes, ignored)
    weights = weights_of(counts, opt.class_weights[0], ignored)
    for module in weighing:
        module.weight.copy_(weights)
    listed = ", ".join(f"{weight:.3g}" for weight in weights[:20].tolist())
    dataset.class_note = f"weights of the classes in the loss, --class_weights {opt.class_weights[0]}: {listed}"


def shape_of_weight(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of a module's buffer `weight`; None if it has none."""
    buffer = dict(module.named_buffers(recurse=False)).get("weight")
    return None if buffer is None else tuple(buffer.shape)


def ignored_by(criterion: nn.Module) -> set[int]:
    """Return the label that a loss leaves out, in a set; it is empty if there is none."""
    label = getattr(criterion, "ignore_index", None)
    label = getattr(criterion, "ignored", None) if label is None else label  # of loss/dice_loss.py
    return {label} if isinstance(label, int) else set()


def ignored_in(arguments: Mapping[str, Any]) -> set[int]:
    """Return the labels that --loss_args leaves out, of a single loss or of the terms of a sum.

    >>> ignored_in({"CE": {"ignore_index": 3}, "Focal": {}})
    {3}
    """
    mappings = (arguments, *(value for value in arguments.values() if isinstance(value, Mapping)))
    labels = [mapping.get("ignore_index") for mapping in mappings]
    return {label for label in labels if isinstance(label, int)}


def weights_of(counts: Tensor, way: str, ignored: Collection[int] = ()) -> Tensor:
    """Return the weights of classes with these counts: 1 in the mean over what is counted.

    >>> weights_of(torch.tensor([6, 2]), "balanced")  # n / (k n_c), as in scikit-learn
    tensor([0.6667, 2.0000])

    Args:
        counts: (C,) int64, how often each class occurs.
        way: "balanced" weighs by one over the count, "sqrt" by one over its square root.
        ignored: the classes that the loss leaves out. They have no part in the mean, and the weight 1.

    Raises:
        UserError: a class that counts does not occur, so that no weight is right for it.
    """
    is_counted = torch.tensor([number not in ignored for number in range(len(counts))])
    if absent := ((counts == 0) & is_counted).nonzero().flatten().tolist():
        raise UserError(
            f"--class_weights {way}: class {absent[0]} does not occur in the training part. Leave the class out, or "
            f"give a number for each class."
        )
    frequencies = counts[is_counted].double() / counts[is_counted].sum()
    of_counted = 1 / frequencies if way == "balanced" else 1 / frequencies.sqrt()
    weights = torch.ones(len(counts))
    weights[is_counted] = (of_counted / (frequencies * of_counted).sum()).float()
    return weights


def class_counts(dataset: Dataset, num_classes: int, ignored: Collection[int] = ()) -> Tensor:
    """Return how many samples of a data set, or pixels of its masks, each class has, (C,) int64.

    Args:
        dataset: the training part.
        num_classes: C.
        ignored: labels that the loss leaves out, so that they need be no class.
    """
    labels = labels_of(dataset)
    if labels is not None:
        labels = labels[[label not in ignored for label in labels.tolist()]]
        check_labels(labels, num_classes)
        return torch.bincount(labels[labels >= 0], minlength=num_classes)
    nothing = torch.zeros(num_classes, dtype=torch.int64)
    if isinstance(getattr(dataset, "pairs", None), MatchedFiles):  # then the images need not be decoded
        with ThreadPoolExecutor(THREADS) as pool:
            masks = pool.map(lambda index: mask_of(dataset, index), range(len(dataset)))
            return sum((counts_in(mask, num_classes) for mask in masks), nothing)
    with preserved_random_state():  # samples may be random, but not by being looked at
        targets = (target_of(dataset[index]) for index in range(len(dataset)))
        return sum((counts_in(target, num_classes) for target in targets), nothing)


def mask_of(dataset: Any, index: int) -> Tensor:
    """Return the classes of a mask file, (H, W), without its image."""
    return torch.from_numpy(read_classes(dataset.files(index)[1], dataset.class_map, dataset.size))


def target_of(sample: Any) -> Tensor:
    """Return the classes in a sample (input, target)."""
    target = sample[1] if isinstance(sample, (tuple, list)) and len(sample) > 1 else None
    if target is None or torch.as_tensor(target).is_floating_point():
        raise UserError(
            "--class_weights needs the class of each sample: let the data set have `targets`, a list of whole numbers."
        )
    return torch.as_tensor(target)


def counts_in(target: Tensor, num_classes: int) -> Tensor:
    """Return how often each class is in a target of any shape; what is no class is not counted."""
    target = target.flatten().long()
    return torch.bincount(target[(target >= 0) & (target < num_classes)], minlength=num_classes)


def labels_of(dataset: Dataset) -> Tensor | None:
    """Return the class of each sample, (N,) int64, without loading one; None when the data set does not tell."""
    values = one_each(dataset, "targets") or one_each(dataset, "labels")
    if values is None and type(dataset) is TensorDataset and len(dataset.tensors) > 1:
        values = dataset.tensors[1]
    try:
        labels = None if values is None else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    is_class = labels is not None and labels.ndim == 1 and not labels.is_floating_point()
    return labels.long() if is_class else None


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise UserError when a label is no class; negative ones may be ignored by the loss."""
    if labels.numel() and labels.max() >= num_classes:
        raise UserError(f"The data has the label {shown(int(labels.max()))}, but there are {num_classes} classes.")
