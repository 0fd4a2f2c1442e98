"""Say what an evaluation found, and whether it is what was found before."""

import math
from collections.abc import Mapping
from typing import Any

from utils.errors import UserError


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


def compare_with_stored(results: Mapping[str, float], num_samples: int, stored: Mapping[str, Any] | None) -> str:
    """Hold the results against the score that a checkpoint carries, and return a line that says so.

    Args:
        results: of an evaluation of the validation part. Metrics that only one side has are passed over.
        num_samples: that were evaluated.
        stored: the score: "results" and "num_samples"; None when the run was never validated.

    Raises:
        UserError: when they differ by more than rounding does.
    """
    if not stored or stored["num_samples"] != num_samples:
        return "The checkpoint holds no score of these samples to compare with."
    for name in (name for name in stored["results"] if name in results):
        new, old = results[name], stored["results"][name]
        both_nan = math.isnan(new) and math.isnan(old)
        if not (both_nan or math.isclose(new, old, rel_tol=1e-4, abs_tol=1e-6)):
            raise UserError(
                f"{name} is {new:.6f}, but {old:.6f} was stored with the checkpoint. "
                "The data, the code or the precision is not that of the run."
            )
    return "The score agrees with the one that is stored in the checkpoint."
