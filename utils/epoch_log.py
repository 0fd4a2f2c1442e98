"""What is measured while an epoch goes on."""

from collections.abc import Mapping
from typing import Any

import torch

from utils.meter import AvgMeter


class EpochLog:
    """Means over the epoch's samples, the learning rates of its last update, and seconds.

    Args:
        device: where the values are.

    Attributes:
        seconds: "train": spent on updates and on waiting for their data; "data_wait": on waiting alone. Not a part of
            the state, because two runs that compute the same differ in them.

    >>> log = EpochLog()
    >>> log.add({"loss": torch.tensor(2.0)}, num_samples=3, learning_rates={"lr": 0.1})
    >>> log.add({"loss": torch.tensor(1.0)}, num_samples=1, learning_rates={"lr": 0.1})
    >>> log.row()
    {'train/loss': 1.75, 'lr': 0.1}
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Begin a new epoch."""
        self.meters: dict[str, AvgMeter] = {}
        self.learning_rates: dict[str, float] = {}
        self.seconds = {"train": 0.0, "data_wait": 0.0}

    def add(self, values: Mapping[str, torch.Tensor], num_samples: int, learning_rates: Mapping[str, float]) -> None:
        """Take in an update: its values, each the mean over `num_samples`, and the rates that it was made with."""
        self.learning_rates = dict(learning_rates)
        for name, value in values.items():
            self.meters.setdefault(name, AvgMeter().to(self.device)).update(value, num_samples)

    def row(self) -> dict[str, float]:
        """The means and the learning rates, by the names that they have in metrics.csv."""
        return {f"train/{name}": meter.compute() for name, meter in self.meters.items()} | self.learning_rates

    def times(self, num_samples: int) -> dict[str, float]:
        """The seconds, and how many of the epoch's `num_samples` went through in one."""
        times = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return times | {"samples_per_second": num_samples / max(self.seconds["train"], 1e-9)}

    def state_dict(self) -> dict[str, Any]:
        meters = {name: meter.state_dict() for name, meter in self.meters.items()}
        return {"meters": meters, "learning_rates": self.learning_rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        for name, of_meter in state["meters"].items():
            self.meters[name] = AvgMeter().to(self.device)
            self.meters[name].load_state_dict(of_meter)
        self.learning_rates = {str(name): float(rate) for name, rate in state["learning_rates"].items()}
