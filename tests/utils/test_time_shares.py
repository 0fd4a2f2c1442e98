"""The shares of time add up."""

import random

import pytest

from utils.time_shares import shares_text, time_shares


def test_shares_make_the_whole():
    shares = time_shares(20.0, {"step": 8.5, "data": 3.0, "saving": 2.0})
    assert shares == pytest.approx({"step": 8.5 / 20, "data": 3 / 20, "saving": 2 / 20, "other": 6.5 / 20})


def test_no_share_is_negative_when_clocks_disagree():
    shares = time_shares(1.0, {"step": 3.0, "data": 3.5})
    assert min(shares.values()) >= 0 and sum(shares.values()) == pytest.approx(1)
    assert time_shares(0.0, {"step": 0.0})["other"] == pytest.approx(1)


def test_the_percents_that_are_shown_make_100_up_to_rounding():
    dice = random.Random(0)
    for _ in range(300):
        parts = {name: dice.expovariate(1) ** 3 for name in ("step", "data", "evaluation", "saving")}
        shares = time_shares(dice.uniform(0, 10), parts)
        shown = [int(part.split(" %")[0]) for part in shares_text(shares).split(", ")]
        assert abs(sum(shown) - 100) <= 2 and min(shown) >= 0


def test_step_and_data_are_always_shown():
    shares = time_shares(1.0, {"step": 0.0, "data": 0.0, "evaluation": 1.0})
    assert shares_text(shares) == "0 % step, 0 % data, 100 % evaluation"
