"""The advice in the log is worth following."""

import csv
import re
import time

import pytest
from torch.utils.data import Dataset

import eval as eval_module
from data.data_entry import build_datasets
from extras import choose_workers, data_advice


class Sleeping(Dataset):
    """Samples of another data set, one by one, each after 5 ms that take no core."""

    is_random = False

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.names = dataset.names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        time.sleep(0.005)
        return self.dataset[index]


@pytest.fixture
def sleeping(monkeypatch):
    """Vanilla runs wait for their data, on a machine of four cores."""
    monkeypatch.setattr(
        eval_module, "build_datasets",
        lambda opt: {part: Sleeping(dataset) for part, dataset in build_datasets(opt).items()},
    )  # fmt: skip
    for module in (data_advice, choose_workers):
        monkeypatch.setattr(module, "usable_cores", lambda: 4)


def log_of(trainer) -> str:
    (path,) = trainer.run_dir.path.glob("*_log.txt")
    return path.read_text()


def speed_of(trainer) -> float:
    """The samples per second of the last epoch: the first one starts the processes."""
    with open(trainer.run_dir.path / "metrics.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["samples_per_second"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # on fewer cores, which is all right for sleeping
def test_advice_that_is_followed_raises_the_speed_and_changes_no_weights(sleeping, train, weights, differences):
    slow = train(callbacks=None)
    (advice,) = re.findall(r"WARNING Much of the time.*", log_of(slow))  # once in two epochs
    flags = re.search(r": (--\w+ \w+)$", advice)[1].split()
    fast = train(*flags, callbacks=None)
    assert speed_of(fast) >= 1.3 * speed_of(slow)
    assert not differences(weights(slow), weights(fast))
    assert re.search(r"Loading processes: [24]\. Samples per second of loading alone: .* with 0", log_of(fast))


def test_fast_data_gets_no_advice(train):
    assert "waiting for data" not in log_of(train(callbacks=None))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
def test_the_number_of_workers_is_chosen_by_whoever_loads_and_changes_no_result(sleeping, train, weights, differences):
    run = train("--num_workers", "auto", "--n_epoch", "1")
    assert run.train_loader.num_workers in (2, 4) and run.opt.num_workers == "auto"
    assert run.val_loader.num_workers == run.train_loader.num_workers
    assert run.train_loader.source.workers == []  # they ended with the run
    assert not differences(weights(run), weights(train("--num_workers", 0, "--n_epoch", "1")))
