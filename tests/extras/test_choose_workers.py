"""The number of loading processes is measured, and measuring leaves no trace."""

import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from data.loader import UpdateLoader
from extras import choose_workers as module
from extras.choose_workers import choose_workers, fewest_of_the_fast
from utils.errors import LoadingError, UserError
from utils.seed import random_state


class Sleeping(Dataset):
    """A sample takes 5 ms, and no core."""

    is_random = False
    seconds = 0.005

    def __init__(self, fault=None):
        self.fault = fault
        self.names = [f"number_{index}" for index in range(200)]
        self.num_loaded_here = 0

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        self.num_loaded_here += 1
        time.sleep(self.seconds)
        if self.fault:
            self.fault()
        return torch.tensor(index)


class Whole(Sleeping):
    """Gives whole batches from memory; a sample that is asked for alone would be noticed."""

    in_memory = True

    def __getitem__(self, index):
        raise AssertionError("it was measured")

    def __getitems__(self, indices):
        raise AssertionError("it was measured")


class Random(Sleeping):
    is_random = True

    def __getitem__(self, index):
        super().__getitem__(index)
        return torch.rand(()) + random.random() + np.random.rand()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    raise UserError("The file cannot be read.")


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # on fewer cores, which is all right for sleeping
def test_data_that_sleeps_takes_processes():
    number, report = choose_workers(Sleeping(), batch_size=16, cores=4)
    assert number in (2, 4)
    assert report.startswith(f"Loading processes: {number}. Samples per second of loading alone: ")
    assert all(f" with {tried}" in report for tried in (0, 1, 2, 4))


def test_data_that_gives_whole_batches_takes_none_and_is_not_touched():
    assert choose_workers(Whole(), batch_size=16)[0] == 0


def test_data_that_is_fast_takes_none(monkeypatch):
    monkeypatch.setattr(Sleeping, "seconds", 0)
    number, report = choose_workers(Sleeping(), batch_size=16, cores=1)
    assert (number, report[:22]) == (0, "Loading processes: 0. ")


@pytest.mark.parametrize(
    ("speeds", "number"),
    [({0: 100, 1: 99, 2: 109}, 0), ({0: 100, 1: 99, 2: 112}, 2), ({0: 10, 1: 50, 2: 95, 4: 100}, 2), ({0: 1}, 0)],
)
def test_fewer_processes_are_preferred_when_they_are_nearly_as_fast(speeds, number):
    assert fewest_of_the_fast(speeds) == number


def test_the_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert module.usable_cores() == 1


def test_measuring_leaves_no_trace():
    dataset = Random()
    before, children = random_state(), set(multiprocessing.active_children())
    choose_workers(dataset, batch_size=8, seed=3, cores=2)
    after = random_state()
    assert before["python"] == after["python"] and torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"]["key"], after["numpy"]["key"])
    assert before["numpy"]["pos"] == after["numpy"]["pos"]
    assert dataset.num_loaded_here == 0  # a file that it opened here would be shared with every later process
    assert set(multiprocessing.active_children()) <= children


def test_a_process_that_dies_is_told_as_in_training():
    messages = []
    for load in (lambda: choose_workers(Sleeping(kill), 4, cores=2, part="train"),
                 lambda: list(UpdateLoader(Sleeping(kill), 1, num_workers=1).updates(0))):  # fmt: skip
        with pytest.raises(LoadingError, match="was ended by SIGKILL while it loaded sample 'number_") as caught:
            load()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_sample_that_cannot_be_loaded_is_told_as_in_training():
    with pytest.raises(UserError, match=r"The file cannot be read\.\nThat is sample 'number_"):
        choose_workers(Sleeping(refuse), 4, cores=2, part="train")


def test_samples_that_may_be_bad_are_left_to_the_training_to_tell(capfd):
    number, _ = choose_workers(Sleeping(refuse), 4, cores=2, part="train", max_bad_samples=10**6)
    assert number >= 0 and capfd.readouterr().err == ""


def test_a_process_that_hangs_ends_it_after_the_timeout(monkeypatch):
    monkeypatch.setattr(Sleeping, "seconds", 3600)
    with pytest.raises(LoadingError, match="No data came for 1 seconds"):
        choose_workers(Sleeping(), 4, cores=2, time_limit=60, worker_timeout=1)


def test_when_one_sample_takes_longer_than_all_the_time_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(Sleeping, "seconds", 3600)
    number, report = choose_workers(Sleeping(), 4, cores=8, time_limit=0.5)
    assert number == 2 and "0.5 s were not enough" in report


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
def test_what_was_measured_in_time_counts(monkeypatch):
    class Late(module.DataLoaderSource):
        def start(self):
            if self.loader.num_workers == 4:
                raise module.OutOfTime
            return super().start()

    monkeypatch.setattr(module, "DataLoaderSource", Late)
    number, report = choose_workers(Sleeping(), 16, cores=10**4)
    assert number == 2 and " with 2" in report and " with 4" not in report
