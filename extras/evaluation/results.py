"""The results of an evaluation as a program: printed, and saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import write_json


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
