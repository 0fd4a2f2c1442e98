"""The time limit is kept, with room for another round and for a checkpoint."""

import contextlib
import random
import signal

import pytest

from engine.runs.signals import Terminated, TimeIsUp
from extras.time_limit import TimeLimit


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_time_is_up_two_longest_rounds_and_the_reserve_before_the_limit():
    clock = Clock()
    stop_signal = TimeLimit("100s", clock)
    stop_signal.reserve = 5
    for clock.now in (0, 10, 12, 13, 20, 30, 40, 50, 60, 70, 74.9):
        stop_signal.raise_if_set()
    clock.now = 75  # + 2 x 10 + 5
    for _ in range(2):
        with pytest.raises(TimeIsUp):
            stop_signal.raise_if_set()


def test_before_a_round_is_known_only_the_reserve_counts():
    for reserve, last in ((0, 100), (30, 70)):
        for now, is_up in ((last - 0.1, False), (last, True), (last + 50, True)):
            clock = Clock()
            stop_signal = TimeLimit("100s", clock)
            stop_signal.reserve, clock.now = reserve, now
            with pytest.raises(TimeIsUp) if is_up else contextlib.nullcontext():
                stop_signal.raise_if_set()


def test_a_pause_before_the_block_is_not_a_round():
    clock = Clock()
    stop_signal = TimeLimit("1000s", clock)
    for clock.now in (0, 1, 900):  # seconds; the run was interrupted and taken up again in the same process
        with stop_signal:
            stop_signal.raise_if_set()


def test_rounds_that_last_at_most_twice_as_long_as_before_stay_in_time():
    chance = random.Random(0)
    ends = []
    for _ in range(300):
        clock, reserve = Clock(), chance.uniform(0, 5)
        stop_signal = TimeLimit("100s", clock)
        stop_signal.reserve, longest = reserve, 1.0
        clock.now = chance.uniform(0, 10)
        with pytest.raises(TimeIsUp):
            stop_signal.raise_if_set()
            clock.now += longest
            while True:
                stop_signal.raise_if_set()
                duration = longest * chance.uniform(0, 2 if chance.random() < 0.1 and longest < 5 else 1)
                clock.now, longest = clock.now + duration, max(longest, duration)
        ends.append(clock.now + reserve)
    assert min(ends) > 70 and max(ends) < 100


def test_signal_comes_before_the_time():
    clock = Clock()
    clock.now = 1e9
    with TimeLimit("1s", clock) as stop_signal:
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Terminated):
            stop_signal.raise_if_set()


def test_time_counts_from_the_start_of_the_program(fresh_python):
    text = "import engine.runs.signals, time; time.sleep(0.7); from extras.time_limit import *"
    assert 0.7 <= float(fresh_python("-c", f"{text}; print(seconds_since_start())").stdout) < 20
