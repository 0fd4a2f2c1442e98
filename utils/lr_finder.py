"""Find a learning rate by trying: the range test of L. N. Smith, "Cyclical Learning Rates ...", WACV 2017.

From a tiny rate on, each value of a geometric row is used for a few updates, and the loss is noted. At first nothing
happens; then the loss falls, the faster the larger the rate; at last it rises or is no longer finite. A good rate lies
where it falls. One such run depends on which samples happened to come when, so several are made, each with other
samples, from the same weights.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from utils.draw import new_figure, render
from utils.errors import UserError
from utils.files import told_when_full

TOO_HIGH = 3.0  # times the first loss, above the lowest: then a run of the test ends
LEAST_FALL = 0.05  # of the first loss; less may be chance


@dataclass
class LrCurve:
    """The losses of a range test.

    Attributes:
        rates: the learning rates that were tried, (V,), ascending.
        losses: of each run (R, V), the mean over the updates with this rate; NaN from where a run ended.
    """

    rates: np.ndarray
    losses: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over the runs, (V,), and over neighbouring rates; NaN from where one of the runs ended."""
        return smoothed(self.losses.mean(axis=0))

    @property
    def suggestion(self) -> float | None:
        """The middle of the two that `landmarks` returns; None when the loss falls nowhere."""
        found = landmarks(self.rates, self.mean)
        return found and math.sqrt(found[0] * found[1])

    @property
    def suggestions(self) -> list[float]:
        """What each run alone would suggest: how far they are apart tells how sure the suggestion is."""
        found = (landmarks(self.rates, smoothed(losses)) for losses in self.losses)
        return [math.sqrt(both[0] * both[1]) for both in found if both]


def smoothed(losses: np.ndarray) -> np.ndarray:
    """The mean over each value and its neighbours, an eighth of the row on both sides together; NaN stays NaN.

    >>> smoothed(np.array([1.0, 1.0, 4.0, 1.0, 1.0, np.nan])).tolist()
    [1.0, 2.0, 2.0, 2.0, 1.0, nan]
    """
    reach = max(1, len(losses) // 16)
    result = np.full(len(losses), np.nan)
    end = int(np.isfinite(losses).cumprod().sum())  # of what is there from the start
    for place in range(end):
        near = min(reach, place, end - 1 - place)  # as many on both sides, so that a slope does not move the mean
        result[place] = losses[place - near : place + near + 1].mean()
    return result


def landmarks(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float] | None:
    """Return the rate at which the loss falls fastest, and that at which it is lowest; None if it hardly falls.

    The first one learns for sure, but the fall begins late when a rate is used for a few updates only, so a training
    wants more. The second one is nearly too much.

    >>> landmarks(np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0]), np.array([2.0, 1.9, 1.2, 1.0, 3.0]))
    (0.01, 0.1)
    >>> landmarks(np.array([1e-3, 1e-2, 1e-1]), np.array([2.0, 2.0, 2.1])) is None
    True
    """
    end = int(np.isfinite(losses).cumprod().sum())
    lowest = int(np.argmin(losses[:end])) if end else 0
    if lowest == 0 or losses[0] - losses[lowest] <= LEAST_FALL * abs(losses[0]):
        return None
    slopes = np.gradient(losses[: lowest + 1], np.log(rates[: lowest + 1]))
    return float(rates[int(np.argmin(slopes))]), float(rates[lowest])


# ---- the test --------------------------------------------------------------------------------------------------------
def find_lr(
    step: Callable[[Any], float],
    optimizers: Iterable[Optimizer],
    batches: Callable[[int], Iterator[Any]],
    get_state: Callable[[], Any],
    set_state: Callable[[Any], None],
    *,
    low: float = 1e-7,
    high: float = 1.0,
    num_values: int = 50,
    num_updates: int = 3,
    num_runs: int = 3,
    base_lr: float | None = None,
) -> LrCurve:
    """Make the range test, and put the state back, whatever happens.

    Args:
        step: makes one update from a batch and returns its loss; one that is not finite ends a run of the test.
        optimizers: all that the step uses. Where the rates of their groups differ, they keep their ratio.
        batches: returns an endless iterator over batches, given the number of the run, from 0 on.
        get_state, set_state: tell what the weights, the optimizers and all else are, and put it back.
        low, high: the first and the last rate, 0 < low < high.
        num_values: how many rates, at least 2, evenly spread over the logarithm.
        num_updates: with each rate, at least 1.
        num_runs: at least 1.
        base_lr: the rate of a group that is to get exactly the rates that are tried; None for the highest of all.
    """
    optimizers, rates = list(optimizers), np.geomspace(low, high, num_values)
    whole = [rate_of(group) for optimizer in optimizers for group in optimizer.param_groups]
    ratios = [rate / (base_lr or max(whole)) for rate in whole]
    losses, state = np.full((num_runs, num_values), np.nan), get_state()
    try:
        for run in range(num_runs):
            set_state(state)
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            source, first, best = batches(run), None, math.inf
            for place, rate in enumerate(rates):
                for group, ratio in zip(groups, ratios, strict=True):
                    set_rate(group, float(rate) * ratio)
                loss = mean_loss(step, source, num_updates)
                losses[run, place] = loss
                first, best = loss if first is None else first, min(best, loss)
                if not math.isfinite(loss) or loss > best + TOO_HIGH * max(abs(first), abs(best)):
                    break
    finally:
        set_state(state)
    losses[~np.isfinite(losses)] = np.nan
    return LrCurve(rates, losses)


def mean_loss(step: Callable[[Any], float], source: Iterator[Any], num_updates: int) -> float:
    total = 0.0
    for _ in range(num_updates):
        total += step(next(source))
        if not math.isfinite(total):
            return math.nan
    return total / num_updates


def loss_of(values: Mapping[str, float]) -> float:
    """The loss among the values of a step: "loss", or the sum of all that are called some loss; NaN of no values.

    >>> loss_of({"loss": 0.5, "grad_norm": 2.0}), loss_of({"loss/generator": 1.0, "loss/critic": 0.5})
    (0.5, 1.5)

    Raises:
        UserError: when there is none.
    """
    losses = [value for name, value in values.items() if "loss" in name]
    if values and not losses:
        raise UserError(f"The step returns no loss, but {', '.join(values)}: name one of them so that 'loss' is in it.")
    return values.get("loss", sum(losses)) if values else math.nan


def rate_of(group: dict[str, Any]) -> float:
    """The rate that the options ask for: without the factor of a schedule that has begun."""
    return float(group.get("initial_lr", group["lr"]))


def set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


# ---- what came of it -------------------------------------------------------------------------------------------------
def describe(curve: LrCurve, option: str = "--lr") -> str:
    """The suggestion in words, in one or two lines."""
    lines, ended = [], [int(np.isnan(losses).argmax()) for losses in curve.losses if np.isnan(losses).any()]
    if found := landmarks(curve.rates, curve.mean):
        single = ", ".join(f"{rate:.2g}" for rate in curve.suggestions) or "none"
        lines.append(
            f"Suggestion: {option} {curve.suggestion:.2g}, between {found[0]:.2g}, where the loss falls fastest, and "
            f"{found[1]:.2g}, where it is lowest. Each run alone: {single}."
        )
    else:
        lines.append(
            f"No suggestion: between {curve.rates[0]:.2g} and {curve.rates[-1]:.2g} the loss hardly falls. Try another "
            f"range, or more updates with each rate."
        )
    if ended:
        first = curve.rates[min(ended)]
        lines.append(f"{len(ended)} of {len(curve.losses)} runs ended early, one at {first:.2g}: the loss is too high.")
    return "\n".join(lines)


def save_curve(curve: LrCurve, directory: Path) -> list[Path]:
    """Write `lr_finder.npz` (rates, losses, mean, suggestion, which is NaN if there is none) and `lr_finder.png`."""
    numbers, picture = directory / "lr_finder.npz", directory / "lr_finder.png"
    suggestion = math.nan if curve.suggestion is None else curve.suggestion
    with told_when_full("The learning-rate finder", directory):
        np.savez(numbers, rates=curve.rates, losses=curve.losses, mean=curve.mean, suggestion=suggestion)
        draw_curve(curve, picture)
    return [picture, numbers]


def draw_curve(curve: LrCurve, path: Path) -> None:
    """Draw the loss over the rate: each run thin, their mean thick, the suggestion as a line."""
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for number, losses in enumerate(curve.losses):
        axes.plot(curve.rates, losses, color="C0", alpha=0.35, linewidth=0.8, label=None if number else "single runs")
    axes.plot(curve.rates, curve.mean, color="C0", linewidth=2, label="mean, smoothed")
    if found := landmarks(curve.rates, curve.mean):
        axes.axvspan(*found, color="C1", alpha=0.15, label="falls fastest to lowest")
        axes.axvline(curve.suggestion, color="C1", linestyle="--", label=f"suggestion: {curve.suggestion:.2g}")
    finite = curve.losses[np.isfinite(curve.losses)]
    first, lowest = curve.losses[:, 0].mean(), finite.min(initial=math.inf)
    if first > lowest:  # what is far above the first loss would make everything else flat
        axes.set_ylim(lowest - 0.1 * (first - lowest), first + 0.5 * (first - lowest))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    render(figure, path)
