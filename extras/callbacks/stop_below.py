"""Stop when the training loss is low enough."""

import logging
from collections.abc import Mapping
from typing import Any

from callbacks.callback import Callback
from utils.errors import UserError


class StopBelow(Callback):
    """Asks to stop after an epoch whose mean training loss is below a threshold; a resumed run asks at once.

    Args:
        threshold: the loss, in its own unit.
        logger: gets the reason.

    Raises:
        UserError: the task's step returns no "loss"; raised after the first epoch.
    """

    def __init__(self, threshold: float, logger: logging.Logger):
        self.threshold = threshold
        self.logger = logger
        self.loss: float | None = None  # of the last epoch

    def on_train_start(self, trainer) -> None:
        self.ask(trainer)

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        if "train/loss" not in row:
            there = ", ".join(name for name in row if name.startswith("train/")) or "none"
            raise UserError(f"--stop_below needs train/loss, which this task does not have: there is {there}.")
        self.loss = row["train/loss"]
        self.ask(trainer)

    def ask(self, trainer) -> None:
        if self.loss is not None and self.loss < self.threshold:
            self.logger.info(f"The training loss {self.loss:.4g} is below {self.threshold:g} (--stop_below).")
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss = None if state["loss"] is None else float(state["loss"])
