"""One format of durations."""

import pytest

from utils.duration import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13_800), ("1s", 1), ("90s", 90), ("30m", 1_800), ("100h", 360_000), ("2d12h30m5s", 217_805)],
)
def test_units_are_added_up(text, seconds):
    assert seconds_of(text) == seconds and isinstance(seconds_of(text), float)


@pytest.mark.parametrize("text", ["", "3", "0s", "0h0m", "-1h", "1.5h", "3:50", "1m2h", "1h 30m", "1h\n", "٣h", "1w"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="not a duration above 0 such as 3h50m"):
        seconds_of(text)
