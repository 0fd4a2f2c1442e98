"""Say what an evaluation found, and whether it is what was found before."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError, nearest
from utils.files import write_json


def scalars(meters: Mapping[str, Any]) -> dict[str, float]:
    """Return what meters compute, by name: a dictionary gives an entry "name/key" for each key, a matrix gives none."""
    found = {}
    for name, meter in meters.items():
        value = meter.compute()
        entries = {f"{name}/{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: float(entry) for key, entry in entries.items() if getattr(entry, "ndim", 0) == 0}
    return found


def scalar_names(meters: Mapping[str, Any]) -> list[str]:
    """Return the names that `scalars` will give, before anything was measured."""
    names = []
    for name, meter in meters.items():
        with warnings.catch_warnings():  # torchmetrics warns of, or refuses, computing what was never updated
            warnings.simplefilter("ignore")
            try:
                names += scalars({name: meter})
            except (RuntimeError, ValueError):
                names.append(name)
    return names


def format_results(
    what: str, n: int, results: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> str:
    """Return a table of `n` samples' results: one line per metric, with its 95 % interval where there is one.

    >>> print(format_results("The model", 1000, {"accuracy": 0.9}, {"accuracy": (0.88, 0.92)}))
    The model, n = 1,000:
      accuracy               0.9000   95 % interval 0.8800 to 0.9200
    """
    lines = [f"{what}, n = {n:,}:"]
    for name, value in results.items():
        low, high = intervals.get(name, (None, None))
        interval = "" if low is None else f"   95 % interval {low:.4f} to {high:.4f}"
        lines.append(f"  {name:<20} {value:8.4f}{interval}")
    return "\n".join(lines)


def save_results(directory: Path, **record: Any) -> str:
    """Write `results.json`, what `format_results` takes, and return its table."""
    write_json(directory / "results.json", record)
    return format_results(**record)


# Another value of these does not make another score.
HARMLESS = ("model_path", "gpu_devices", "proj_name", "data_dir", "num_workers", "eval_batch_size", "seed", "metrics")


def compare_with_stored(
    results: Mapping[str, float], num_samples: int, checkpoint: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    """Hold the results against the score that a checkpoint carries, and return a line that says so.

    A score is compared where it was measured on these weights, on as many samples and with the same options.

    Args:
        results: of an evaluation of the validation part. Metrics that only one side has are passed over.
        num_samples: that were evaluated.
        checkpoint: its "score" with "update", "num_samples" and "results" (None before the first validation), its
            "progress" and its "options".
        options: of the evaluation.

    Raises:
        UserError: when they differ by more than rounding does.
    """
    score, trained = checkpoint["score"], checkpoint["options"]
    if not score or score["num_samples"] != num_samples or score["update"] != checkpoint["progress"]["update"]:
        return "The checkpoint holds no score of these weights on these samples to compare with."
    if checkpoint.get("averaging") and not options.get("use_average", True):
        return "Not compared with the score in the checkpoint, which is that of the averaged weights."
    for name in trained:
        if name in options and name not in HARMLESS and options[name] != trained[name]:
            return f"Not compared with the score in the checkpoint, which was measured with {name}={trained[name]}."
    for name, old in score["results"].items():
        new = results.get(name, old)
        both_nan = math.isnan(new) and math.isnan(old)
        if not (both_nan or math.isclose(new, old, rel_tol=1e-4, abs_tol=1e-6)):
            raise UserError(
                f"{name} is {new:.6f}, but {old:.6f} was stored with the checkpoint. The data or the code is another."
            )
    return "The score agrees with the one that is stored in the checkpoint."


def check_monitor(name: str, meters: Mapping[str, Any]) -> None:
    """Raise UserError when `name` is none of the scalars that these meters give."""
    if name not in (names := scalar_names(meters)):
        raise UserError(f"--monitor {name!r} is none of the metrics{nearest(name, names)}: {', '.join(names)}.")
