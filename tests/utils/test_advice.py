"""The shares of time add up, and the advice fits the measurements."""

import random

import pytest

from utils.advice import MUCH_WAITING, data_advice, shares_text, time_shares


def test_shares_make_the_whole():
    shares = time_shares(20.0, train=12.0, data_wait=3.0, evaluation=4.0, saving=2.0, saving_in_train=0.5)
    assert shares == pytest.approx(
        {"step": 8.5 / 20, "data": 3 / 20, "evaluation": 4 / 20, "saving": 2 / 20, "other": 2.5 / 20}
    )


def test_no_share_is_negative_when_clocks_disagree():
    shares = time_shares(1.0, train=3.0, data_wait=3.5)
    assert min(shares.values()) >= 0 and sum(shares.values()) == pytest.approx(1)
    assert sum(time_shares(0.0, train=0.0).values()) == pytest.approx(1)


def test_the_percents_that_are_shown_make_100():
    dice = random.Random(0)
    for _ in range(300):
        shares = time_shares(dice.uniform(0, 10), *(dice.expovariate(1) ** 3 for _ in range(4)))
        shown = [int(part.split(" %")[0]) for part in shares_text(shares).split(", ")]
        assert sum(shown) == 100 and min(shown) >= 0


def test_step_and_data_are_always_shown():
    assert shares_text(time_shares(1.0, train=0.0, evaluation=1.0)) == "0 % step, 0 % data, 100 % evaluation"


@pytest.mark.parametrize(
    ("known", "flag"),
    [
        ({}, "--num_workers auto"),
        ({"num_workers": 2, "cores": 8}, "--num_workers 4"),
        ({"num_workers": 6, "cores": 8}, "--num_workers 8"),
        ({"num_workers": 2, "cores": 8, "was_measured": True, "can_cache": True}, "--cache"),
        ({"num_workers": 8, "cores": 8, "can_cache": True, "can_move": True, "patch_size": 256}, "--cache"),
        ({"num_workers": 8, "cores": 8, "can_move": True, "patch_size": 256}, "--data_device auto"),
        ({"num_workers": 16, "cores": 8, "patch_size": 256}, "--patch_size below 256"),
        ({"num_workers": 8, "cores": 8}, "faster disk"),
        ({"was_measured": True}, "faster disk"),
        ({"in_memory": True, "can_move": True}, "--data_device auto"),
        ({"in_memory": True, "num_workers": 4, "cores": 8, "can_move": True}, "--num_workers 0"),
        ({"in_memory": True}, None),
    ],
)
def test_advice_fits_what_is_known(known, flag):
    known = {"num_workers": 0, "cores": 8} | known
    assert data_advice(MUCH_WAITING, **known) == ""
    text = data_advice(MUCH_WAITING + 0.01, **known)
    assert data_advice(0.9, **known) == text  # the same text is printed once, however long the waiting
    assert text.startswith("Much of the time is spent waiting for data. ") and flag in text if flag else text == ""
    if text:
        assert sum(name in text for name in ("--num_workers", "--cache", "--data_device", "--patch_size")) <= 1
