"""The results of an evaluation as a program: printed, and saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import write_json

MOST_LINES = 20  # of classes


def format_results(
    what: str,
    n: int,
    results: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    trivial: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return a table of the results on `n` samples: a line per metric, with its 95 % interval if there is one.

    Beside a score stands the best one without a look at the input, if it is known.

    >>> trivial = {"accuracy": {"score": 0.1, "predictor": "all Bag"}}
    >>> print(format_results("The model", 1000, {"accuracy": 0.9}, {"accuracy": (0.88, 0.92)}, trivial))
    The model, n = 1,000:
      accuracy               0.9000   95 % interval 0.8800 to 0.9200   all Bag: 0.1000
    """
    lines = [f"{what}, n = {n:,}:"]
    for name, value in results.items():
        line = f"  {name:<20} {value:8.4f}"
        if name in intervals:
            low, high = intervals[name]
            line += f"   95 % interval {low:.4f} to {high:.4f}"
        if trivial and name in trivial:
            line += f"   {trivial[name]['predictor']}: {trivial[name]['score']:.4f}"
        lines.append(line)
    return "\n".join(lines)


def format_classes(per_class: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of the scores of each class; of many, of those with the least F1.

    >>> scores = {"actual": 4, "predicted": 5, "precision": 0.6, "recall": 0.75, "f1": 2 / 3, "iou": 0.5, "dice": 2 / 3}
    >>> print(format_classes({"Bag": scores}))
    class                       n  precision   recall  f1, dice      iou
      Bag                       4     0.6000   0.7500    0.6667   0.5000
    """
    shown = per_class
    if len(per_class) > MOST_LINES:
        there = [name for name, scores in per_class.items() if scores["f1"] is not None]
        shown = {name: per_class[name] for name in sorted(there, key=lambda name: per_class[name]["f1"])[:MOST_LINES]}
    lines = [f"{'class':<20} {'n':>8}  precision   recall  f1, dice      iou"]
    for name, scores in shown.items():
        line = f"  {name:<18} {scores['actual']:>8,}"
        for key, width in (("precision", 10), ("recall", 8), ("f1", 9), ("iou", 8)):
            line += f" {'none' if scores[key] is None else format(scores[key], '.4f'):>{width}}"
        lines.append(line)
    if len(shown) < len(per_class):
        lines.append(f"  These are the {len(shown)} with the least F1 of {len(per_class):,}; all are in results.json.")
    return "\n".join(lines)


def save_results(
    directory: Path,
    what: str,
    n: int,
    results: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    trivial: Mapping[str, Mapping[str, Any]] | None = None,
    **more: Any,
) -> str:
    """Write the arguments to `results.json`, and return the table of `format_results`."""
    record = {"what": what, "n": n, "results": results, "intervals": intervals, "trivial": trivial or {}, **more}
    write_json(directory / "results.json", record)
    return format_results(what, n, results, intervals, trivial)
