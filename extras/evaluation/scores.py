"""Scores of the collected predictions: of each class, of a trivial predictor beside the network's, and intervals."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from extras.evaluation.table import Table
from extras.precision_recall import F1, Precision, PrecisionRecallF1, Recall
from utils.metrics import Accuracy
from utils.overlap import MeanImageDice, Overlap, bootstrap_interval

MOST_NUMBERS = 5 * 10**7  # of a bootstrap: samples times three times the classes
NAMES = {Precision: "precision", Recall: "recall", F1: "f1"}  # of the metrics that compute one number of three


def class_counts(table: Table, num_classes: int) -> Tensor:
    """Return the contribution of each sample, float64 (N, C, 3): of each class in both, predicted, and actual.

    Args:
        table: of classes, where an entry is 1 or 0, or of masks, where it is a number of pixels.
        num_classes: C.
    """
    columns = table.columns
    if table.kind == "masks":
        return columns["counts"].double()
    classes = torch.arange(num_classes)
    predicted = columns["prediction"][:, None] == classes
    actual = columns["target"][:, None] == classes
    counts = torch.stack([predicted & actual, predicted, actual], dim=2)  # (N, C, 3)
    return counts[columns["counts"]].double()


def per_class(counts: Tensor, names: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """Return scores of each class, from the sums over all samples of `class_counts`, (C, 3).

    A share of nothing counts as 0; a class that is neither predicted nor there has None.
    """
    scores = {}
    for name, (both, predicted, actual) in zip(names, counts.tolist(), strict=True):
        is_there = predicted + actual > 0
        values = {
            "precision": both / max(predicted, 1), "recall": both / max(actual, 1),
            "f1": 2 * both / max(predicted + actual, 1), "iou": both / max(predicted + actual - both, 1),
            "dice": 2 * both / max(predicted + actual, 1),
        }  # fmt: skip
        shown = values if is_there else dict.fromkeys(values)
        scores[name] = {"actual": int(actual), "predicted": int(predicted), **shown}
    return scores


# ---- a trivial predictor ---------------------------------------------------------------------------------------------
def trivial_scores(
    table: Table, meters: Mapping[str, Any], names: Sequence[str], results: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return for each metric that is known the best score without a look at the input, and how it is had.

    Of classes it is that of the most frequent one for all samples; of masks that of one class for all pixels; of values
    the mean for all samples.

    Args:
        table: the predictions.
        meters: of the evaluator, which say how a score is computed.
        names: of the classes.
        results: the scores of the network.
    """
    if table.kind == "values":
        return trivial_of_values(table.columns["target"].double(), results)
    totals = class_counts(table, len(names)).sum(dim=0)[:, 2]  # (C,)
    if not totals.sum():
        return {}
    candidates = range(len(names)) if table.kind == "masks" else [int(totals.argmax())]
    found = {}
    for name, meter in meters.items():
        scores = {k: score for k in candidates if (score := score_of_one(meter, table, totals, k)) is not None}
        if scores:
            best = max(scores, key=scores.__getitem__)
            is_several = getattr(meter, "top_k", 1) > 1
            predictor = f"the {meter.top_k} most frequent" if is_several else f"all {names[best]}"
            found[name] = {"score": scores[best], "predictor": predictor}
    return found


def score_of_one(meter: Any, table: Table, totals: Tensor, k: int) -> float | None:
    """Return what a meter computes when class `k` is predicted everywhere; None for a metric that is not known."""
    if type(meter) is Accuracy:
        frequent = totals[k] if meter.top_k == 1 else totals.topk(meter.top_k).values.sum()
        return (frequent / totals.sum()).item()
    other = copy.deepcopy(meter)
    if isinstance(meter, PrecisionRecallF1) and type(meter) in NAMES:
        matrix = torch.zeros(len(totals), len(totals), dtype=torch.int64)
        matrix[:, k] = totals.long()
        other.load_state_dict({"matrix": matrix})
    elif isinstance(meter, Overlap) and table.kind == "masks":
        actual = table.columns["counts"][..., 2]  # (N, C)
        counts = torch.zeros(*actual.shape, 3, dtype=torch.int64)
        counts[:, k, 1], counts[:, k, 0], counts[..., 2] = actual.sum(dim=1), actual[:, k], actual
        other.load_state_dict({"counts": counts[:, meter.foreground], "of_no_class": torch.tensor(0)})
    else:
        return None
    return other.compute()


def trivial_of_values(targets: Tensor, results: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    errors = targets - targets.mean(dim=0)  # (N, K)
    mse = errors.square().mean().item()
    scores = {"mse": mse, "rmse": math.sqrt(mse), "mae": errors.abs().mean().item(), "r2": 0.0}
    known = {name: scores[name.lower()] for name in results if name.lower() in scores}
    return {name: {"score": score, "predictor": "the mean"} for name, score in known.items()}


# ---- intervals -------------------------------------------------------------------------------------------------------
def intervals(
    table: Table, meters: Mapping[str, Any], num_classes: int, groups: Tensor | None
) -> dict[str, tuple[float, float]]:
    """Return the 95 % intervals of the metrics that are known: Wilson's of proportions, else by bootstrap.

    Args:
        table: the predictions; of masks or classes.
        meters: of the evaluator.
        num_classes: of the task.
        groups: the number of the group of each sample, (N,): whole groups are resampled. None: each sample is its own.
    """
    found = {}
    for name, meter in meters.items():
        interval = None
        if isinstance(meter, Overlap):
            interval = interval_of_overlap(meter, groups)
        elif type(meter) in NAMES and table.kind == "classes" and len(table) * num_classes * 3 <= MOST_NUMBERS:
            counts = class_counts(table, num_classes)
            own = None if groups is None else groups[table.columns["counts"]]
            part, average = NAMES[type(meter)], meter.average
            statistic = lambda sums, _, part=part, average=average: macro(sums, average)[part]  # noqa: E731
            interval = bootstrap_interval(summed(counts, own), statistic)
        elif hasattr(meter, "interval"):
            interval = meter.interval()
        if interval is not None:
            found[name] = interval
    return found


def interval_of_overlap(meter: Overlap, groups: Tensor | None) -> tuple[float, float] | None:
    counts = meter.per_image_counts()
    if groups is None or len(groups) != len(counts):
        return meter.interval()
    if not isinstance(meter, MeanImageDice):
        return bootstrap_interval(summed(counts, groups), lambda sums, _: meter.score(sums))
    scores = meter.score(counts)
    rows = summed(torch.stack([scores, torch.ones_like(scores)], dim=1), groups)  # groups are of unequal sizes
    return bootstrap_interval(rows, lambda sums, _: sums[:, 0] / sums[:, 1])


def summed(rows: Tensor, groups: Tensor | None) -> Tensor:
    """Return the sums of the rows of each group, (G, ...), which is resampled as a whole; without groups the rows."""
    if groups is None:
        return rows
    numbers = groups.unique(return_inverse=True)[1]
    return torch.zeros(int(numbers.max()) + 1, *rows.shape[1:], dtype=rows.dtype).index_add(0, numbers, rows)


def macro(counts: Tensor, average: str = "macro") -> dict[str, Tensor]:
    """Return what `PrecisionRecallF1` computes, of counts (..., C, 3): "precision", "recall" and "f1", (...) each."""
    if average == "micro":
        counts = counts.sum(dim=-2, keepdim=True)
    both, predicted, actual = counts.unbind(dim=-1)  # (..., C) each
    present = (predicted + actual > 0).sum(dim=-1).clamp(min=1)
    ratios = {"precision": both / predicted.clamp(min=1), "recall": both / actual.clamp(min=1)}
    ratios["f1"] = 2 * both / (predicted + actual).clamp(min=1)
    return {name: ratio.sum(dim=-1) / present for name, ratio in ratios.items()}


