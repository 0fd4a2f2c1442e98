"""The line of an epoch is a mean over its samples, and survives a checkpoint."""

import pytest
import torch

from engine.checkpoints.restore import set_state
from engine.epoch_log import EpochLog, Seconds
from utils.errors import UserError


def test_means_weigh_samples_and_the_last_rates_count():
    log = EpochLog()
    log.add({"loss": torch.tensor(1.0)}, 6, {"lr": 0.2})
    log.add({"loss": torch.tensor(4.0)}, 2, {"lr": 0.1})
    assert log.row() == {"train/loss": pytest.approx(1.75), "lr": 0.1}


def test_update_without_values_does_not_move_the_mean():
    log = EpochLog()
    log.add({"loss": torch.tensor(1.0)}, 6, {"lr": 0.2})
    log.add({}, 6, {"lr": 0.1})
    assert log.row() == {"train/loss": 1.0, "lr": 0.1}


def test_times_of_an_epoch():
    log = EpochLog()
    log.seconds["train"] = 2.0
    assert log.times(10) == {"time/train": 2.0, "time/data_wait": 0.0, "time/save": 0.0, "samples_per_second": 5.0}


def test_saving_between_two_updates_is_no_time_of_training(monkeypatch):
    clock = iter([0.0, 1.0, 8.0])  # asked, then given, saved for 4 of 7 seconds
    monkeypatch.setattr("engine.epoch_log.time.perf_counter", lambda: next(clock))
    log = EpochLog()
    for _ in log.timed([1]):
        log.seconds["save"] += 4.0
    assert log.seconds["train"] == 4.0 and log.seconds["data_wait"] == 1.0


def test_time_of_an_update_that_something_broke_off_is_in_the_state(monkeypatch):
    clock = iter([0.0, 1.0, 8.0])
    monkeypatch.setattr("engine.epoch_log.time.perf_counter", lambda: next(clock))
    log = EpochLog()
    updates = log.timed([1, 2])
    next(updates)
    log.state_dict()
    assert log.seconds["train"] == 8.0


def test_second_half_of_an_epoch_continues_the_first():
    log, other = EpochLog(), EpochLog()
    log.add({"loss": torch.tensor(1.0)}, 6, {"lr": 0.2})
    log.seconds["train"] = 2.0
    other.load_state_dict(log.state_dict())
    other.seconds = dict(log.seconds)
    for each in (log, other):
        each.add({"loss": torch.tensor(4.0)}, 2, {"lr": 0.1})
    assert other.row() == log.row() and other.times(8) == log.times(8)
    log.clear()
    assert log.row() == {} and log.times(0)["time/train"] == 0


def test_learning_rate_that_is_no_number_is_refused():
    log = EpochLog()
    with pytest.raises(TypeError):
        log.load_state_dict({"totals": {}, "learning_rates": {"lr": None}})


def test_seconds_that_an_earlier_version_did_not_measure_are_none():
    seconds = Seconds()
    set_state(seconds, {"train": 2.0, "data_wait": 1.0}, "It")
    assert seconds == {"train": 2.0, "data_wait": 1.0, "save": 0.0}
    with pytest.raises(UserError, match="train is missing or of a wrong type"):
        set_state(seconds, {"train": "2"}, "It")
