"""Make the metrics that --metrics names: the template's, those of torchmetrics, and user-defined ones."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.registry import call, find, name_type, short_name, split_arguments
from utils.errors import UserError

TOP_K = re.compile(r"top([1-9][0-9]{0,5})")  # of classification
METHODS = ("update", "compute", "reset", "to")  # of a metric


def metric_name(task: str) -> Callable[[str], str]:
    """Return an argparse type for the name of a metric; for classification also top2, top3, and so on."""
    is_top_k = TOP_K.fullmatch if task == "classification" else lambda text: None
    take = name_type("metric", task, more=["topK, such as top5"] if task == "classification" else [])
    return lambda text: text if is_top_k(text) else take(text)


def ignored_by(criterion: Any) -> dict[str, int]:
    """Return the target that a loss leaves out as an argument of metrics, `ignore_index`; {} if there is none."""
    for module in criterion.modules():
        for name in ("ignore_index", "ignored"):
            if getattr(module, name, None) is not None:
                return {"ignore_index": getattr(module, name)}
    return {}


def build_metrics(
    metric_names: Sequence[str], metric_args: Mapping[str, Any] | None = None, *, num_classes: int, **offered: Any
) -> dict[str, Any]:
    """Return a metric for each name; that of ``MODULE:NAME`` is NAME. Each gets of the last arguments those it takes.

    >>> list(build_metrics(["accuracy", "top3"], num_classes=10))
    ['accuracy', 'top3']

    Args:
        metric_names: see `metric_name`.
        metric_args: further arguments, a mapping for each metric by its name.
        num_classes: of the task.
        offered: more that a metric may take, see `ignored_by`.

    Raises:
        UserError: when a metric cannot be made with its arguments, or has not the methods of one.
    """
    names = {short_name(name): name for name in metric_names}
    if len(names) < len(set(metric_names)):
        raise UserError(f"--metrics names two metrics that are both called {' or '.join(names)}: rename one.")
    arguments = split_arguments(metric_args or {}, names, "--metric_args", "metric")
    metrics: dict[str, Any] = {}
    for short, name in names.items():
        top_k = TOP_K.fullmatch(name)
        if top_k and int(top_k[1]) > num_classes:
            raise UserError(f"--metrics {name} needs at least {top_k[1]} classes: there are {num_classes}.")
        special = {"top_k": int(top_k[1])} if top_k else {"num_classes": num_classes}
        component = find("metric", "accuracy" if top_k else name)
        metrics[short] = call(component, offered | special, arguments[short], f"--metric_args {short}")
        if missing := [method for method in METHODS if not hasattr(metrics[short], method)]:
            raise UserError(f"--metrics {name} makes no metric: it has no method {missing[0]}().")
    return metrics
