"""Read a duration such as 1h30m."""

import re

UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}  # seconds
DURATION = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in UNITS))


def seconds_of(text: str) -> float:
    """Return the seconds of a duration: whole numbers with their units d, h, m and s, in this order.

    Raises:
        ValueError: when it is none, or zero.

    >>> seconds_of("3h50m"), seconds_of("90s"), seconds_of("1d12h")
    (13800.0, 90.0, 129600.0)
    """
    match = DURATION.fullmatch(text)
    counts = match.groups(default="0") if match else ()
    seconds = sum(int(count) * length for count, length in zip(counts, UNITS.values(), strict=False))
    if not seconds:
        raise ValueError(f"{text[:60]!r} is not a duration above 0 such as 3h50m, 90s or 1d12h")
    return float(seconds)
