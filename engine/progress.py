"""Keep count of completed epochs, updates and samples: the position of a run."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """The position of a run, in completed things only.

    Two numbers (epoch, sample) give the data of the next update.
    """

    epoch: int = 0  # completed epochs
    update: int = 0  # completed optimizer updates since training began
    sample: int = 0  # completed samples of the epoch under way
    is_exact: bool = True  # False inside a transaction: the state belongs to no position that a run can resume from
    is_spoiled: bool = False  # what cannot be taken back was changed

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Mark a block that counts as a whole: a state from inside it, or after it failed, cannot be resumed."""
        self.is_exact = False
        yield
        self.is_exact = True  # not after an error, unless the NaN guard undoes the update

    @contextlib.contextmanager
    def rollback(self, *parts: Any) -> Iterator[None]:
        """Mark a block as `transaction` does; after an error, these parts and the position are as before the block.

        Args:
            parts: all that the block counts with.
        """
        counted = (*parts, self)
        before = [copy.deepcopy(part.state_dict()) for part in counted]
        try:
            with self.transaction():
                yield
        except BaseException:
            for part, state in zip(counted, before, strict=True):
                part.load_state_dict(state)
            self.is_exact = not self.is_spoiled
            raise

    @property
    def current_epoch(self) -> int:
        """The epoch under way, counted from 1."""
        return self.epoch + 1

    @property
    def position(self) -> tuple[int, int]:
        """Completed (epochs, updates): how far one checkpoint is ahead of another."""
        return self.epoch, self.update

    def updates_left(self, max_updates: int | None) -> int | None:
        """Return how many of at most `max_updates` are left, 0 or more; None for no limit."""
        return None if max_updates is None else max(0, max_updates - self.update)

    def finish_update(self, num_samples: int) -> None:
        """Count an update of `num_samples` samples, over all processes."""
        self.update += 1
        self.sample += num_samples

    def finish_epoch(self) -> None:
        """Count an epoch."""
        self.epoch += 1
        self.sample = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "update": self.update, "sample": self.sample, "is_exact": self.is_exact}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what `state_dict` returned; ValueError for anything but whole numbers from 0 on."""
        position = [state[name] for name in ("epoch", "update", "sample")]
        if not all(type(number) is int and number >= 0 for number in position):
            raise ValueError(f"the position {position} is not made of whole numbers from 0 on")
        self.epoch, self.update, self.sample = position
