"""The results of an evaluation: computed by meters, and kept with a run."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

from engine.checkpoints.state import PlainState
from utils.errors import UserError, nearest


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
