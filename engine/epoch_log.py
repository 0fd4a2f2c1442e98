"""Measure an epoch: means over its samples, learning rates, seconds."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from engine.checkpoints.state import PlainState


class Seconds(PlainState):
    """How long the parts of an epoch took."""

    kinds = {"train": float, "data_wait": float, "save": float}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state over; what an earlier version did not measure is 0."""
        super().load_state_dict(dict.fromkeys(self.kinds, 0.0) | state)


class EpochLog:
    """Means over the epoch's samples, the learning rates of its last update, and seconds.

    An update costs next to nothing here. Its values stay on the device, unread, until a mean or the state is needed;
    then all of them are fetched at once. So the CPU waits for a GPU once, and not in every update. They are added up in
    the order of the updates, so the time of the fetch does not change the sum.

    Attributes:
        seconds: "train": spent on updates and on waiting for their data; "data_wait": on waiting alone; "save": on
            checkpoints since the last epoch's row; "val": on validation. Not a part of the state, because two runs that
            compute the same differ in them.

    >>> log = EpochLog()
    >>> log.add({"loss": torch.tensor(2.0)}, num_samples=3, learning_rates={"lr": 0.1})
    >>> log.add({"loss": torch.tensor(1.0)}, num_samples=1, learning_rates={"lr": 0.1})
    >>> log.row()
    {'train/loss': 1.75, 'lr': 0.1}
    """

    MOST_PENDING = 1000  # updates whose values are held on the device

    def __init__(self):
        self.seconds = Seconds()
        self.clear()

    def clear(self) -> None:
        """Begin a new epoch."""
        self.totals: dict[str, list[float]] = {}  # by name: the sum over samples, and how many these are
        self.pending: list[tuple[Mapping[str, torch.Tensor], int]] = []
        self.num_read = 0  # updates that are in the totals
        self.learning_rates: dict[str, float] = {}
        self.seconds.load_state_dict({})
        self.newest: tuple[Mapping[str, Any], int] = ({}, 0)  # the values of the last update, and its samples
        self.last_read: tuple[float, float] | None = None  # the clock, and the seconds of saving by then

    def timed(self, updates: Iterable[Any]) -> Iterator[Any]:
        """Yield the updates, and time the wait for each and the work on it, without the saving in between."""
        self.last_read = (time.perf_counter(), self.seconds["save"])
        for update in updates:
            self.seconds["data_wait"] += time.perf_counter() - self.last_read[0]
            yield update
            self.read_clock()
        self.last_read = None

    def read_clock(self) -> None:
        """Count the time of training up to now; a state may be asked for within an update."""
        if self.last_read:
            began, saved = self.last_read
            self.last_read = (time.perf_counter(), self.seconds["save"])
            self.seconds["train"] += self.last_read[0] - began - (self.last_read[1] - saved)

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes under a name."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def add(self, values: Mapping[str, torch.Tensor], num_samples: int, learning_rates: Mapping[str, float]) -> None:
        """Add an update: its values, scalars, each the mean over `num_samples`, and the learning rates of its step."""
        self.learning_rates = learning_rates
        self.newest = (values, num_samples)
        if values and num_samples:  # the mean of no samples is NaN
            held = {name: value.detach() if torch.is_tensor(value) else value for name, value in values.items()}
            self.pending.append((held, num_samples))
            if len(self.pending) >= self.MOST_PENDING:
                self.fetch(self.MOST_PENDING // 2)

    def read_newest(self, mean: Callable[[dict[str, float], int], dict[str, float]]) -> dict[str, float]:
        """Return the values of the last update as numbers, and its learning rates; waits for the device.

        Args:
            mean: makes means over all processes of those over the samples of this one.
        """
        values, num_samples = self.newest
        numbers = dict(zip(values, read_scalars(list(values.values())), strict=True))
        return mean(numbers, num_samples) | dict(self.learning_rates)

    def fetch(self, count: int | None = None) -> None:
        """Read what is pending, or the first `count` updates of it, and add it to the totals."""
        read = self.pending[:count]
        del self.pending[:count]
        numbers = iter(read_scalars([value for values, _ in read for value in values.values()]))
        for values, num_samples in read:
            for name in values:
                total = self.totals.setdefault(name, [0.0, 0])
                total[0] += next(numbers) * num_samples
                total[1] += num_samples
        self.num_read += len(read)

    def mark(self) -> tuple[int, Mapping[str, float]]:
        """Where the log stands, for `back_to`."""
        return self.num_read + len(self.pending), self.learning_rates

    def back_to(self, mark: tuple[int, Mapping[str, float]]) -> None:
        """Forget the updates since `mark`, the last few of those that are pending."""
        num_updates, self.learning_rates = mark
        assert num_updates >= self.num_read, "what was read cannot be forgotten"
        del self.pending[num_updates - self.num_read :]

    def row(self, gather: Callable[[Any], list[Any]] = lambda value: [value]) -> dict[str, float]:
        """The means and the learning rates, by the names that they have in metrics.csv.

        Args:
            gather: returns what several processes give it, for means over the samples of all of them.
        """
        self.fetch()
        totals = add_totals(gather(self.totals))
        return {f"train/{name}": total / count for name, (total, count) in totals.items()} | self.learning_rates

    def times(self, num_samples: int) -> dict[str, float]:
        """The seconds, and how many of the epoch's `num_samples` went through in one."""
        times = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return times | {"samples_per_second": num_samples / max(self.seconds["train"], 1e-9)}

    def state_dict(self) -> dict[str, Any]:
        self.fetch()
        self.read_clock()  # `seconds` is collected after this
        totals = {name: list(total) for name, total in self.totals.items()}
        return {"totals": totals, "learning_rates": dict(self.learning_rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; ValueError or TypeError for anything else."""
        self.clear()
        if "totals" not in state:
            raise ValueError("it was written by an earlier version. It can be evaluated, or started from: --pretrained")
        self.totals = {str(name): [float(total), int(n)] for name, (total, n) in state["totals"].items()}
        if any(n < 1 for _, n in self.totals.values()):
            raise ValueError("a mean over fewer samples than one cannot be")
        self.learning_rates = {str(name): float(rate) for name, rate in state["learning_rates"].items()}


def add_totals(of_processes: Iterable[Mapping[str, list]]) -> dict[str, list]:
    """The sums over samples, and how many these are, of all processes together.

    >>> add_totals([{"loss": [3.0, 2]}, {"loss": [1.5, 1]}])
    {'loss': [4.5, 3]}
    """
    added: dict[str, list] = {}
    for totals in of_processes:
        for name, (total, count) in totals.items():
            before = added.get(name, [0, 0])
            added[name] = [before[0] + total, before[1] + count]
    return added


def read_scalars(scalars: list[torch.Tensor]) -> list[float]:
    """Return scalars as numbers; those of one kind with a single wait for their device."""
    kinds = {(scalar.device, scalar.dtype) if torch.is_tensor(scalar) else None for scalar in scalars}
    if len(kinds) != 1 or None in kinds:
        return [float(scalar) for scalar in scalars]
    return torch.stack([scalar.reshape(()) for scalar in scalars]).tolist()
