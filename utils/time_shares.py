"""Describe how the time of an epoch was spent."""

from collections.abc import Mapping

ALWAYS_SHOWN = ("step", "data")


def time_shares(total: float, parts: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of some parts in `total` seconds, and that of "other", which is the rest; their sum is 1.

    >>> time_shares(10.0, {"step": 6.0, "data": 2.0, "evaluation": 1.0})
    {'step': 0.6, 'data': 0.2, 'evaluation': 0.1, 'other': 0.1}
    """
    total = max(total, sum(parts.values()), 1e-9)
    seconds = {**parts, "other": total - sum(parts.values())}
    return {name: value / total for name, value in seconds.items()}


def shares_text(shares: Mapping[str, float]) -> str:
    """Format shares in whole percent, without zeros, except those of step and data.

    >>> shares_text({"step": 0.708, "data": 0.181, "evaluation": 0.09, "saving": 0.001, "other": 0.02})
    '71 % step, 18 % data, 9 % evaluation, 2 % other'
    """
    visible = {name: share for name, share in shares.items() if share >= 0.005 or name in ALWAYS_SHOWN}
    return ", ".join(f"{100 * share:.0f} % {name}" for name, share in visible.items())
