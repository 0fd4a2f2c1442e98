"""The vanilla task with something more: python -m tests.torture.tasks {dropout,faulty} OPTIONS

`dropout` draws random numbers in training. `faulty` has a sample that kills, crashes, fails or blocks the process that
loads it, as long as the environment says so.
"""

import ctypes
import os
import signal
import sys
import time
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from data.sampler import epoch_order
from trainer_vanilla import TrainerVanilla

FAULT = "TORTURE_FAULT"  # the environment's variable that names the fault
BAD_PLACE = 500  # of the bad sample in the first epoch


class TrainerDropout(TrainerVanilla):
    """The vanilla task with dropout of pixels."""

    def compute_loss(self, batch: Any) -> torch.Tensor:
        images, labels = batch  # (N, 1, 28, 28), (N,)
        return self.criterion(self.model(F.dropout(images, 0.2)), labels)


def bad_index(num_samples: int, seed: int) -> int:
    """The sample that is bad; it is met in the middle of the first epoch."""
    return epoch_order(num_samples, seed, 0)[BAD_PLACE]


def misbehave(fault: str) -> None:
    """Do to this process what the fault is named for."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "segfault":
        ctypes.string_at(0)
    elif fault == "raise":
        raise ValueError("this sample is out of luck")
    elif fault == "hang":
        time.sleep(3600)


class OneBadSample(Dataset):
    """A data set with one sample that misbehaves."""

    is_random = False

    def __init__(self, dataset: Dataset, bad: int):
        self.dataset, self.bad = dataset, bad
        self.names, self.collate_fn = dataset.names, dataset.collate_fn

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> Any:
        if self.bad in indices:
            misbehave(os.environ.get(FAULT, ""))
        return self.dataset.__getitems__(indices)


class TrainerFaulty(TrainerVanilla):
    """The vanilla task with one bad sample."""

    def build_loaders(self) -> tuple[Any, Any]:
        train = self.datasets["train"]
        self.datasets["train"] = OneBadSample(train, bad_index(len(train), self.opt.seed))
        loaders = super().build_loaders()
        self.datasets["train"] = train
        return loaders


TASKS = {"dropout": TrainerDropout, "faulty": TrainerFaulty}

if __name__ == "__main__":
    TASKS[sys.argv.pop(1)].main()
