"""Notice that a metric has stopped improving."""

import math
import re
from typing import Any

MODES = ("max", "min")
LESS_IS_BETTER = {  # words in names of metrics
    "loss", "error", "err", "mae", "mse", "rmse", "mape", "nll", "perplexity", "ppl", "brier", "ece", "fid", "lpips",
    "wer", "cer", "eer", "hausdorff", "distance",
}  # fmt: skip


def direction(monitor: str, mode: str = "auto") -> str:
    """Return `mode`; for "auto", "min" if a word in the metric's name says that less is better, else "max".

    >>> direction("loss"), direction("loss_dice"), direction("val_mae"), direction("accuracy"), direction("loss", "max")
    ('min', 'min', 'min', 'max', 'max')
    """
    if mode != "auto":
        return mode
    words = re.split(r"[^a-z]+", monitor.lower())
    return "min" if any(word in LESS_IS_BETTER or word.endswith("loss") for word in words) else "max"


class EarlyStopper:
    """Remember the best value of a metric, and how many validations have passed without a better one.

    >>> stopper = EarlyStopper(mode="max", patience=2)
    >>> [stopper.update(accuracy) for accuracy in (0.5, 0.7, 0.7, 0.6)]
    [True, True, False, False]
    >>> stopper.best, stopper.num_bad, stopper.should_stop
    (0.7, 2, True)

    Args:
        mode: "max" when more is better, "min" when less is.
        patience: validations without an improvement after which to stop; 0 never stops.
        min_delta: at least 0. An improvement must exceed the best value by more than this. Several small gains add up,
            since they are all measured from the last value that counted as an improvement.

    Attributes:
        best: the last value that counted as an improvement; before there is one, the worst there is (-inf or inf).
        num_bad: validations since then.
    """

    def __init__(self, mode: str = "max", patience: int = 10, min_delta: float = 0.0):
        assert mode in MODES, mode
        self.mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self.best = float("-inf") if mode == "max" else float("inf")
        self.num_bad = 0

    def update(self, value: float) -> bool:
        """Add the metric of one validation, and return whether it is an improvement. NaN never is."""
        value = float(value)
        gain = value - self.best if self.mode == "max" else self.best - value
        improved = gain > self.min_delta  # False when the value is NaN
        if improved:
            self.best = value
            self.num_bad = 0
        else:
            self.num_bad += 1
        return improved

    @property
    def has_best(self) -> bool:
        """Whether there was an improvement: a first value that is a number."""
        return self.best != (float("-inf") if self.mode == "max" else float("inf"))

    @property
    def should_stop(self) -> bool:
        return self.patience > 0 and self.num_bad >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "num_bad": self.num_bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`; ValueError for anything else."""
        best, num_bad = state["best"], state["num_bad"]
        if type(best) is not float or math.isnan(best) or type(num_bad) is not int or num_bad < 0:
            raise ValueError(f"the best value {best!r} and {num_bad!r} validations since then cannot be")
        self.best, self.num_bad = best, num_bad
