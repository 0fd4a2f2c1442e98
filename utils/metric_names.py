"""Metrics of a task by name. To add one, name here what makes its meter of the number of classes."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence

from utils.errors import UserError, nearest
from utils.meter import Meter
from utils.metrics import F1, Accuracy, Dice, IoU, MeanImageDice, Precision, Recall

CLASSIFICATION: dict[str, Callable[[int], Meter]] = {
    "accuracy": lambda num_classes: Accuracy(),
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
}
SEGMENTATION: dict[str, Callable[[int], Meter]] = {"dice": Dice, "iou": IoU, "mean_image_dice": MeanImageDice}
TOP_K = re.compile(r"top([1-9][0-9]{0,5})")  # of classification


def metric_name(known: Mapping[str, Callable[[int], Meter]]) -> Callable[[str], str]:
    """Return an argparse type for a name in `known`; for classification also top2, top3, and so on."""

    def convert(text: str) -> str:
        if text in known or (known is CLASSIFICATION and TOP_K.fullmatch(text)):
            return text
        names = [*known, *(["topK, such as top5"] if known is CLASSIFICATION else [])]
        close = nearest(text[:60], known)
        raise ArgumentTypeError(f"{text[:60]!r} is unknown{close}: use one or more of {', '.join(names)}")

    return convert


def build_metrics(
    names: Sequence[str], known: Mapping[str, Callable[[int], Meter]], num_classes: int
) -> dict[str, Meter]:
    """Return a meter for each name, see `metric_name`; UserError for the best k of fewer than k classes.

    >>> list(build_metrics(["accuracy", "top3"], CLASSIFICATION, num_classes=10))
    ['accuracy', 'top3']
    """
    meters: dict[str, Meter] = {}
    for name in names:
        if name in known:
            meters[name] = known[name](num_classes)
            continue
        top_k = int(TOP_K.fullmatch(name)[1])
        if top_k > num_classes:
            raise UserError(f"--metrics {name} needs at least {top_k} classes: there are {num_classes}.")
        meters[name] = Accuracy(top_k)
    return meters
