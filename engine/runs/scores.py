"""The results of an evaluation: computed by meters, printed, and saved."""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoints.state import PlainState
from utils.errors import UserError, nearest
from utils.files import write_json


class Score(PlainState):
    """The results of the last validation, with the update they belong to; empty before the first."""

    kinds = {"update": int, "num_samples": int, "results": dict}


def scalars(meters: Mapping[str, Any]) -> dict[str, float]:
    """Compute meters by name. A dictionary gives an entry "name/key" for each scalar in it; a matrix gives none."""
    results = {}
    for name, meter in meters.items():
        try:
            value = meter.compute()
        except ValueError as error:
            raise UserError(f"The metric {name} cannot be computed: {error}") from error
        entries = {f"{name}/{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        results |= {key: float(entry) for key, entry in entries.items() if getattr(entry, "ndim", 0) == 0}
    return results


def check_monitor(monitor: str, meters: Mapping[str, Any]) -> None:
    """Raise UserError when meters compute no scalar of this name; before they have measured anything."""
    names: list[str] = []
    for name, meter in meters.items():
        with warnings.catch_warnings(action="ignore"):  # torchmetrics warns of it, or refuses to compute
            try:
                names += scalars({name: copy.deepcopy(meter)})  # a failed computation may leave half of an exchange
            except Exception:  # without data, a meter may fail in any way
                names.append(name)
    if monitor not in names:
        raise UserError(f"--monitor {monitor!r} is none of the metrics{nearest(monitor, names)}: {', '.join(names)}.")


def format_results(
    what: str, n: int, results: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> str:
    """Return a table of the results on `n` samples: a line per metric, with its 95 % interval if there is one.

    >>> print(format_results("The model", 1000, {"accuracy": 0.9}, {"accuracy": (0.88, 0.92)}))
    The model, n = 1,000:
      accuracy               0.9000   95 % interval 0.8800 to 0.9200
    """
    lines = [f"{what}, n = {n:,}:"]
    for name, value in results.items():
        line = f"  {name:<20} {value:8.4f}"
        if name in intervals:
            low, high = intervals[name]
            line += f"   95 % interval {low:.4f} to {high:.4f}"
        lines.append(line)
    return "\n".join(lines)


def save_results(directory: Path, **record: Any) -> str:
    """Write the arguments of `format_results` to `results.json`, and return its table."""
    write_json(directory / "results.json", record)
    return format_results(**record)
