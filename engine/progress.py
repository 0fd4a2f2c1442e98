"""Where training stands, in completed things only."""

from dataclasses import dataclass


@dataclass
class Progress:
    """The position of a run. Two numbers (epoch, sample) give the next update; nothing else is needed to resume."""

    epoch: int = 0  # completed epochs
    update: int = 0  # completed optimizer updates since training began
    sample: int = 0  # completed samples of the epoch under way

    @property
    def position(self) -> tuple[int, int]:
        """(epochs, updates) that are completed: how far one checkpoint is ahead of another."""
        return self.epoch, self.update

    def updates_left(self, max_updates: int | None) -> int | None:
        """How many updates are left of at most so many in all, 0 or more; None for no limit."""
        return None if max_updates is None else max(0, max_updates - self.update)

    def finish_update(self, num_samples: int) -> None:
        self.update += 1
        self.sample += num_samples

    def finish_epoch(self) -> None:
        self.epoch += 1
        self.sample = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "update": self.update, "sample": self.sample}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take back what `state_dict` returned; ValueError for anything but whole numbers from 0 on."""
        position = [state[name] for name in ("epoch", "update", "sample")]
        if not all(type(number) is int and number >= 0 for number in position):
            raise ValueError(f"the position {position} is not made of whole numbers from 0 on")
        self.epoch, self.update, self.sample = position
